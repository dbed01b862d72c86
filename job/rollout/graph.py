"""A rollout whose every step is one CUDA graph: no kernel is launched by Python.

The state of all rows lies in tensors on the device. A step feeds each row its newest token, draws
the next one and notes it, without asking the host. The host looks every CHECK_EVERY steps which
rows have ended. Then it hands them back, takes in waiting rows, or goes on with a smaller graph.

A prompt is read up to its last token. That one is fed in the first step, so a row's first token
comes about like all others.

On a CPU, or with `capture=False`, the same steps run one by one.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from job.rollout import Finished, TokenIds
from job.rollout.cache import KeyValueCache, Prompts
from job.rollout.engine import PROMPT_TOKENS
from job.rollout.sampling import Sampling

CHECK_EVERY = 16  # steps between two looks at which rows have ended


class Decoder(Protocol):
    """A model as a GraphRollout needs it."""

    device: torch.device
    vocabulary: int

    def make_cache(self, rows: int, tokens: int) -> KeyValueCache: ...

    def refresh(self) -> None:
        """Take in what training has changed since the last rollout."""

    def read_prompts(self, cache: KeyValueCache, prompts: Prompts) -> None:
        """Put the keys and values of prompts into the cache."""

    def decode(
        self, cache: KeyValueCache, tokens: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Logits (rows, vocabulary) after one more token (rows,) at its position (rows,).

        The rows are the first ones of the cache. Must not look at a value on the device.
        """


