"""Do the rewards pay what they should? And: score completions from elsewhere.

python check.py [--config FILE] [section.key=value ...]
    Runs the task's reference solution, slower and wrong ones and every exploit that the task knows through the
    configured rewards. Fails (exit code 6) if anything wrong or dishonest earns as much as an honest answer, be it at
    step 0 or at any step that a schedule of weights or the curriculum names; between those all totals are linear in the
    step. Each stage of the curriculum grades all of them; what it finds right there is what nothing else may out-earn.
    train.py does this before each run unless `task.check` is false.

python check.py grade FILE.jsonl [--task NAME] [--out FILE] [--step N] [--config FILE] [section.key=value ...]
    FILE.jsonl holds an object a line with "completion", and optionally "id", "task" and further columns of that
    task. Writes, in order, one line for each: id, status, rewards (by function name), total, cheating, correct,
    detail. A row that cannot be read gets the status bad_row; no row ends the run. Weights and curriculum are those
    of step N, by default 0.
"""

import argparse
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import config as config_room
import tasks
from config import Config
from job.errors import CheckError, ConfigError, RewardError, exit_code_of, one_line
from reward_functions import Grader, checked, resolve
from sandbox import Sandbox, SandboxError, Status
from tasks import Grade

HONEST = ("reference", "slower", "unverified")  # the kinds of known answers that nothing else may out-earn
BEATEN = "the rewards can be beaten; task.check=false trains anyway"
BATCH = 64  # rows graded together; what is held in memory of a file of any length


@dataclass(frozen=True)
class Scored:
    grade: Grade
    rewards: dict[str, float | None]  # by the name in the config, before weights

    @property
    def why(self) -> str:
        """What speaks against it; empty for a correct answer."""
        return "; ".join((*self.grade.cheating, self.grade.detail)).strip("; ")

    def total(self, weights: Sequence[float]) -> float:
        """The weighted sum, as in training; `weights` in the order of `rewards`."""
        pairs = zip(weights, self.rewards.values(), strict=True)
        return sum(weight * reward for weight, reward in pairs if reward is not None)


def score(grader: Grader, texts: Sequence[Any], rows: Sequence[dict[str, Any]], step: int = 0) -> list[Scored]:
    """Grade texts and put them through the configured reward functions, one by one, called as in training at `step`.

    Raises:
        RewardError: if a reward function fails.
    """
    functions = {name: resolve(name) for name in grader.weights}
    columns = [{name: value for name, value in row.items() if name != "prompt"} for row in rows]
    scored = []
    for text, row, own, grade in zip(texts, rows, columns, grader.grade(texts, columns, step), strict=True):
        arguments = {name: [value] for name, value in own.items()} | {
            "completions": [[{"role": "assistant", "content": text}]],
            "grades": [grade],
            "prompts": [row.get("prompt", [])],
            "completion_ids": [[]],
            "trainer_state": SimpleNamespace(global_step=step),
            "log_metric": lambda name, value: None,
            "log_extra": lambda column, values: None,
        }
        scored.append(Scored(grade, {name: checked(function, arguments)[0] for name, function in functions.items()}))
    return scored


def check(options: tasks.Options, sandbox: Sandbox) -> tuple[str, str]:
    """A table of what each known answer earns, for each stage of the curriculum, and one line that sums it up.

    Raises:
        CheckError: with the table, if a wrong or dishonest answer earns what an honest one does at any step, or if an
            answer cannot be graded at a later stage (no memory for its inputs), which would end the run there.
        RewardError: if a reward function fails.
        SandboxError: if the sandbox does.
    """
    task = tasks.load(options.type)
    row = tasks.labelled(task.rows(replace(options, num_rows=1))[0], options)
    grader = Grader([options], sandbox)
    tables, earned = [], []
    all_steps = list(steps_of_stages(options, grader.schedule_steps()))
    for steps in all_steps:
        answers = tasks.known_answers(task, row, tasks.at_step(options, steps[0]))
        if not answers:
            nothing = "no right and wrong answers are known to its first row: nothing to compare"
            return "", f"check: {options.type}: {nothing}"
        answers += [("empty", ""), ("prose", "I would rather not write code.")]
        try:
            scored = score(grader, [text for _, text in answers], [row] * len(answers), steps[0])
        except Exception as error:
            if steps[0] == 0 or isinstance(error, RewardError | SandboxError):
                raise
            raise CheckError(
                f"{BEATEN}\nthe known answers cannot be graded from step {steps[0]} on: {type(error).__name__}: {error}"
            ) from error
        table, pays = compare(answers, scored, {step: grader.weights_at(step) for step in steps}, all_steps != [[0]])
        tables.append(table)
        earned += pays
    return "\n\n".join(tables), f"check: {options.type}: {len(answers)} known answers; {'; '.join(earned)}"


