"""A rollout whose every step is one CUDA graph: no kernel is launched by Python.

The state of all rows lies in tensors on the device. A step feeds each row its newest token, draws
the next one and notes it, without asking the host. The host looks every few steps which
rows have ended. Then it hands them back, takes in waiting rows, or goes on with a smaller graph.

A prompt is read up to its last token. That one is fed in the first step, so a row's first token
comes about like all others.

The rows that are decoded lie first, then those that stay between two turns. A row that stays keeps
its keys and values; what follows in it is read behind them, like a prompt.

On a CPU, or with `capture=False`, the same steps run one by one.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from job.rollout import Finished, TokenIds
from job.rollout.cache import KeyValueCache, Prompts
from job.rollout.engine import PROMPT_TOKENS
from job.rollout.sampling import Sampling

# Steps between two looks at which rows have ended
CHECK_EVERY = 16
CHECK_TURNS_EVERY = 8  # where a tool may wait for the end of a turn


@dataclass(frozen=True)
class Piece:
    """Tokens that a row is to read before it is decoded."""

    row: int
    ids: TokenIds
    max_new_tokens: int


class Decoder(Protocol):
    """A model as a GraphRollout needs it."""

    device: torch.device
    vocabulary: int

    def make_cache(self, rows: int, tokens: int) -> KeyValueCache: ...

    def refresh(self) -> None:
        """Take in what training has changed since the last rollout."""

    def read_prompts(self, cache: KeyValueCache, prompts: Prompts) -> None:
        """Put the keys and values of prompts, or of what follows in rows, into the cache."""

    def decode(
        self, cache: KeyValueCache, tokens: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Logits (rows, vocabulary) after one more token (rows,) at its position (rows,).

        The rows are the first ones of the cache. Must not look at a value on the device.
        """


