"""Decoding completions: token ids in, token ids out. Knows no text, no task and no reward.

A rollout can be paused. Rows are added, steps are taken, and finished rows come back. So a caller
may grade what is ready while other rows are decoded. `generate` loops over a rollout until nothing
is left.

A row may take several turns. One that `stays` keeps its place, and its keys and values, when its
turn has ended. Then it is extended by tokens that nobody sampled and goes on, or it is dropped.

There are two kinds. `BatchRollout`, in this file, hands all waiting rows to one call of a library,
which decodes them to their end. `GraphRollout` in graph.py decodes in the trainer's own weights,
step by step, each step a CUDA graph. It needs a decoder: gpt_oss.py reads packed experts,
any_model.py all other models. engine.py chooses between the kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

TokenIds = list[int]


@dataclass(frozen=True)
class Finished:
    """A row that has come to its end."""

    row: int  # what `add` returned for it
    completion_ids: TokenIds  # with the stop token, if it ended with one; without padding
    # of each token, at the temperature, as the sampler saw it; None if it does not say
    logprobs: Sequence[float] | None = None


class Rollout(Protocol):
    """What every way of decoding offers."""

    # Whether a step decodes all waiting rows to their end: then it pays to wait for more of them
    decodes_to_the_end: bool
    # Whether the last step could decode no row: those that wait have no place while others stay
    is_blocked: bool

    @property
    def unfinished(self) -> int:
        """Rows that were added or extended and have not come back yet."""

    def add(
        self, prompt_ids: Sequence[int], max_new_tokens: int | None = None, stays: bool = False
    ) -> int:
        """Take in one row. Returns its number, which counts up from 0.

        Args:
            max_new_tokens: of this row; None: what the rollout has for all.
            stays: it may be extended when it has come back.
        """

    def extend(self, row: int, ids: Sequence[int], max_new_tokens: int) -> None:
        """Go on with a row that stays, after these tokens.

        Args:
            ids: one at least.
            max_new_tokens: of the turn that begins.
        """

    def drop(self, row: int) -> None:
        """Forget a row that stays."""

    def step(self) -> list[Finished]:
        """Decode for a while. Returns the rows that ended, which may be none."""

    def cancel(self) -> None:
        """Drop all rows."""


@dataclass(frozen=True)
class Base:
    """The frozen base of a model, which answers what environments ask."""

    rollout: Callable[[int], Rollout]  # one for answers of up to that many tokens
    max_seq_length: int  # tokens of a prompt with its answer


def decode_all(rollout: Rollout, prompts: Sequence[Sequence[int]]) -> list[Finished]:
    """Each prompt's row at its end, in order.

    Args:
        rollout: with no row in it.
    """
    rows = [rollout.add(prompt_ids) for prompt_ids in prompts]
    found: dict[int, Finished] = {}
    while rollout.unfinished:
        for finished in rollout.step():
            found[finished.row] = finished
    return [found[row] for row in rows]


def generate(rollout: Rollout, prompts: Sequence[Sequence[int]]) -> list[TokenIds]:
    """One completion for each prompt, in order.

    Args:
        rollout: with no row in it.
    """
    return [finished.completion_ids for finished in decode_all(rollout, prompts)]


class BatchRollout:
    """All waiting rows in one call of a library, whose step is the whole of their decoding.

    A row that is extended is read again from its start, because a library keeps nothing.

    Args:
        complete: the completions of a list of prompts, in order.
    """

    decodes_to_the_end = True
    is_blocked = False

    def __init__(self, complete: Callable[[list[TokenIds]], list[TokenIds]]):
        self._complete = complete
        self._waiting: dict[int, int | None] = {}  # row -> the most tokens of its turn
        self._sequences: dict[int, TokenIds] = {}  # of rows that wait or stay
        self._staying: set[int] = set()
        self._added = 0

    @property
    def unfinished(self) -> int:
        return len(self._waiting)

    def add(
        self, prompt_ids: Sequence[int], max_new_tokens: int | None = None, stays: bool = False
    ) -> int:
        row = self._added
        self._added += 1
        self._waiting[row] = max_new_tokens
        self._sequences[row] = list(prompt_ids)
        if stays:
            self._staying.add(row)
        return row

    def extend(self, row: int, ids: Sequence[int], max_new_tokens: int) -> None:
        self._sequences[row] += ids
        self._waiting[row] = max_new_tokens

    def drop(self, row: int) -> None:
        self._staying.discard(row)
        self._sequences.pop(row, None)

    def cancel(self) -> None:
        self._waiting.clear()
        self._sequences.clear()
        self._staying.clear()

    def step(self) -> list[Finished]:
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, {}
        completions = self._complete([list(self._sequences[row]) for row in waiting])
        finished = []
        for (row, most), completion_ids in zip(waiting.items(), completions, strict=True):
            ids = list(completion_ids)[:most]
            finished.append(Finished(row, ids))
            if row in self._staying:
                self._sequences[row] += ids
            else:
                del self._sequences[row]
        return finished


def complete_with_transformers(
    model: Any, tokenizer: Any, **sampling: Any
) -> Callable[..., list[TokenIds]]:
    """What BatchRollout calls to decode with `model.generate`. Prompts are padded on the left.

    Args:
        sampling: as in GenerationConfig: max_new_tokens, do_sample, temperature, top_k, top_p, ...
    """
    import torch

    pad = tokenizer.pad_token_id
    stop_ids = stop_ids_of(model, tokenizer)

    def complete(prompts: list[TokenIds]) -> list[TokenIds]:
        longest = max(map(len, prompts))
        padded, mask = [], []
        for ids in prompts:
            padding = longest - len(ids)
            padded.append([pad] * padding + ids)
            mask.append([0] * padding + [1] * len(ids))
        with torch.no_grad():
            decoded = model.generate(
                input_ids=torch.tensor(padded).to(model.device),
                attention_mask=torch.tensor(mask).to(model.device),
                pad_token_id=pad,
                **sampling,
            )
        return [until_stop(row, stop_ids) for row in decoded[:, longest:].tolist()]

    return complete


def stop_ids_of(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion of this model."""
    stop = model.generation_config.eos_token_id
    if stop is None:  # the model does not say how its text ends
        stop = tokenizer.eos_token_id
    return set(stop) if isinstance(stop, list) else {stop}


def until_stop(ids: TokenIds, stop_ids: set[int]) -> TokenIds:
    """`ids` up to and with the first stop token. Whatever follows it is padding."""
    for i, token in enumerate(ids):
        if token in stop_ids:
            return ids[: i + 1]
    return ids