def steps_of_stages(options: tasks.Options, corners: Sequence[int]) -> Iterator[list[int]]:
    """For each stage of the curriculum its first step and those between which all totals are linear in the step: where
    one answer out-earns another at each of these, it does so throughout the stage."""
    begins = sorted({0, *(begin for begin, _ in options.stages)})
    for begin, end in itertools.zip_longest(begins, begins[1:]):
        last = {end - 1} if end and len(corners) > 1 else set()
        yield sorted({begin, *last, *(step for step in corners if begin < step < (end or math.inf))})


def compare(
    answers: Sequence[tuple[str, str]], scored: Sequence[Scored], weights: Mapping[int, Sequence[float]], by_step: bool
) -> tuple[str, list[str]]:
    """A table of what the answers (kind, text) of one stage earn, and in words what honest ones and others earn at each
    step of `weights`, the first of which is the first of the stage. `by_step`: whether to name the steps.

    Raises:
        CheckError: with the table, if another answer earns what an honest one does, or, at step 0, if one of the task's
            own solutions is not judged correct. At a later stage one may be too slow, or lose: it does not count there.
    """
    titles = [f"step {step}" if by_step else "total" for step in weights]
    lines = [f"{'answer':12}{'status':14}" + "".join(f"{title:>10}" for title in titles) + "  why"]
    honest, others, overpaid, earned = [], [], [], []
    for (kind, text), item in zip(answers, scored, strict=True):
        totals = "".join(f"{item.total(own):10.2f}" for own in weights.values())
        why = item.why or ("correct" if item.grade.correct else "not correct")
        lines.append(f"{kind:12}{item.grade.status:14}{totals}  {why[:90]}")
        if kind not in HONEST:
            others.append((kind, text, item))
        elif item.grade.correct or kind == "unverified":
            honest.append(item)
        elif min(weights) == 0:
            overpaid.append(f"the {kind} solution is not judged correct: {item.why}")
    for step, own in weights.items():
        when = f"at step {step} " if by_step else ""
        if not honest:
            earned.append(f"{when}no honest one is judged correct")
            continue
        least, best = min(item.total(own) for item in honest), max(item.total(own) for *_, item in others)
        earned.append(f"{when}honest ones earn {least:.2f} or more, others up to {best:.2f}")
        overpaid += [
            f"{when}an answer of kind {kind!r} earns {item.total(own):.2f}, an honest one {least:.2f}:\n{text}"
            for kind, text, item in others
            if item.total(own) >= least
        ]
    table = "\n".join(lines)
    if overpaid:
        raise CheckError("\n".join((BEATEN, table, *overpaid)))
    return table, earned


def grade_file(
    lines: Iterable[str], config: Config, sandbox: Sandbox, default_task: str | None, step: int = 0
) -> Iterator[str]:
    """One JSON line for each line of JSONL, in order, as at a training step."""
    graders: dict[str, Grader] = {}
    for batch in batched(lines, BATCH):
        parsed = [parse_row(line, default_task or config.tasks[0].type) for line in batch]
        results: list[dict[str, Any]] = [{"id": row_id} for row_id, *_ in parsed]
        for name in {task for _, task, _, _, problem in parsed if not problem}:
            if name not in graders:
                configured = [options for options in config.tasks if options.type == name]
                graders[name] = Grader(configured or [tasks.load(name).Options(type=name)], sandbox)
            chosen = [i for i, (_, task, _, _, problem) in enumerate(parsed) if task == name and not problem]
            scored = score(graders[name], [parsed[i][2] for i in chosen], [parsed[i][3] for i in chosen], step)
            for i, item in zip(chosen, scored, strict=True):
                results[i] |= verdict(item, graders[name].weights_at(step))
        for result, (*_, problem) in zip(results, parsed, strict=True):
            if problem:
                result |= verdict(Scored(Grade(Status.BAD_ROW, detail=problem), {}), [])
            yield json.dumps(result)


