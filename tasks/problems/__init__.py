"""Problems that users bring: what a row of a data set asks for, in the form of tasks/code.py.

    shapes.py   rows as LeetCode, MBPP, HumanEval, APPS, TACO and LiveCodeBench have them
    asserts.py  tests that are given as Python: `assert f(1) == 2`

A folder in tasks/ is no task: it is what tasks share.
"""