class GraphRollout:
    """Rows of any length, decoded together.

    Args:
        stop_ids: tokens that end a row.
        pad_id: any token; a row that has ended is fed it.
        rows: decoded at once, at most. Others wait.
        tokens: of the longest sequence that is expected; the cache grows when one is longer.
        max_new_tokens: after which a row ends.
        capture: as CUDA graphs.
    """

    def __init__(
        self,
        decoder: Decoder,
        sampling: Sampling,
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        rows: int,
        tokens: int,
        max_new_tokens: int,
        capture: bool,
    ):
        self.decoder, self.sampling, self.capture = decoder, sampling, capture
        self.pad_id, self.max_new_tokens = pad_id, max_new_tokens
        self.stop_ids = torch.tensor(sorted(stop_ids), device=decoder.device)
        self._capacity = (rows, tokens)
        self._cache: KeyValueCache | None = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._added = 0
        self._waiting: deque[tuple[int, TokenIds]] = deque()
        self._live: list[int] = []  # the number of the row in each place

    # ---- what every rollout offers

    @property
    def unfinished(self) -> int:
        return len(self._waiting) + len(self._live)

    def add(self, prompt_ids: Sequence[int]) -> int:
        """Take in one row. With none unfinished, a new rollout begins, of the current weights.

        Raises:
            ValueError: for a prompt without a token.
        """
        if not prompt_ids:
            raise ValueError("a prompt must have a token")
        if self.unfinished == 0:
            self.decoder.refresh()
        row = self._added
        self._waiting.append((row, list(prompt_ids)))
        self._added += 1
        return row

    @torch.no_grad()
    def step(self, tokens: int = CHECK_EVERY) -> list[Finished]:
        """Take in waiting rows, decode up to `tokens` of each, and hand back what has ended."""
        if not self.unfinished:
            return []
        self._admit()
        size = self._size()
        steps = min(tokens, self._most_left())
        for _ in range(steps):
            self._run(size)
        return self._collect()

    def cancel(self) -> None:
        """Drop all rows that are unfinished."""
        self._waiting.clear()
        if self._live:
            self._keep([])

    # ---- rows come and go

    def _admit(self) -> None:
        """Give free places to waiting rows, in their order, and read their prompts."""
        if not self._live:
            self._make_room()
        rows, tokens = self._capacity
        first = len(self._live)
        prompts = []
        while self._waiting and len(self._live) < rows:
            row, ids = self._waiting[0]
            if len(ids) + self.max_new_tokens > tokens:
                break  # it waits until the buffers are free to grow
            self._waiting.popleft()
            self._live.append(row)
            prompts.append(ids)
        if prompts:
            self._read(range(first, len(self._live)), prompts)

    def _make_room(self) -> None:
        """Allocate the buffers, or longer ones if a prompt needs them."""
        rows, tokens = self._capacity
        longest = max(len(ids) for _, ids in self._waiting)
        needed = max(tokens, longest + self.max_new_tokens)
        if self._cache is None or needed > tokens:
            self.release()
            self._capacity = (rows, needed)
            self._allocate()

    def release(self) -> None:
        """Give back all memory. The next step takes it again."""
        self._graphs.clear()
        self._pool = None
        self._cache = None

    def _allocate(self) -> None:
        rows, tokens = self._capacity
        device = self.decoder.device
        self._cache = self.decoder.make_cache(rows, tokens)
        self._tokens = torch.full((rows,), self.pad_id, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._done = torch.ones(rows, dtype=torch.bool, device=device)
        self._count = torch.zeros(rows, dtype=torch.int64, device=device)
        # One column more than needed: rows that have ended write there.
        shape = (rows, self.max_new_tokens + 1)
        self._ids = torch.zeros(shape, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(shape, dtype=torch.float32, device=device)
        self._seen = None
        if self.sampling.repetition_penalty != 1:
            shape = (rows, self.decoder.vocabulary)
            self._seen = torch.zeros(shape, dtype=torch.bool, device=device)

    def _read(self, places: range, prompts: list[TokenIds]) -> None:
        """Read prompts into these places. Equal ones are read once."""
        device = self.decoder.device
        new = slice(places.start, places.stop)
        self._tokens[new] = torch.tensor([ids[-1] for ids in prompts], device=device)
        self._positions[new] = torch.tensor([len(ids) - 1 for ids in prompts], device=device)
        self._done[new] = False
        self._count[new] = 0
        if self._seen is not None:
            self._seen[new] = False
            for place, ids in zip(places, prompts, strict=True):
                self._seen[place, torch.tensor(ids, device=device)] = True

        groups: dict[tuple[int, ...], list[int]] = {}
        for place, ids in zip(places, prompts, strict=True):
            groups.setdefault(tuple(ids[:-1]), []).append(place)
        groups.pop((), None)  # a prompt of one token
        # Prompts of like length together, so that little is padding
        ordered = sorted(groups.items(), key=lambda group: len(group[0]))
        for piece in pieces(ordered, PROMPT_TOKENS):
            longest = max(len(ids) for ids, _ in piece)
            padded = [list(ids) + [self.pad_id] * (longest - len(ids)) for ids, _ in piece]
            sources, rows = [], []
            for source, (_, own) in enumerate(piece):
                sources += [source] * len(own)
                rows += own
            read = Prompts(
                ids=torch.tensor(padded, device=device),
                lengths=torch.tensor([len(ids) for ids, _ in piece], device=device),
                sources=torch.tensor(sources, device=device),
                rows=torch.tensor(rows, device=device),
            )
            self.decoder.read_prompts(self._cache, read)

    def _size(self) -> int:
        """Rows of the smallest graph that holds all that are live."""
        size = 1
        while size < len(self._live):
            size *= 2
        return min(size, self._capacity[0])

    def _most_left(self) -> int:
        """Steps after which the first row to reach its limit is there."""
        counts = self._count[: len(self._live)]
        return max(1, self.max_new_tokens - int(counts.min()))

    def _collect(self) -> list[Finished]:
        """Hand back rows that have ended, and move the others together."""
        live = len(self._live)
        done = self._done[:live].tolist()
        if not any(done):
            return []
        counts = self._count[:live].tolist()
        ended = [place for place in range(live) if done[place]]
        longest = max(counts[place] for place in ended)
        ids = self._ids[ended, :longest].tolist()
        logprobs = self._logprobs[ended, :longest].tolist()
        finished = []
        for place, own_ids, own_logprobs in zip(ended, ids, logprobs, strict=True):
            count = counts[place]
            finished.append(
                Finished(self._live[place], own_ids[:count], tuple(own_logprobs[:count]))
            )
        self._keep([place for place in range(live) if not done[place]])
        return finished

    def _keep(self, places: list[int]) -> None:
        """Move these places to the front. The others are free."""
        moved = len(places)
        if moved and places != list(range(moved)):
            rows = torch.tensor(places, device=self.decoder.device)
            self._cache.move(rows)
            for state in self._state():
                state[:moved] = state[rows]
        self._live = [self._live[place] for place in places]
        self._done[moved:] = True
        self._tokens[moved:] = self.pad_id
        self._positions[moved:] = 0
        self._count[moved:] = 0

    def _state(self) -> list[torch.Tensor]:
        state = [self._tokens, self._positions, self._done, self._count, self._ids]
        state.append(self._logprobs)
        if self._seen is not None:
            state.append(self._seen)
        return state

    # ---- one step

    def _run(self, size: int) -> None:
        """One step of the first `size` rows."""
        if not self.capture:
            self._decode(size)
            return
        if size in self._graphs:
            self._graphs[size].replay()
            return
        # The first step of a size runs as it is, on a stream of its own, as a capture needs.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._decode(size)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._decode(size)
        self._pool = self._pool or graph.pool()
        self._graphs[size] = graph

    def _decode(self, size: int) -> None:
        """Feed the newest tokens, draw the next ones, and note them. Never asks the host."""
        tokens, positions = self._tokens[:size], self._positions[:size]
        done, count = self._done[:size], self._count[:size]
        logits = self.decoder.decode(self._cache, tokens, positions)
        seen = None if self._seen is None else self._seen[:size]
        drawn, logprobs = self.sampling.draw(logits, seen)
        place = torch.where(done, self.max_new_tokens, count)[:, None]
        self._ids[:size].scatter_(1, place, drawn[:, None])
        self._logprobs[:size].scatter_(1, place, logprobs[:, None])
        if seen is not None:
            seen.scatter_(1, drawn[:, None], True)
        running = ~done
        count += running
        positions += running
        tokens.copy_(torch.where(done, self.pad_id, drawn))
        stopped = torch.isin(drawn, self.stop_ids) | (count >= self.max_new_tokens)
        done |= stopped
        # The position of a row that ends here is that of a token which is never fed. Its place
        # may lie behind the buffers.
        positions.clamp_(max=self._capacity[1] - 1)


def pieces(
    groups: Sequence[tuple[tuple[int, ...], list[int]]], tokens: int
) -> list[list[tuple[tuple[int, ...], list[int]]]]:
    """Cut prompts, sorted by length, into pieces of up to `tokens` with their padding."""
    cut: list[list[tuple[tuple[int, ...], list[int]]]] = []
    for group in groups:
        if cut and len(group[0]) * (len(cut[-1]) + 1) <= tokens:
            cut[-1].append(group)
        else:
            cut.append([group])
    return cut
