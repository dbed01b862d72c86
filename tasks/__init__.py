"""What all tasks share. A task is one file here; `task.type: NAME` finds tasks/NAME.py.

A task module offers
    Options      frozen dataclass, a subclass of tasks.Options: the keys of the config's `task:` section
    REWARDS      names of the reward functions it wants by default
    REFERENCE    a completion that earns full marks
    SLOWER       honest completions that are right and earn less
    WRONG        honest completions that are not right
    CHEAT        completions that try to be paid for nothing
    CURRICULUM_KEYS  its keys that a stage of `task.curriculum` may change: those that only `grade` reads, because
                 rows are made once, at the start (optional; none where it is left out)
    eval_rows(options) -> the same as rows, held out for evaluation (optional)
    known_answers(row, options) -> list of (kind, completion) for check.py, where what is right depends on the row
                 (optional; otherwise the four constants above). A kind is reference, slower, wrong, cheat, or
                 unverified: honest, though nobody can say whether it is right
    rows(options) -> list of {"prompt": [messages], further columns}, one for each dataset row
    grade(completion, row, options, sandbox, rng) -> Grade, a fresh judgement of one completion (thread-safe);
                 row holds the dataset's further columns and "step", the training step

A task never sees a score and never imports torch.
"""

import functools
import importlib
import itertools
import math
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sandbox import Status
from sandbox.code_blocks import code_blocks, extract_code

__all__ = [
    "Grade",
    "Options",
    "code_blocks",
    "extract_code",
    "flag_unclosed",
    "known_answers",
    "note_once",
    "problem_mistakes",
]


@dataclass(frozen=True)
class Options:
    """The keys of `task:` that every task has."""

    type: str = MISSING
    num_rows: int = 1000
    num_eval_rows: int = 0  # prompts that are kept for evaluation and never trained on
    weight: float = 1.0  # share of the rows where several tasks are mixed
    reasoning_effort: Literal["low", "medium", "high"] = "low"
    check: bool = True  # before training, see that known wrong and dishonest answers are not paid
    rewards: Any = None  # names, or {name: weight}, a weight being a number or {step: number}; null: the task's REWARDS
    curriculum: list[dict[str, Any]] = field(
        default_factory=list
    )  # stages: {step, key of the task: its value, ...}

    @functools.cached_property
    def stages(self) -> list[tuple[int, "Options"]]:
        """(first step, options) of each stage of the curriculum. Raises ValueError for a stage that cannot be."""
        mistakes = list(curriculum_mistakes(self))
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return [(stage["step"], at_stage(self, stage)) for stage in self.curriculum]


@dataclass(frozen=True)
class Grade:
    """What one completion turned out to be. Every reward function is a function of it, and nothing runs twice."""

    status: Status
    code: str | None = None  # the program that was extracted
    correct: bool = False
    cheating: tuple[str, ...] = ()  # what was attempted, in words; empty for an honest completion
    passed: float = 0.0  # share of the checks that passed, 0 to 1
    speedup: float | None = (
        None  # CPU time of the baseline / of the program; None where not measured
    )
    detail: str = ""  # why, in words
    data: Mapping[str, Any] = field(default_factory=dict)  # what else the task measured, by name


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"tasks.{name}")


def contract_mistakes(name: str) -> Iterator[str]:
    """What keeps tasks/NAME.py from being a task, in words."""
    try:
        task = load(name)
    except Exception as error:  # the user's file may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = (
            ""
            if isinstance(error, SyntaxError)
            else f" ({os.path.basename(place.filename)}:{place.lineno})"
        )
        yield f"tasks/{name}.py cannot be imported: {type(error).__name__}: {error}{where}"
        return
    needed = ["Options", "REWARDS", "rows", "grade"]
    needed += [] if hasattr(task, "known_answers") else ["REFERENCE", "SLOWER", "WRONG", "CHEAT"]
    if lacking := [thing for thing in needed if not hasattr(task, thing)]:
        yield f"tasks/{name}.py lacks {', '.join(lacking)}; the head of tasks/__init__.py says what they are"
    elif not (isinstance(task.Options, type) and issubclass(task.Options, Options)):
        yield f"tasks/{name}.py: its Options must be a subclass of tasks.Options"


def row_mistake(row: Any) -> str:
    """What is wrong with a row of a task, in words; empty if nothing is."""
    if not isinstance(row, Mapping) or "prompt" not in row:
        return f"a row must be a mapping with a prompt, not {row!r:.200}"
    prompt = row["prompt"]
    well_formed = isinstance(prompt, list) and all(
        isinstance(message, Mapping)
        and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in prompt
    )
    return (
        ""
        if well_formed and prompt
        else f"a prompt must be [{{'role': ..., 'content': ...}}], not {prompt!r:.200}"
    )


