"""How good is a model? And is one better than another?

bash train.sh --local evaluate.py MODEL [section.key=value ...]
    Evaluates a model on the rows that a task holds out: pass@k, rewards, cheating, how completions
    end, and what the task measures, each with a 95 % interval.

bash train.sh --local evaluate.py MODEL MODEL [section.key=value ...]
    Evaluates both on the same problems, says in one sentence how much better the second is, and
    lists the problems that got worse.

MODEL is a folder with an adapter (final_model, checkpoint-N) or a whole model, the output folder of
a run, a model on the Hub, `tiny`, or the folder of a finished evaluation. Beside another one it may
be `base`: the model that the other was trained on. The config of the run that trained it says what
the task is; --config and section.key=value change that.

A stopped evaluation continues where it was when the same command is given again. It ends with the
exit codes of docs/runs.md.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from job.errors import DONE, STOPPED_BY_SIGNAL, ConfigError, exit_code_of
from job.evaluation import evaluation
from job.evaluation.model_evaluation import (
    DEFAULT_OUTPUT,
    Finished,
    Request,
    configs_of,
    evaluate_models,
)
from job.fetch import fetch
from job.run_folder import shown_path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="+", metavar="MODEL", help="one model or two")
    parser.add_argument("--task", metavar="NAME", help="default: the task of the config")
    parser.add_argument(
        "--data", metavar="FILE", help="rows of your own, in any form that the task jsonl reads"
    )
    parser.add_argument("--rows", metavar="N", type=count, help="at most this many rows")
    parser.add_argument(
        "--completions", metavar="N", type=count, default=4, help="of each row; default: 4"
    )
    parser.add_argument(
        "--temperature", metavar="T", type=temperature, help="default: grpo.temperature"
    )
    parser.add_argument("--max-new-tokens", metavar="N", type=count, help="default: as in training")
    parser.add_argument("--batch", metavar="N", type=count, help="completions decoded at once")
    parser.add_argument("--output", metavar="DIR", help=f"default: a folder below {DEFAULT_OUTPUT}")
    parser.add_argument("--config", metavar="FILE", action="append", default=[])
    parser.add_argument(
        "--fetch", action="store_true", help="download what this needs, and stop; for train.sh"
    )
    arguments = parser.parse_intermixed_args(argv)
    return exit_code_of(lambda: evaluate_command(arguments))


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < 100:
        raise argparse.ArgumentTypeError("must be 0 or more, and below 100")
    return number


def evaluate_command(arguments: argparse.Namespace) -> int:
    models = [word for word in arguments.words if "=" not in word]
    overrides = [word for word in arguments.words if "=" in word]
    if not 1 <= len(models) <= 2:
        raise ConfigError(f"name one model or two, not {len(models)}")
    if arguments.temperature == 0 and arguments.completions > 1:
        raise ConfigError(
            "--temperature 0: all completions of a row would be the same; add --completions 1"
        )
    request = Request(
        task=arguments.task,
        data=arguments.data,
        rows=arguments.rows,
        completions=arguments.completions,
        temperature=arguments.temperature,
        max_new_tokens=arguments.max_new_tokens,
        batch=arguments.batch,
        output=arguments.output,
        config_files=arguments.config,
        overrides=overrides,
    )
    if arguments.fetch:
        fetch(configs_of(models, request))
        return DONE
    try:
        print_results(evaluate_models(models, request))
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from here", file=sys.stderr)
        return STOPPED_BY_SIGNAL + signal.SIGINT
    return DONE


def print_results(finished: Sequence[Finished]) -> None:
    """The table, and for two models the comparison."""
    print()
    print(evaluation.table([item.name for item in finished], [item.result for item in finished]))
    for words in dict.fromkeys(evaluation.unjudged_in_words(item.result) for item in finished):
        if words:
            print(words)
    print()
    for item in finished:
        print(f"{shown_path(item.folder)}  every figure, and every completion as Parquet")
    if len(finished) == 2:
        comparison = evaluation.compare(finished[0].records, finished[1].records)
        file = finished[1].folder / "comparison.json"
        evaluation.write_json({"first": finished[0].name} | comparison.as_json(), file)
        print(evaluation.worse_in_words(comparison))
        print(f"\n{finished[0].name} against {finished[1].name}: {comparison.sentence}")


if __name__ == "__main__":
    sys.exit(main())
