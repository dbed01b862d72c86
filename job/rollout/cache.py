"""The keys and values of all rows that are being decoded, in buffers that never move.

A captured CUDA graph reads and writes fixed addresses. So the buffers are as long as a sequence may
become. A sliding layer keeps a ring of its window: position p lies in place p % length.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

MOVED_BYTES = 64 * 2**20  # of rows that change their places, copied at once


@dataclass(frozen=True)
class LayerShape:
    kv_heads: int
    head_dim: int
    window: int | None  # positions that the layer attends to, the newest included; None: all


@dataclass(frozen=True)
class Prompts:
    """Prompts that are read at once. Several rows may have the same one.

    With `starts` they are what follows in rows that have been read or decoded before. Then each
    has a row of its own, in the same order.
    """

    ids: torch.Tensor  # (prompts, tokens), padded on the right
    lengths: torch.Tensor  # (prompts,) tokens of each
    sources: torch.Tensor  # (n,) the prompt of each row
    rows: torch.Tensor  # (n,) the rows that have them
    starts: torch.Tensor | None = None  # (prompts,) position of the first token; None: 0
    _places: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def positions(self) -> torch.Tensor:
        """(prompts, tokens)."""
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)[None]
        if self.starts is None:
            return steps.expand(len(self.ids), -1)
        return self.starts[:, None] + steps

    def places(self, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where a buffer of this length keeps what follows in rows: of each token that it keeps,
        its prompt, its step, its row and its place there. The same for all layers of the length.
        """
        if length not in self._places:
            steps = torch.arange(self.ids.shape[1], device=self.ids.device)[None]
            # The newest ones, where there are more than places
            kept = (steps < self.lengths[:, None]) & (steps >= self.lengths[:, None] - length)
            source, step = kept.nonzero(as_tuple=True)
            place = (self.starts[source] + step) % length
            self._places[length] = source, step, self.rows[source], place
        return self._places[length]


class KeyValueCache:
    """Buffers of (rows, kv_heads, length, head_dim) for each layer.

    Args:
        rows: decoded at once.
        tokens: of the longest sequence, prompt included.
    """

    def __init__(
        self, layers: Sequence[LayerShape], rows: int, tokens: int, dtype: Any, device: Any
    ):
        self.rows, self.tokens = rows, tokens
        shapes = []
        for layer in layers:
            length = tokens if layer.window is None else min(layer.window, tokens)
            shapes.append((rows, layer.kv_heads, length, layer.head_dim))
        # Layers of one shape lie together, so that few operations move a row in all of them
        self._stacks: list[torch.Tensor] = []
        stack_of: dict[tuple[int, ...], Iterator[torch.Tensor]] = {}
        for shape, count in Counter(shapes).items():
            stack = torch.zeros((2 * count, *shape), dtype=dtype, device=device)
            self._stacks.append(stack)
            stack_of[shape] = iter(stack)
        self.keys = [next(stack_of[shape]) for shape in shapes]
        self.values = [next(stack_of[shape]) for shape in shapes]

    def read(
        self,
        layer: int,
        prompts: Prompts,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        operations: Any,
        **options: Any,
    ) -> torch.Tensor:
        """Attention of a layer within prompts, whose keys and values are taken in.

        Args:
            q: (prompts, heads, tokens, head_dim).
            keys, values: (prompts, kv_heads, tokens, head_dim), padded on the right.
            operations: the module functional or kernels.
            options: of its attend_prompts.

        Returns:
            (prompts, heads, tokens, head_dim).
        """
        held = self.keys[layer], self.values[layer]
        # Before anything is written: a ring would lose what the first tokens still see
        out = operations.attend_prompts(q, keys, values, *held, prompts, **options)
        self.write(layer, keys, values, prompts)
        return out

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor, prompts: Prompts) -> None:
        """Take in what a layer made of prompts, which may follow what is there.

        Args:
            keys, values: (prompts, kv_heads, tokens, head_dim), padded on the right.
        """
        if prompts.starts is None:
            self.write_prompts(layer, keys, values, prompts)
        else:
            self.write_following(layer, keys, values, prompts)

    def write_prompts(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, prompts: Prompts
    ) -> None:
        """Take in what a layer made of prompts.

        Args:
            keys, values: (prompts, kv_heads, tokens, head_dim), padded on the right.
        """
        rows, sources = prompts.rows, prompts.sources
        tokens = keys.shape[2]
        length = self.keys[layer].shape[2]
        if tokens <= length:
            self.keys[layer][rows, :, :tokens] = keys[sources].to(self.keys[layer].dtype)
            self.values[layer][rows, :, :tokens] = values[sources].to(self.values[layer].dtype)
            return
        # The newest position that falls into each place of the ring
        last = prompts.lengths[:, None] - 1
        places = torch.arange(length, device=keys.device)
        held = last - (last - places) % length
        index = held.clamp(min=0)[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        self.keys[layer][rows] = keys.gather(2, index)[sources].to(self.keys[layer].dtype)
        self.values[layer][rows] = values.gather(2, index)[sources].to(self.values[layer].dtype)

    def write_following(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, prompts: Prompts
    ) -> None:
        """Take in what a layer made of prompts with `starts`.

        Args:
            keys, values: (prompts, kv_heads, tokens, head_dim), padded on the right.
        """
        source, step, row, place = prompts.places(self.keys[layer].shape[2])
        self.keys[layer][row, :, place] = keys[source, :, step].to(self.keys[layer].dtype)
        self.values[layer][row, :, place] = values[source, :, step].to(self.values[layer].dtype)

    def move(self, places: torch.Tensor, sources: torch.Tensor) -> None:
        """Put what the rows `sources` (n,) hold into the rows `places` (n,), all at once."""
        for stack in self._stacks:
            # Some layers at a time, so that the copy stays small
            moved = len(places) * stack[0, 0].nbytes
            for part in stack.split(max(1, MOVED_BYTES // moved)):
                part[:, places] = part[:, sources]
