"""All that touches model-written text under a limit. Knows nothing of tasks, rewards or training.

code_blocks  finds the program in a completion
sandbox      runs programs in locked-down processes: the trainer's side
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

__all__ = [
    "CPU_BUDGETS",
    "LAYERS",
    "Limits",
    "Processors",
    "Program",
    "Run",
    "Sandbox",
    "SandboxError",
    "Status",
    "WALL_FACTOR",
    "default_workers",
]