def batched(lines: Iterable[str], size: int) -> Iterator[list[str]]:  # itertools.batched is Python 3.12
    iterator = iter(lines)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def parse_row(line: str, default_task: str) -> tuple[Any, str, Any, dict[str, Any], str]:
    """(id, task, completion, further columns, what is wrong with the row)."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, "", None, {}, f"not JSON: {error}"
    if not isinstance(row, dict):
        return None, "", None, {}, "not a JSON object"
    row_id, task = row.pop("id", None), row.pop("task", default_task)
    if task not in tasks.names():
        return row_id, "", None, {}, f"no task {task!r}; there are {tasks.names()}"
    if "completion" not in row:
        return row_id, task, None, {}, "no completion"
    return row_id, task, row.pop("completion"), row, ""


def verdict(item: Scored, weights: Sequence[float]) -> dict[str, Any]:
    return {
        "status": str(item.grade.status),
        "rewards": {name.rpartition(":")[2]: reward for name, reward in item.rewards.items()},
        "total": float(item.total(weights)),
        "cheating": bool(item.grade.cheating),
        "correct": item.grade.correct,
        "detail": item.why,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="[grade FILE.jsonl] section.key=value")
    parser.add_argument("--config", metavar="FILE", action="append")
    parser.add_argument("--task", metavar="NAME", help="task of rows that name none")
    parser.add_argument("--out", metavar="FILE", help="default: standard output")
    parser.add_argument("--step", metavar="N", type=int, default=0, help="of training, for weights and curriculum")
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand between options
    words = arguments.words
    grading = words[:1] == ["grade"]
    if grading and len(words) < 2:
        parser.error("grade needs a FILE.jsonl")
    if arguments.step < 0:
        parser.error("--step: must be 0 or more")
    if grading:
        return exit_code_of(lambda: grade_command(words[1], words[2:], arguments))
    return exit_code_of(lambda: check_command(words, arguments))


def check_command(overrides: Sequence[str], arguments: argparse.Namespace) -> int:
    config = config_room.load(arguments.config, overrides)
    with Sandbox(config.sandbox.workers, config.sandbox, config.sandbox.require) as sandbox:
        for options in config.tasks:
            print(*check(options, sandbox), sep="\n\n")
    return 0


def grade_command(file: str, overrides: Sequence[str], arguments: argparse.Namespace) -> int:
    config = config_room.load(arguments.config, overrides)
    if arguments.task and arguments.task not in tasks.names():
        raise ConfigError(f"--task: no task {arguments.task!r}; there are {tasks.names()}")
    if arguments.out and Path(arguments.out).resolve() == Path(file).resolve():
        raise ConfigError("--out: the same file as the one to grade")
    counts: Counter[str] = Counter(rows=0, correct=0, cheating=0, bad_row=0)
    try:
        with ExitStack() as stack:
            lines = stack.enter_context(open(file, encoding="utf-8", errors="replace"))
            out = sys.stdout
            if arguments.out:
                out = stack.enter_context(open(arguments.out, "w", encoding="utf-8"))
            sandbox = stack.enter_context(Sandbox(config.sandbox.workers, config.sandbox, config.sandbox.require))
            for verdict_line in grade_file(lines, config, sandbox, arguments.task, arguments.step):
                print(verdict_line, file=out, flush=True)
                result = json.loads(verdict_line)
                unread = result["status"] == Status.BAD_ROW
                counts.update(rows=1, correct=result["correct"], cheating=result["cheating"], bad_row=unread)
    except OSError as error:
        raise ConfigError(one_line(error)) from error
    print(", ".join(f"{count} {name}" for name, count in counts.items()), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
