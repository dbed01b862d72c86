"""Write report.html and report.md about one run, or about several side by side.

    bash train.sh --local report.py RUN [RUN ...] [--output FOLDER]

It ends with the exit codes of docs/runs.md:
0        done
2        a RUN is not the output folder of a run
4        the report cannot be written
"""

import argparse
import sys
from pathlib import Path

from job.errors import DONE, exit_code_of
from job.report.reporting import write_report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write report.html and report.md about runs.", allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the output folder of a run")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where to write; default: the folder of a single run, else the current one",
    )
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: report_command(arguments))


def report_command(arguments: argparse.Namespace) -> int:
    runs = [Path(name) for name in arguments.runs]
    folder = Path.cwd()
    if len(runs) == 1:
        folder = runs[0]
    if arguments.output:
        folder = Path(arguments.output)
    for file in write_report(runs, folder):
        print(file)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
