"""The tool `python`: a session of an interpreter in the sandbox, one for each completion."""

from sandbox import Sandbox, Session, Status
from sandbox.session import Output

LOST = "The interpreter was ended, and all that was defined is lost."


NOTHING = "(no output)"


class ToolError(Exception):
    """A call failed; the text says why, in words for the model.

    Args:
        status: what the transcript says of the call.
    """

    def __init__(self, text: str, status: str = "error"):
        super().__init__(text)
        self.status = status


class Interpreter:
    """Starts with the first call.

    Args:
        cpu_s: CPU of all calls together.
    """

    def __init__(self, sandbox: Sandbox, cpu_s: float):
        self._session = Session(sandbox, cpu_s)
        self.cpu_s = 0.0  # used so far

    @property
    def findings(self) -> tuple[str, ...]:
        return self._session.findings

    @property
    def is_spent(self) -> bool:
        return self._session.is_spent

    def python(self, code: str) -> str:
        """Runs Python code and returns what it prints and the value of its last expression. What
        one call defines is there in the next. There are no files and no network.

        Args:
            code: The code to run.
        """
        output = self._session.run(code)
        self.cpu_s += output.cpu_s
        text = in_words(output)
        if output.status is not Status.OK:
            raise ToolError(text, str(output.status))
        return text

    def close(self) -> None:
        self._session.close()


def in_words(output: Output) -> str:
    """What the model is told of a call."""
    parts = [output.output.rstrip("\n")]
    if output.status is not Status.OK:
        parts.append(output.error or str(output.status))
    if output.is_lost:
        parts.append(LOST)
    return "\n".join(part for part in parts if part) or NOTHING
