"""What can end a command, and the exit code of each. All scripts at the top level share this table.

0        done
1        an error that nobody foresaw; Python prints its traceback
2        ConfigError: the config or the command line is wrong
3        RewardError: a reward function failed; GradeError: the `grade` of a task did
4        OutputError: the output folder cannot be written, or its disk is full
5        SandboxError: the sandbox lacks a layer that `sandbox.require` names, or cannot start
6        CheckError: the rewards pay a wrong or dishonest answer as much as an honest one
7        the watchdog stopped the run, or its weights are not finite at the end
8        ExportError: an export differs from base + adapter, or could not be uploaded
75       as 128 + n, where `train.requeue` is true: the run wants to be started again
128 + n  signal n stopped the run (143 for SIGTERM, 130 for Ctrl-C); a checkpoint is saved
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sandbox import SandboxError

DONE = 0
UNFORESEEN = 1  # Python's own, with a traceback
STOPPED_BY_WATCHDOG = 7
STOPPED_BY_SIGNAL = 128  # plus the number of the signal
ROOT = Path(__file__).resolve().parent.parent
IMAGE_PREFIX = "/opt/venv"  # where the Dockerfile installs everything
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: saved, and wants to be started again
SANDBOX_FAILED = 5  # SandboxError is defined in sandbox/, which knows nothing of exit codes


class JobError(Exception):
    """An error that is explained in words, without a traceback."""

    exit_code = 1


class ConfigError(JobError):
    """The config or the command line is wrong. It is found before the GPU is touched.

    Args:
        mistakes: one line for each mistake.
    """

    exit_code = 2

    def __init__(self, mistakes: str | Sequence[str]):
        if isinstance(mistakes, str):
            mistakes = [mistakes]
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))


class RewardError(JobError):
    """A reward function failed, which ends the run. The message names it and the completion."""

    exit_code = 3


class GradeError(RewardError):
    """The `grade` of a task raised. The message names the task, the line and the completion."""


class OutputError(JobError):
    """The output folder cannot be written, or its disk is full."""

    exit_code = 4


class CheckError(JobError):
    """The rewards pay a wrong or dishonest answer as much as an honest one.

    The message holds the table of all known answers and what they earn.
    """

    exit_code = 6


class ExportError(JobError):
    """An export could not be made, differs from base + adapter, or could not be uploaded."""

    exit_code = 8


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    An error of the table above is printed, one line for each mistake. Any other passes through.
    """
    try:
        return command()
    except ConfigError as error:
        return fail(error.exit_code, error.mistakes)
    except JobError as error:
        return fail(error.exit_code, [str(error)])
    except SandboxError as error:
        return fail(SANDBOX_FAILED, [str(error)])


def fail(exit_code: int, lines: Iterable[str]) -> int:
    """Print each line as an error and return `exit_code`."""
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return exit_code


def one_line(error: Exception) -> str:
    """The message of another library's error, on one line."""
    return " ".join(str(error).split())


def how_to_install(*packages: str) -> str:
    """How packages get to where this project runs: into the image, .venv or another environment."""
    names = " ".join(packages)
    if sys.prefix == IMAGE_PREFIX:
        return f'rebuild the image with it: EXTRA_PACKAGES="{names}" bash build.sh'
    if Path(sys.prefix) == ROOT / ".venv":
        return f"install it into .venv: .venv/bin/python -m pip install {names}"
    return f"install it: {sys.executable} -m pip install {names}"


def nearest(word: str, allowed: Iterable[str], prefix: str = "") -> str:
    """The end of a message that suggests the allowed spelling nearest to `word`.

    It is empty if no spelling is near, or if the nearest is what was written: then something else
    is wrong. `prefix` goes before the suggestion, as in "grpo.".
    """
    spellings = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(word.lower(), spellings, n=3, cutoff=0.5)
    if not close or prefix + spellings[close[0]] == word:
        return ""
    # Letters in another order are nearer than other letters.
    swapped = [name for name in close if sorted(name) == sorted(word.lower())]
    return f"; did you mean {prefix}{spellings[[*swapped, *close][0]]}?"


def among(word: str, allowed: Iterable[str]) -> str:
    """The end of a message that suggests the nearest spelling, and lists all that are allowed."""
    allowed = list(allowed)
    hint = nearest(word, allowed)
    if not hint:
        return f"; there are {allowed}"
    return f"{hint} (there are {allowed})"
