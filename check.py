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
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import tasks
from job.config import load_config
from job.errors import ConfigError, exit_code_of, one_line
from job.grade_file import grade_file
from job.grading_pool import GradingPool
from job.reward_check import check_rewards
from sandbox import Status


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="[grade FILE.jsonl] section.key=value")
    parser.add_argument("--config", metavar="FILE", action="append")
    parser.add_argument("--task", metavar="NAME", help="task of rows that name none")
    parser.add_argument("--out", metavar="FILE", help="default: standard output")
    parser.add_argument(
        "--step", metavar="N", type=int, default=0, help="of training, for weights and curriculum"
    )
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
    config = load_config(arguments.config, overrides)
    with GradingPool.of(config.sandbox) as sandbox:
        for options in config.tasks:
            print(*check_rewards(options, sandbox), sep="\n\n")
    return 0


def grade_command(file: str, overrides: Sequence[str], arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, overrides)
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
            sandbox = stack.enter_context(GradingPool.of(config.sandbox))
            for verdict_line in grade_file(lines, config, sandbox, arguments.task, arguments.step):
                print(verdict_line, file=out, flush=True)
                result = json.loads(verdict_line)
                unread = result["status"] == Status.BAD_ROW
                counts.update(
                    rows=1, correct=result["correct"], cheating=result["cheating"], bad_row=unread
                )
    except OSError as error:
        raise ConfigError(one_line(error)) from error
    print(", ".join(f"{count} {name}" for name, count in counts.items()), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
