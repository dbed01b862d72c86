"""A Python interpreter in a locked-down process, which runs one piece of code after the other.

    with Session(sandbox) as session:
        session.run("x = 6 * 7")
        session.run("x").output    # "42\\n"

What one piece defines is there in the next. The policy, the limits and the findings are those of
sandbox.py. The interpreter is alone: nothing that another session or program leaves behind can be
seen in it. One that a piece of code has ended (a limit, a forbidden call) is replaced at the next
piece by a fresh one.
"""

from dataclasses import dataclass, replace

from sandbox.sandbox import Limits, Program, Run, Sandbox, Status, clean

NO_PROGRAM = ""  # sandbox.open of no entry point gives a session: see jail.run_session
LEAST_CPU_S = 0.05  # with less, a piece of code could not even begin
PIECE_STATUSES = (Status.OK, Status.CRASH, Status.MEMORY, Status.SYNTAX_ERROR)


@dataclass(frozen=True, slots=True)
class Output:
    """How one piece of code ended, and what it printed. The value of its last expression is printed
    as well, as at a prompt."""

    status: Status
    output: str = ""
    error: str = ""
    is_lost: bool = False  # the interpreter has ended, and with it all that was defined
    cpu_s: float = 0.0


class Session:
    """See the head of this file. Use it from one thread, and close it.

    Args:
        cpu_s: CPU over the whole life of the session, interpreters that were replaced included.
            None: the sandbox's own limit.
    """

    def __init__(self, sandbox: Sandbox, cpu_s: float | None = None):
        self._sandbox = sandbox
        self._left_cpu_s = sandbox.limits.cpu_s if cpu_s is None else cpu_s
        self._program: Program | None = None
        self._earlier: tuple[str, ...] = ()  # findings of interpreters that have ended

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def findings(self) -> tuple[str, ...]:
        """What the policy noticed, in words."""
        if self._program is None:
            return self._earlier
        return self._earlier + self._program.findings

    @property
    def is_spent(self) -> bool:
        """Whether the CPU time of the session is used up."""
        return self._left_cpu_s < LEAST_CPU_S

    def run(self, source: str) -> Output:
        """Run one piece of code.

        Raises:
            SandboxError: if no process can be had.
        """
        if self.is_spent:
            return Output(Status.TIMEOUT, error="no CPU time is left for this session")
        if self._program is None:
            limits: Limits = replace(self._sandbox.limits, cpu_s=self._left_cpu_s)
            self._program = self._sandbox.open("", NO_PROGRAM, limits)
        run = self._program.call([source])
        self._left_cpu_s -= run.cpu_s
        if run.status is Status.OK:
            return read_reply(run)
        self.close()  # whatever else it says, it has ended
        return Output(run.status, error=run.error, is_lost=True, cpu_s=run.cpu_s)

    def close(self):
        """End the interpreter."""
        if self._program is not None:
            self._program.close()
            self._earlier += self._program.findings
            self._program = None


def read_reply(run: Run) -> Output:
    """What a session says of a piece of code. The code itself may have forged it."""
    match run.value:
        case [str(status), str(output), str(error)] if status in PIECE_STATUSES:
            text = clean(output, len(output))
            return Output(Status(status), text, clean(error), cpu_s=run.cpu_s)
    return Output(Status.BAD_RESULT, error="the interpreter gave a reply of an unknown form")
