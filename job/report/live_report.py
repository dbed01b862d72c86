"""Keeps the report of a run up to date: while it lives, when it ends and when it fails."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job.distributed import is_first_process
from job.environment import begin_session, end_session, outcome
from job.errors import one_line

EVERY_S = 60.0  # a report is refreshed no more often
MAX_SHARE = 0.02  # of the run's time that refreshing may take


class LiveReport:
    """The report of a run, and environment.json, which says how the run ended.

        with LiveReport(folder) as report:
            report.begin()
            ...                        # report.refresh_when_due() after each logged step
            report.exit_code = 0

    When the block is left, also by an error, it notes how the run ended and writes the report once
    more. What cannot be written is told on standard error. It never ends the run.

    Args:
        folder: the output folder of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.exit_code: int | None = None
        self._begun = False
        self._due = 0.0
        self._warned: set[str] = set()

    def begin(self) -> None:
        """Note the start of the run. Before this is called, nothing is written."""
        if not is_first_process():
            return
        self._begun = True
        self._due = time.monotonic() + EVERY_S
        with self._warning("environment.json is not written"):
            begin_session(self.folder / "environment.json")

    def refresh_when_due(self) -> None:
        """Write the report, if the last one is old enough."""
        if self._begun and time.monotonic() >= self._due:
            self.refresh()

    def refresh(self) -> None:
        """Write the report."""
        began = time.monotonic()
        with self._warning("there is no report"):
            # Imported late, because matplotlib takes a while and may be missing
            from job.report.reporting import write_report

            write_report([self.folder], self.folder)
        ended = time.monotonic()
        self._due = ended + max(EVERY_S, (ended - began) / MAX_SHARE)

    def __enter__(self) -> "LiveReport":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        if not self._begun:
            return
        with self._warning("environment.json does not say how the run ended"):
            end_session(self.folder / "environment.json", outcome(self.exit_code, error))
        self.refresh()

    @contextlib.contextmanager
    def _warning(self, what: str) -> Iterator[None]:
        """Turn any error into a warning, each kind of which is printed once a run."""
        try:
            yield
        except Exception as error:  # whatever it is, training matters more
            if what not in self._warned:
                self._warned.add(what)
                print(f"warning: {what}: {one_line(error)}", file=sys.stderr, flush=True)
