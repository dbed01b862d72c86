"""All that touches model-written text under a limit. Knows nothing of tasks, rewards or training.

code_blocks  finds the program in a completion
sandbox      runs programs in locked-down processes: the trainer's side
session      an interpreter in such a process, which runs one piece of code after the other
jail         the same: the far side, inside those processes
verifier     compares answers by value, in processes that can be killed
"""

from sandbox.sandbox import (
    CPU_BUDGETS,
    LAYERS,
    WALL_FACTOR,
    Limits,
    Processors,
    Program,
    Run,
    Sandbox,
    SandboxError,
    Status,
    default_workers,
)
from sandbox.session import Session

__all__ = [
    "CPU_BUDGETS",
    "LAYERS",
    "Limits",
    "Processors",
    "Program",
    "Run",
    "Sandbox",
    "SandboxError",
    "Session",
    "Status",
    "WALL_FACTOR",
    "default_workers",
]
