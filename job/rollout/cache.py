"""The keys and values of all rows that are being decoded, in buffers that never move.

A captured CUDA graph reads and writes fixed addresses. So the buffers are as long as a sequence may
become. A sliding layer keeps a ring of its window: position p lies in place p % length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


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

    @property
    def positions(self) -> torch.Tensor:
        """(prompts, tokens)."""
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)[None]
        if self.starts is None:
            return steps.expand(len(self.ids), -1)
        return self.starts[:, None] + steps


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
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        for layer in layers:
            length = tokens if layer.window is None else min(layer.window, tokens)
            shape = (rows, layer.kv_heads, length, layer.head_dim)
            self.keys.append(torch.zeros(shape, dtype=dtype, device=device))
            self.values.append(torch.zeros(shape, dtype=dtype, device=device))

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
        length = self.keys[layer].shape[2]
        steps = torch.arange(keys.shape[2], device=keys.device)[None]
        # The newest ones, where there are more than places
        kept = (steps < prompts.lengths[:, None]) & (steps >= prompts.lengths[:, None] - length)
        source, step = kept.nonzero(as_tuple=True)
        row = prompts.rows[source]
        place = (prompts.starts[source] + step) % length
        self.keys[layer][row, :, place] = keys[source, :, step].to(self.keys[layer].dtype)
        self.values[layer][row, :, place] = values[source, :, step].to(self.values[layer].dtype)

    def move(self, places: torch.Tensor, sources: torch.Tensor) -> None:
        """Put what the rows `sources` (n,) hold into the rows `places` (n,), all at once."""
        for buffers in (self.keys, self.values):
            for buffer in buffers:
                buffer[places] = buffer[sources]
