"""The inside of the job: everything between the scripts that a user runs and the tasks.

Each module says in its head what it is for. train.py reads as their table of contents.
"""
