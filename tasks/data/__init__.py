"""Rows that users bring: where they are, how each form of file is read, and what a row becomes.

    sources.py   files, globs and data sets of the Hub
    formats.py   JSON lines, JSON, CSV and Parquet -> one value a row, each with its place
    columns.py   which column is the prompt and which the answer; what else a row may hold
    mistakes.py  what is wrong with rows, grouped

A row that cannot be read is a ValueError in the row's place, so that reading goes on and all
mistakes are told together. A folder in tasks/ is no task: it is what tasks share.
"""