def reward_weights(task: str, rewards: Any) -> dict[str, Any]:
    """Reward function names in order, each with its weight, a number or a schedule; `rewards` as in Options."""
    chosen = rewards or load(task).REWARDS
    return dict(chosen.items()) if hasattr(chosen, "items") else dict.fromkeys(chosen, 1.0)


def at_step(options: Options, step: int) -> Options:
    """`options` when `step` optimizer steps are done: with the keys of the last stage that has begun. Each stage
    starts from the task's own values, not from the stage before; before the first stage they are the task's own."""
    return next((stage for first, stage in reversed(options.stages) if first <= step), options)


def at_stage(options: Options, stage: Mapping[str, Any]) -> Options:
    """`options` with the keys of one stage. Raises ValueError for a value that cannot be."""
    changed = {key: converted(options, key, value) for key, value in stage.items() if key != "step"}
    return replace(options, **changed, curriculum=[])


def converted(options: Options, key: str, value: Any) -> Any:
    """`value` of the type of the option `key`, converted and refused as in the section itself. Raises ValueError."""
    section = OmegaConf.structured(type(options))
    OmegaConf.set_readonly(section, False)  # OmegaConf freezes what comes from a frozen dataclass
    try:
        OmegaConf.update(section, key, value, merge=False)
        return section[key]
    except OmegaConfBaseException as error:
        raise ValueError(str(error).splitlines()[0]) from error


def shared_mistakes(options: Options) -> Iterator[str]:
    """What is wrong with the keys that every task has, each with its name. A task's own `__post_init__` need not look
    at them."""
    if options.num_rows is not None and options.num_rows < 1:
        yield f"num_rows: must be above 0, not {options.num_rows}"
    if options.num_eval_rows < 0:
        yield f"num_eval_rows: must be 0 or more, not {options.num_eval_rows}"
    if not 0 < options.weight < math.inf:
        yield f"weight: must be above 0 and finite, not {options.weight}"
    yield from curriculum_mistakes(options)


def curriculum_mistakes(options: Options) -> Iterator[str]:
    """What is wrong with the stages of a curriculum, each with its place."""
    allowed = getattr(load(options.type), "CURRICULUM_KEYS", [])
    least = 0
    for i, stage in enumerate(options.curriculum):
        step, refused = stage.get("step"), {}
        if type(step) is not int or step < least:
            yield f"curriculum[{i}].step: must be a whole number from {least} on, not {step!r}"
        else:
            least = step + 1
        for key in (key for key in stage if key != "step"):
            try:
                if key not in allowed:
                    raise ValueError(
                        f"cannot change by step; of {options.type} can: {', '.join(allowed) or 'nothing'}"
                    )
                converted(options, key, stage[key])
            except ValueError as error:
                refused[f".{key}"] = error
        if not refused:
            try:
                at_stage(options, stage)
            except ValueError as error:  # from the task's own __post_init__
                refused[""] = error
        yield from (f"curriculum[{i}]{key}: {error}" for key, error in refused.items())


@functools.cache
def note_once(text: str) -> None:
    """Tell the user something that is worth knowing; the same text only once in a process."""
    print(f"note: {text}", file=sys.stderr)


def problem_mistakes(options: Any, read_problem: Callable[[Any], Any]) -> list[str]:
    """What is wrong with the `problems` and `eval_problems` of a task's options, each with its place."""
    mistakes = []
    for key, problems in (("problems", options.problems), ("eval_problems", options.eval_problems)):
        if not isinstance(problems, list) or not (problems or key == "eval_problems"):
            mistakes.append(f"{key}: must be a list of texts or mappings")
            continue
        for i, problem in enumerate(problems):
            try:
                read_problem(problem)
            except ValueError as error:
                mistakes.append(f"{key}[{i}]: {error}")
    return mistakes


def known_answers(
    task: ModuleType, row: Mapping[str, Any], options: Options
) -> list[tuple[str, str]]:
    """(kind, completion) of what a task knows about one row."""
    if hasattr(task, "known_answers"):
        return task.known_answers(row, options)
    others = [
        (kind, text)
        for kind in ("slower", "wrong", "cheat")
        for text in getattr(task, kind.upper())
    ]
    return [("reference", task.REFERENCE), *others]


def labelled(row: dict[str, Any], options: Options) -> dict[str, Any]:
    """A task's row with the columns that all rows have: "task" and "reasoning_effort", by default the task's.

    Raises:
        ValueError: if it is no row.
    """
    if mistake := row_mistake(row):
        raise ValueError(f"rows of tasks/{options.type}.py: {mistake}")
    return row | {
        "task": options.type,
        "reasoning_effort": row.get("reasoning_effort") or options.reasoning_effort,
    }


UNCLOSED = "the code block is never closed: cut off at grpo.max_completion_length?"


def flag_unclosed(grade: Grade) -> Grade:
    """The Grade of a program whose block is never closed: judged like any other, but said so."""
    detail = "; ".join(filter(None, (grade.detail, UNCLOSED)))
    return replace(grade, detail=detail, data={**grade.data, "unclosed": True})
