"""Do the rewards pay what they should? And: score completions from elsewhere.

bash train.sh --smoke check.py [--config FILE] [section.key=value ...]
    Runs the task's reference solution, slower and wrong ones and every exploit that the task knows
    through the configured rewards. Fails with exit code 6 if anything wrong or dishonest earns as
    much as an honest answer. The answers are compared at step 0 and at every step that a schedule
    of weights or the curriculum names. Between those all totals are linear in the step. Each stage
    of the curriculum grades all answers. Nothing else may out-earn those that it finds right.
    train.py does this before each run unless `task.check` is false. First each reward function is
    tried on a batch of two prompts. train.py does that before each run and in a dry run.

bash train.sh --smoke check.py grade FILE.jsonl [--task NAME] [--out FILE] [--step N]
                                                [--config FILE] [section.key=value ...]
    FILE.jsonl holds one object a line with "completion", and optionally "id", "task" and further
    columns of that task. Writes one line for each, in order: id, status, rewards (by function
    name), total, cheating, correct, detail. A row that cannot be read gets the status bad_row. No
    row ends the run. Weights and curriculum are those of step N, by default 0.

It ends with the exit codes of docs/runs.md.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from job.config import Config, load_config
from job.errors import DONE, ConfigError, exit_code_of, one_line
from job.fetch import fetch
from job.grade_file import grade_file
from job.grading_pool import GradingPool
from job.own_code import chosen_task
from job.reward_check import check_rewards, rehearse_rewards, rows_to_try
from sandbox import Status


def main(argv: Sequence[str] | None = None) -> int:
    if argv is None:
        argv = sys.argv[1:]
    words = list(argv)
    parser, parsers = make_parsers()
    if words[:1] in (["-h"], ["--help"]):
        parser.parse_args(words)

    # The command may be left out, and options may come before it
    named = [word for word in words if word in parsers]
    command = "rewards"
    if named:
        command = named[0]
        words.remove(command)

    # Overrides may come between options, which parse_args would not take
    arguments = parsers[command].parse_intermixed_args(words)
    if arguments.fetch:
        return exit_code_of(lambda: fetch_command(arguments))
    if command == "grade":
        return exit_code_of(lambda: grade_command(arguments))
    return exit_code_of(lambda: check_command(arguments))


def make_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, for its help, and that of each command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands")

    rewards = commands.add_parser("rewards", help="try the rewards; may be left out")
    grade = commands.add_parser("grade", help="score completions from elsewhere")
    grade.add_argument("file", metavar="FILE.jsonl", help="the completions, one object a line")
    grade.add_argument("--task", metavar="NAME", help="task of rows that name none")
    grade.add_argument("--out", metavar="FILE", help="default: standard output")
    grade.add_argument(
        "--step",
        metavar="N",
        type=step_number,
        default=0,
        help="of training, for weights and curriculum; default: 0",
    )
    for command in (rewards, grade):
        command.add_argument(
            "--config", metavar="FILE", action="append", help="its keys replace config.yaml's"
        )
        command.add_argument("--fetch", action="store_true", help="for train.sh")
        command.add_argument(
            "overrides", nargs="*", metavar="section.key=value", help="e.g. task.type=code"
        )
    return parser, {"rewards": rewards, "grade": grade}


def step_number(text: str) -> int:
    step = int(text)
    if step < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return step


def fetch_command(arguments: argparse.Namespace) -> int:
    """The fetch step of train.sh. The rewards are checked without a model."""
    fetch([load_config(arguments.config, arguments.overrides)], with_models=False)
    return DONE


def check_command(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    rows = rows_to_try(config.tasks)
    with GradingPool.of(config.sandbox) as pool:
        print(rehearse_rewards(config.tasks, rows, pool), end="\n\n")
        for options in config.tasks:
            table, summary = check_rewards(options, pool)
            print(table, summary, sep="\n\n")
    return DONE


def grade_command(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    if arguments.task:
        arguments.task = chosen_task(arguments.task)
    if arguments.out and Path(arguments.out).resolve() == Path(arguments.file).resolve():
        raise ConfigError("--out: the same file as the one to grade")
    try:
        with ExitStack() as stack:
            lines = stack.enter_context(open(arguments.file, encoding="utf-8", errors="replace"))
            out = sys.stdout
            if arguments.out:
                out = stack.enter_context(open(arguments.out, "w", encoding="utf-8"))
            counts = grade_lines(lines, out, config, arguments)
    except OSError as error:
        raise ConfigError(one_line(error)) from error
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(summary, file=sys.stderr)
    return DONE


def grade_lines(
    lines: TextIO, out: TextIO, config: Config, arguments: argparse.Namespace
) -> Counter[str]:
    """Write a verdict for each line. Returns how many there were of each kind."""
    counts: Counter[str] = Counter(rows=0, correct=0, cheating=0, bad_row=0)
    with GradingPool.of(config.sandbox) as pool:
        for verdict in grade_file(lines, config, pool, arguments.task, arguments.step):
            print(verdict, file=out, flush=True)
            result = json.loads(verdict)
            counts["rows"] += 1
            counts["correct"] += result["correct"]
            counts["cheating"] += result["cheating"]
            counts["bad_row"] += result["status"] == Status.BAD_ROW
    return counts


if __name__ == "__main__":
    sys.exit(main())
