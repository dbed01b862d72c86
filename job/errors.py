"""What can end a command, and the exit code of each: one table for train.py, check.py and the other scripts.

0        done
1        an error that nobody foresaw; Python prints its traceback
2        ConfigError: the config or the command line is wrong
3        RewardError: a reward function failed
4        OutputError: the output folder cannot be written, or its disk is full
5        SandboxError: the sandbox lacks a layer that `sandbox.require` names, or cannot start
6        CheckError: the rewards pay a wrong or dishonest answer
7        the watchdog stopped the run, or its weights are not finite at the end
128 + n  signal n stopped the run (143 for SIGTERM); a checkpoint is saved
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence

from sandbox import SandboxError

DONE = 0
STOPPED_BY_WATCHDOG = 7
STOPPED_BY_SIGNAL = 128  # plus the number of the signal
SANDBOX_FAILED = 5  # SandboxError stands in sandbox/, which knows nothing of exit codes


class JobError(Exception):
    """An error that is told in words, without a traceback."""

    exit_code = 1


class ConfigError(JobError):
    """The user's fault: one line a mistake, found before the GPU is touched."""

    exit_code = 2

    def __init__(self, mistakes: str | Sequence[str]):
        self.mistakes = [mistakes] if isinstance(mistakes, str) else list(mistakes)
        super().__init__("\n".join(self.mistakes))


class RewardError(JobError):
    """A reward function failed; the message names it and the completion. Ends the run."""

    exit_code = 3


class GradeError(RewardError):
    """The `grade` of a task raised; the message names the task, the line and the completion."""


class OutputError(JobError):
    """The output folder cannot be written, or its disk is full."""

    exit_code = 4


class CheckError(JobError):
    """The rewards pay a wrong or dishonest answer as much as an honest one. The message starts with the table."""

    exit_code = 6


def exit_code_of(command: Callable[[], int]) -> int:
    """Run a command and return its exit code. An error of the table above is printed, one line a mistake."""
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
    """The text of an error of another library on one line."""
    return " ".join(str(error).split())


def nearest(word: str, allowed: Iterable[str], prefix: str = "") -> str:
    """The allowed spelling that was probably meant, as the end of a message; empty if none is near."""
    spellings = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(word.lower(), spellings, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{spellings[close[0]]}?" if close else ""
