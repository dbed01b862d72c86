"""Turn what a run has trained into files that others load, and prove that they are the same model.

    bash train.sh --local export.py RUN_OR_FOLDER --format lora|merged_16bit|mxfp4|gguf
        [--output DIR] [--base ID_OR_FOLDER] [--compare all|tensors]
        [--push-to-hub REPO [--public]]

lora          the adapter and the tokenizer
merged_16bit  the whole model in 16 bit
mxfp4         a gpt-oss whose experts stay in 4 bit; for adapters of the attention alone
gguf          for llama.cpp, if its converter is on this machine

RUN_OR_FOLDER is a run's output folder, its final_model, or a checkpoint. The result goes to
exports/<format> in the run's folder. It is loaded in a fresh process and compared with base +
adapter; export.json holds the verdict and the SHA-256 of each file. An export that differs is
removed. It ends with the exit codes of docs/runs.md.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from job.errors import DONE, STOPPED_BY_SIGNAL, exit_code_of
from job.export.exporting import FORMATS, export


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="RUN_OR_FOLDER", type=Path)
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument("--output", metavar="DIR", type=Path, help="a folder that does not exist")
    parser.add_argument(
        "--base", metavar="ID_OR_FOLDER", help="add the adapter to this model, not to its own base"
    )
    parser.add_argument(
        "--compare",
        choices=["all", "tensors"],
        default="all",
        help="tensors: run no model, which is quicker; default: all",
    )
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload it, as USER/NAME")
    parser.add_argument("--public", action="store_true", help="everybody may see REPO")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return exit_code_of(lambda: export_command(arguments))


def stop(number: int, frame: Any) -> None:
    """Ends the command in such a way that what is half written is removed."""
    sys.exit(STOPPED_BY_SIGNAL + number)


def export_command(arguments: argparse.Namespace) -> int:
    export(
        arguments.source,
        arguments.format,
        output=arguments.output,
        base=arguments.base,
        repo=arguments.push_to_hub,
        public=arguments.public,
        tensors_only=arguments.compare == "tensors",
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
