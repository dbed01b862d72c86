"""Rows that are read while they are trained on, where a data set is too large to be read at once.

What can be known at the start is checked at the start, on the first rows: columns, answers and the
length of prompts. A later row that cannot be used ends no run. It is left out, the first of each
kind is told with its place, and all of them are counted.
"""

import itertools
from collections.abc import Container, Iterator, Sequence
from typing import Any

import tasks
from job.chat import Chat
from job.errors import ConfigError
from tasks import prompt_key
from tasks.data.mistakes import Mistakes, RowMistake

MEASURED_AT_ONCE = 100  # prompts


class RowStream:
    """The training rows of a task, in order, again and again.

    Args:
        options: of a task that has `stream`.
        held_out: keys of the prompts that are evaluated on (see `tasks.prompt_key`).
        columns: of each row.
        chat: measures prompts.
        longest: tokens of the longest prompt that is trained on.
    """

    def __init__(
        self,
        options: tasks.Options,
        held_out: Container[str],
        columns: Sequence[str],
        chat: Chat,
        longest: int,
    ):
        self.options, self.held_out, self.columns = options, held_out, columns
        self.chat, self.longest = chat, longest
        self.read = 0  # rows that were handed out
        self.mistakes = ToldMistakes()  # of the rows that were left out

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass over the data.

        Raises:
            ConfigError: if not a single row of it can be used.
        """
        given = 0
        rows = self._labelled()
        while batch := list(itertools.islice(rows, MEASURED_AT_ONCE)):
            lengths = self.chat.prompt_lengths(batch)
            for row, length in zip(batch, lengths, strict=True):
                if length > self.longest:
                    text = f"a prompt of {length} tokens, more than the {self.longest} there are"
                    remedy = "grpo.max_completion_length says how many a completion leaves"
                    self.mistakes.add("a later row", RowMistake(text, "too long", remedy))
                    continue
                self.read += 1
                given += 1
                yield {name: row.get(name) for name in self.columns}
        if not given:
            raise ConfigError(["task.data: no row can be trained on", *self.mistakes.lines()])

    def _labelled(self) -> Iterator[dict[str, Any]]:
        stream = tasks.load(self.options.type).stream
        for row in stream(self.options, self.mistakes):
            if prompt_key(row) not in self.held_out:
                yield tasks.labelled(row, self.options)

    def dataset(self) -> Any:
        """A datasets.IterableDataset, which TRL repeats and shuffles as it comes."""
        from datasets import IterableDataset

        return IterableDataset.from_generator(lambda: iter(self))

    def summary(self) -> str:
        """What was read, and what was left out."""
        words = f"streamed: {self.read:,} rows were read, {self.mistakes.count:,} left out"
        return "\n".join([words, *(f"  {line}" for line in self.mistakes.lines())])


class ToldMistakes(Mistakes):
    """Mistakes of which the first of each kind is told at once."""

    def first(self, place: str, mistake: ValueError) -> None:
        tasks.note_once(f"{place}: {mistake}; it is left out, and so are others like it")
