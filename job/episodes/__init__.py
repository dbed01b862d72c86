"""Answers that take several turns: the model calls tools, or talks to an environment.

tools        which functions a row's completion may call, and what the model is told of them
interpreter  the tool `python`: a session in the sandbox
episode      the environment's side of one completion: calls, budgets, status, Grade. No tokens
tool_format  the model's side: how chat templates write calls and results
loop         decodes a batch of episodes: rows whose tools run wait, the others go on

The first three need no torch, because grading processes run them. They know nothing of tokens, and
the loop knows nothing of tools.
"""