class GraphRollout:
    """Rows of any length, decoded together.

    Args:
        stop_ids: tokens that end a turn of a row.
        pad_id: any token; a row that has ended is fed it.
        rows: decoded at once, at most. Others wait.
        tokens: of the longest sequence that is expected; the cache grows when one is longer.
        max_new_tokens: after which a turn ends, unless the row has less left.
        capture: as CUDA graphs.
    """

    decodes_to_the_end = False
    is_blocked = False

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
        self._waiting: deque[Piece] = deque()
        self._following: list[Piece] = []  # of rows that stay
        self._live: list[int] = []  # the number of the row in each place
        self._staying: list[int] = []  # the same for the places behind those
        self._may_stay: set[int] = set()
        self._newest: dict[int, int] = {}  # the last token of each row that stays

    # ---- what every rollout offers

    @property
    def unfinished(self) -> int:
        return len(self._waiting) + len(self._following) + len(self._live)

    def add(
        self, prompt_ids: Sequence[int], max_new_tokens: int | None = None, stays: bool = False
    ) -> int:
        """Take in one row. With no row left, a new rollout begins, of the current weights.

        Raises:
            ValueError: for a prompt without a token, or more new tokens than the rollout is for.
        """
        if not prompt_ids:
            raise ValueError("a prompt must have a token")
        if self.unfinished == 0 and not self._staying:
            self.decoder.refresh()
        row = self._added
        self._waiting.append(Piece(row, list(prompt_ids), self._most_of(max_new_tokens)))
        self._added += 1
        if stays:
            self._may_stay.add(row)
        return row

    def extend(self, row: int, ids: Sequence[int], max_new_tokens: int) -> None:
        """Go on with a row that stays.

        Raises:
            ValueError: without a token, or for more new tokens than the rollout is for.
        """
        if not ids:
            raise ValueError("a row must be extended by a token")
        # The last token that it drew has not been fed yet
        ids = [self._newest[row], *ids]
        self._following.append(Piece(row, ids, self._most_of(max_new_tokens)))

    def drop(self, row: int) -> None:
        self._may_stay.discard(row)
        if row in self._staying:
            del self._newest[row]
            first = len(self._live)
            kept = [first + i for i, other in enumerate(self._staying) if other != row]
            self._arrange(list(range(first)), kept)

    @torch.no_grad()
    def step(self, tokens: int | None = None) -> list[Finished]:
        """Take in waiting rows, decode up to `tokens` of each, and hand back what has ended."""
        if not self.unfinished:
            return []
        if tokens is None:
            tokens = CHECK_TURNS_EVERY if self._may_stay else CHECK_EVERY
        self._resume()
        self._admit()
        self.is_blocked = not self._live
        if self.is_blocked:
            return []
        size = self._size()
        steps = min(tokens, self._most_left())
        for _ in range(steps):
            self._run(size)
        return self._collect()

    def decoded(self, row: int) -> TokenIds:
        """The tokens of a row that has not ended, as far as it goes."""
        if row not in self._live:
            return []
        place = self._live.index(row)
        return self._ids[place, : int(self._count[place])].tolist()

    def cancel(self) -> None:
        """Drop all rows."""
        self._waiting.clear()
        self._following.clear()
        self._may_stay.clear()
        self._newest.clear()
        if self._live or self._staying:
            self._arrange([], [])

    def _most_of(self, max_new_tokens: int | None) -> int:
        """The most tokens of a turn."""
        if max_new_tokens is None:
            return self.max_new_tokens
        if not 1 <= max_new_tokens <= self.max_new_tokens:
            raise ValueError(f"max_new_tokens must be 1 to {self.max_new_tokens}")
        return max_new_tokens

    # ---- rows come and go

    def _resume(self) -> None:
        """Let rows that stay go on."""
        if not self._following:
            return
        pieces, self._following = self._following, []
        first = len(self._live)
        place_of = {row: first + i for i, row in enumerate(self._staying)}
        going = [place_of[piece.row] for piece in pieces]
        staying = [place for place in place_of.values() if place not in going]
        self._arrange([*range(first), *going], staying)
        place_of = {row: place for place, row in enumerate(self._live)}
        places = [place_of[piece.row] for piece in pieces]
        for piece in pieces:
            del self._newest[piece.row]
        starts = self._positions[places]
        self._begin(places, pieces, starts)

        # Read what follows, up to its last token
        groups = [(tuple(piece.ids[:-1]), [i]) for i, piece in enumerate(pieces)]
        for part in cut(sorted(groups, key=lambda group: len(group[0])), PROMPT_TOKENS):
            chosen = [i for _, (i,) in part]
            rows = [places[i] for i in chosen]
            self._read([ids for ids, _ in part], list(range(len(part))), rows, starts[chosen])

    def _admit(self) -> None:
        """Give free places to waiting rows, in their order, and read their prompts."""
        if not self._live and not self._staying:
            self._make_room()
        rows, tokens = self._capacity
        first, taken = len(self._live), len(self._live) + len(self._staying)
        new: list[Piece] = []
        while self._waiting and taken + len(new) < rows:
            piece = self._waiting[0]
            if len(piece.ids) + piece.max_new_tokens > tokens:
                break  # it waits until the buffers are free to grow
            new.append(self._waiting.popleft())
        if not new:
            return
        # They take the places behind those that stay, and change places with them
        staying = list(range(first, taken))
        self._staying += [piece.row for piece in new]
        self._arrange([*range(first), *range(taken, taken + len(new))], staying)
        place_of = {row: place for place, row in enumerate(self._live)}
        places = [place_of[piece.row] for piece in new]
        self._begin(places, new, torch.zeros(len(new), dtype=torch.int64))

        # Read their prompts, up to the last token. Equal ones are read once.
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, piece in zip(places, new, strict=True):
            groups.setdefault(tuple(piece.ids[:-1]), []).append(place)
        groups.pop((), None)  # a prompt of one token
        # Prompts of like length together, so that little is padding
        ordered = sorted(groups.items(), key=lambda group: len(group[0]))
        for part in cut(ordered, PROMPT_TOKENS):
            sources, own_rows = [], []
            for source, (_, own) in enumerate(part):
                sources += [source] * len(own)
                own_rows += own
            self._read([ids for ids, _ in part], sources, own_rows, None)

    def _make_room(self) -> None:
        """Allocate the buffers, or longer ones if a prompt needs them."""
        rows, tokens = self._capacity
        needed = tokens
        for piece in self._waiting:
            needed = max(needed, len(piece.ids) + piece.max_new_tokens)
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
        self._limit = torch.ones(rows, dtype=torch.int64, device=device)
        # One column more than needed: rows that have ended write there.
        shape = (rows, self.max_new_tokens + 1)
        self._ids = torch.zeros(shape, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(shape, dtype=torch.float32, device=device)
        self._seen = None
        if self.sampling.repetition_penalty != 1:
            shape = (rows, self.decoder.vocabulary)
            self._seen = torch.zeros(shape, dtype=torch.bool, device=device)

    def _begin(self, places: list[int], pieces: list[Piece], starts: torch.Tensor) -> None:
        """Make these places ready to decode. Their last tokens are fed first.

        Args:
            starts: (places,) position of the first token of each piece.
        """
        device = self.decoder.device
        lengths = torch.tensor([len(piece.ids) for piece in pieces], device=device)
        self._tokens[places] = torch.tensor([piece.ids[-1] for piece in pieces], device=device)
        self._positions[places] = starts.to(device) + lengths - 1
        self._done[places] = False
        self._count[places] = 0
        limits = [piece.max_new_tokens for piece in pieces]
        self._limit[places] = torch.tensor(limits, device=device)
        if self._seen is None:
            return
        for place, piece, start in zip(places, pieces, starts.tolist(), strict=True):
            if start == 0:
                self._seen[place] = False
            self._seen[place, torch.tensor(piece.ids, device=device)] = True

    def _read(
        self,
        texts: list[tuple[int, ...]],
        sources: list[int],
        rows: list[int],
        starts: torch.Tensor | None,
    ) -> None:
        """Read tokens into the cache.

        Args:
            sources, rows, starts: as in Prompts.
        """
        device = self.decoder.device
        longest = max(map(len, texts))
        padded = [list(ids) + [self.pad_id] * (longest - len(ids)) for ids in texts]
        prompts = Prompts(
            ids=torch.tensor(padded, device=device),
            lengths=torch.tensor([len(ids) for ids in texts], device=device),
            sources=torch.tensor(sources, device=device),
            rows=torch.tensor(rows, device=device),
            starts=starts,
        )
        self.decoder.read_prompts(self._cache, prompts)

    def _size(self) -> int:
        """Rows of the smallest graph that holds all that are live."""
        size = 1
        while size < len(self._live):
            size *= 2
        return min(size, self._capacity[0])

    def _most_left(self) -> int:
        """Steps after which the last row has reached its limit."""
        live = len(self._live)
        return max(1, int((self._limit[:live] - self._count[:live]).max()))

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
        finished, staying = [], []
        for place, own_ids, own_logprobs in zip(ended, ids, logprobs, strict=True):
            count, row = counts[place], self._live[place]
            finished.append(Finished(row, own_ids[:count], tuple(own_logprobs[:count])))
            if row in self._may_stay:
                staying.append(place)
                self._newest[row] = own_ids[count - 1]
        going = [place for place in range(live) if not done[place]]
        before = range(live, live + len(self._staying))
        self._arrange(going, [*before, *staying])
        return finished

    def _arrange(self, live: list[int], staying: list[int]) -> None:
        """Put the rows of these places in front: those to be decoded, then those that stay. All
        other places are free."""
        rows = self._live + self._staying
        first, taken = len(live), len(live) + len(staying)
        order = fill(live, range(first)) + fill(staying, range(first, taken))
        moved = [place for place, source in enumerate(order) if place != source]
        if moved:
            device = self.decoder.device
            places = torch.tensor(moved, device=device)
            sources = torch.tensor([order[place] for place in moved], device=device)
            self._cache.move(places, sources)
            for state in self._state():
                state[places] = state[sources]
        self._live = [rows[source] for source in order[:first]]
        self._staying = [rows[source] for source in order[first:]]
        self._done[first:] = True
        self._tokens[taken:] = self.pad_id
        self._positions[taken:] = 0
        self._count[taken:] = 0

    def _state(self) -> list[torch.Tensor]:
        state = [self._tokens, self._positions, self._done, self._count, self._limit]
        state += [self._ids, self._logprobs]
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
        stopped = torch.isin(drawn, self.stop_ids) | (count >= self._limit[:size])
        done |= stopped
        # The position of a row that ends here is that of a token which is never fed. Its place
        # may lie behind the buffers.
        positions.clamp_(max=self._capacity[1] - 1)


def fill(sources: Sequence[int], places: range) -> list[int]:
    """Which of the sources each place takes its row from. As few as possible move."""
    stays = set(sources).intersection(places)
    others = iter([source for source in sources if source not in stays])
    return [place if place in stays else next(others) for place in places]


def cut(
    groups: Sequence[tuple[tuple[int, ...], list[int]]], tokens: int
) -> list[list[tuple[tuple[int, ...], list[int]]]]:
    """Cut prompts, sorted by length, into pieces of up to `tokens` with their padding."""
    pieces: list[list[tuple[tuple[int, ...], list[int]]]] = []
    for group in groups:
        if pieces and len(group[0]) * (len(pieces[-1]) + 1) <= tokens:
            pieces[-1].append(group)
        else:
            pieces.append([group])
    return pieces
