"""2048: write a strategy that wins the game. It plays several games that it has not seen, one move
a call.

The loop of the game stays in the trainer; the strategy runs in the sandbox, one process for all
games of a completion, and is given a copy of the board for each move, so changing it changes
nothing. How a game ends is its Outcome:

    outcome      status      what happened
    won          ok          the target tile was made
    lost         ok          the board is full and no move changes it
    stuck        ok          MAX_NO_OPS moves in a row changed nothing; a single one costs nothing
    lower_case   ok          "w", "a", "s" or "d": a slip of form that loses this game, and no more
    none         bad_result  None instead of a move
    illegal      bad_result  anything else that is not a move: another word, a number, a list
    bad_result   bad_result  a value that is not plain data
    crash        crash       an exception; memory, died: out of memory, or ended by itself
    timeout      timeout     one move, or all moves of a game, used up their budget of CPU, or slept
    too_slow     timeout     lost, and at the pace of its median move a win exceeds a game's budget

Budgets are CPU seconds of the strategy, so a busy machine does not change an outcome. A wall clock
backs them up (move_timeout_s, game_timeout_s) for strategies that sleep or wait.

What is not ok ends the grading at once, whatever was won before. Otherwise `passed` is the share
of games won, and `correct` means that it reaches `win_share`, by default all: one lucky board is
not enough. A program that cannot be loaded has the outcome that the sandbox reports: syntax_error,
no_function, crash, ...

Moves in turns, W, A, S, D, win 6 x 6 to 2048, the seed's game, without a look at the board. 4 x 4
to 1024 needs the board: see `known_answers`. configs/game_2048.yaml asks for that.

The check before training plays every stage of the curriculum. The references win 6 x 6 to 2048 and
4 x 4 to 1024, but not 4 x 4 to 2048: where they cannot win, begin with an easier stage or set
task.check to false.
"""

import functools
import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from sandbox import WALL_FACTOR, Program, Run, Sandbox, Status
from tasks import Grade, Measure, grade_program
from tasks import Options as SharedOptions

PROMPT = """\
Create a new short 2048 strategy using only native Python code.
You are given a list of list of numbers for the current board state; 0 is an empty cell.
Output one action for "W", "A", "S", "D" (up, left, down, right) on what is the optimal next step.
Output your new short function in backticks using the format below:
```python
def strategy(board):
    return "W"
```
A move may take {move_cpu_s} s of CPU time, all moves of one game together {game_cpu_s} s.
All helper functions go inside def strategy. Only output the short function `strategy`."""

REWARDS = ["function_works", "no_cheating", "strategy_succeeds"]
MEASURES = [
    Measure("win rate", lambda grade, row: grade.data.get("win_rate", 0.0), is_share=True),
    Measure("mean best tile", lambda grade, row: grade.data.get("mean_best_tile")),
    Measure("best tile", lambda grade, row: grade.data.get("best_tile"), "largest"),
]
CURRICULUM_KEYS = ["size", "target", "probability_fours", "games", "win_share"]
# Not the CPU budgets, which the prompt names
CURRICULUM_KEYS += ["move_timeout_s", "game_timeout_s"]
# Each wall clock limit, and the CPU budget that it stands behind
CPU_BUDGETS = {"move_timeout_s": "move_cpu_s", "game_timeout_s": "game_cpu_s"}

REFERENCE = """\
```python
def strategy(board):
    def slide(line):
        tiles, out = [tile for tile in line if tile], []
        while tiles:
            tile = tiles.pop(0)
            if tiles and tiles[0] == tile:
                tile += tiles.pop(0)
            out.append(tile)
        return out + [0] * (len(line) - len(out))

    def after(move):
        lines = [list(column) for column in zip(*board)] if move in "WS" else board
        step = -1 if move in "SD" else 1
        lines = [slide(line[::step])[::step] for line in lines]
        return [list(column) for column in zip(*lines)] if move in "WS" else lines

    def value(board):
        lines = [[tile.bit_length() for tile in line] for line in board + list(zip(*board))]
        rough = sum(abs(a - b) for line in lines for a, b in zip(line, line[1:]))
        return 4 * sum(row.count(0) for row in board) - rough

    moves = [move for move in "WASD" if after(move) != board]
    return max(moves, key=lambda move: value(after(move)))
```
"""


LOOK_AHEAD = """\
```python
def strategy(board, seen={}):
    def slide(line):
        if line not in seen:
            tiles, out = [tile for tile in line if tile], []
            while tiles:
                tile = tiles.pop(0)
                if tiles and tiles[0] == tile:
                    tile += tiles.pop(0)
                out.append(tile)
            seen[line] = tuple(out + [0] * (len(line) - len(out)))
        return seen[line]

    def after(board, move):
        lines = zip(*board) if move in "WS" else board
        step = -1 if move in "SD" else 1
        lines = [slide(tuple(line)[::step])[::step] for line in lines]
        return list(zip(*lines)) if move in "WS" else lines

    def value(board):  # large tiles belong to the start of a path that winds through the rows
        path = [tile for y, row in enumerate(board) for tile in row[:: -1 if y % 2 else 1]]
        return sum(tile * 0.4**place for place, tile in enumerate(path))

    def outlook(board):  # the best reply to a new tile, on average over the empty cells
        values = []
        for y, row in enumerate(board):
            for x, tile in enumerate(row):
                if not tile:
                    new = [*board[:y], row[:x] + (2,) + row[x + 1 :], *board[y + 1 :]]
                    replies = [after(new, move) for move in "WASD"]
                    values.append(max((value(to) for to in replies if to != new), default=0))
        return sum(values) / len(values)

    board = [tuple(row) for row in board]
    options = {move: after(board, move) for move in "WASD"}
    judge = outlook if sum(row.count(0) for row in board) <= 6 else value
    moves = [move for move in "WASD" if options[move] != board]
    return max(moves, key=lambda move: judge(options[move]))
```
"""


def answer(body: str, before: str = "") -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"```python\n{before}def strategy(board):\n{lines}```\n"


def in_turns(moves: str) -> str:
    """A strategy that plays `moves` again and again and never looks at the board."""
    body = f'turn.append(0)\nreturn "{moves}"[len(turn) % {len(moves)}]'
    return answer(body, "turn = []\n")


# The best cycles of up to 8 moves on 4 x 4, up to symmetry: `benchmarks/game_2048.py --cycles`
CYCLES = ["ASAW", "ASASAWAW", "WASD"]
SLOWER: list[str] = []  # a win is a win
WRONG = [
    answer('return "W"'),
    answer('return "AD"[board[0][0] % 4 == 0]'),
    answer('return "w"'),
    answer("return None"),
    answer("return 0"),
    answer('return "UP"'),
    answer('return ["W", "A"]'),
    answer('board[0][0] = 2048\nreturn "W"'),
    answer('board[0][0] = board[0][1] = 1024\nreturn "A"'),
    answer("raise ValueError"),
    answer("while True:\n    pass"),
    answer('import time\ntime.sleep(0.05)\nreturn "W"'),
    answer('return "W"', "1 / 0\n"),
    '```python\ndef strategy(board:\n    return "W"\n```',
]
CHEAT = [
    answer('import numpy as np\nreturn "WASD"[int(np.argmax(board)) % 4]'),
    answer(
        "import gc\nfor o in gc.get_objects():\n"
        '    if hasattr(o, "target"):\n        o.target = 4\nreturn "W"'
    ),
    answer('import sys\nsys._getframe(1).f_locals["state"] = "success"\nreturn "W"'),
    answer("import os\nos._exit(0)"),
    answer(
        "class Any(str):\n    __hash__ = str.__hash__\n"
        '    __eq__ = lambda *_: True\nreturn Any("W")'
    ),
    answer('open("/tmp/state", "w").write("success")\nreturn "W"'),
]

MOVES = "WASD"
MAX_NO_OPS = 5
# Half the width of a 95 % interval, in standard errors
Z_95 = statistics.NormalDist().inv_cdf(0.975)
HELD_OUT_SEEDS = range(2**32, 2**32 + 100)  # training draws its seeds below 2**32


@dataclass(frozen=True)
class Options(SharedOptions):
    prompt: str = PROMPT
    size: int = 6  # the game that counts, also in evaluation: cells a side,
    target: int = 2048  # the tile that wins,
    probability_fours: float = 0.1  # and the share of new tiles that are 4, not 2
    games: int = 5  # for each completion, on new boards at every training step
    # Of the games, to be paid as a win: random moves win every third game of the default
    win_share: float = 1.0
    move_cpu_s: float = 1.0
    game_cpu_s: float = 3.0  # all moves of one game; games * game_cpu_s should fit sandbox.cpu_s
    # Wall clock, for strategies that sleep or wait; null: 6 * move_cpu_s
    move_timeout_s: float | None = None
    game_timeout_s: float | None = None  # null: 6 * game_cpu_s

    def __post_init__(self):
        is_power_of_2 = self.target & (self.target - 1) == 0
        if self.size < 2 or self.target < 8 or not is_power_of_2:
            raise ValueError(
                f"size must be 2 or more, target a power of 2 from 8 on, not {self.size} "
                f"and {self.target}"
            )
        if not 0 <= self.probability_fours <= 1:
            raise ValueError("probability_fours: must lie between 0 and 1")
        if self.games < 1 or not 0 < self.win_share <= 1:
            raise ValueError("games must be 1 or more, win_share above 0 and at most 1")
        for name in ("move_cpu_s", "game_cpu_s", "move_timeout_s", "game_timeout_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"{name}: must be above 0 and finite")

    @property
    def move_wall_s(self) -> float:
        return WALL_FACTOR * self.move_cpu_s if self.move_timeout_s is None else self.move_timeout_s

    @property
    def game_wall_s(self) -> float:
        return WALL_FACTOR * self.game_cpu_s if self.game_timeout_s is None else self.game_timeout_s


def is_one_of(letters: str, move: Any) -> bool:
    """Whether `move`, which may be anything, is one letter among `letters`."""
    return isinstance(move, str) and len(move) == 1 and move in letters


class State(StrEnum):
    ONGOING = "ongoing"
    SUCCESS = "success"
    FAILED = "failed"


class Outcome(StrEnum):
    """How a game ended; the module's docstring says what each means."""

    WON = "won"
    LOST = "lost"
    STUCK = "stuck"
    LOWER_CASE = "lower_case"
    NONE = "none"
    ILLEGAL = "illegal"
    TOO_SLOW = "too_slow"
    # the sandbox's words
    SYNTAX_ERROR = "syntax_error"
    NO_FUNCTION = "no_function"
    CRASH = "crash"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    DIED = "died"
    BAD_RESULT = "bad_result"


@functools.lru_cache(maxsize=1 << 15)
def slide(line: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """A line pushed to its start, and the sum of its merges. A merged tile does not merge again."""
    out: list[int] = []
    gain, open_tile = 0, 0  # the last tile, while it may still merge
    for tile in filter(None, line):
        if tile == open_tile:
            out[-1], open_tile = 2 * tile, 0
            gain += 2 * tile
        else:
            out.append(tile)
            open_tile = tile
    return (*out, *[0] * (len(line) - len(out))), gain


def shift(board: Sequence[Sequence[int]], move: str) -> tuple[list[list[int]], int]:
    """The board after a move and before a new tile, and the sum of the merges."""
    vertical = move in "WS"
    order = -1 if move in "SD" else 1
    # Every line that moves, read from the side to which it moves
    moving = zip(*board, strict=True) if vertical else board
    lines, total = [], 0
    for line in moving:
        slid, gain = slide(tuple(line)[::order])
        lines.append(list(slid[::order]))
        total += gain
    if vertical:
        lines = [list(row) for row in zip(*lines, strict=True)]
    return lines, total


class GameBoard:
    """One game of 2048. Equal arguments and moves give equal games.

    `board` is the list of rows, `score` the sum of all merges, `state` whether it is still on. A
    new game has two tiles; each move that changes the board adds one to a random empty cell.
    """

    def __init__(
        self, size: int = 6, seed: int = 0, target: int = 2048, probability_fours: float = 0.1
    ):
        self.target, self.probability_fours, self.score = target, probability_fours, 0
        self._random = random.Random(seed)
        self.board = [[0] * size for _ in range(size)]
        self._spawn()
        self._spawn()
        self.state = self._find_state()

    @property
    def best_tile(self) -> int:
        return max(map(max, self.board))

    def move(self, move: str) -> bool:
        """Slide all tiles up (W), left (A), down (S) or right (D); False, and no new tile, if
        nothing changed.

        Raises:
            ValueError: for any other move, and after the end of the game.
        """
        if not is_one_of(MOVES, move):
            raise ValueError(f"{move!r} is not one of W, A, S, D")
        if self.state is not State.ONGOING:
            raise ValueError("the game is over")
        board, gain = shift(self.board, move)
        if board == self.board:
            return False
        self.board = board
        self.score += gain
        self._spawn()
        self.state = self._find_state()
        return True

    def pretty(self) -> str:
        """The board as text, its score and state below."""
        width = max(4, len(str(self.best_tile)))
        rule = "+" + ("-" * (width + 2) + "+") * len(self.board)
        lines = [rule]
        for row in self.board:
            cells = [f" {tile or '.':>{width}} |" for tile in row]
            lines += ["|" + "".join(cells), rule]
        return "\n".join([*lines, f"score {self.score}, {self.state}"])

    def _spawn(self):
        empty = []
        for row in self.board:
            empty += [(row, column) for column, tile in enumerate(row) if not tile]
        row, column = empty[int(self._random.random() * len(empty))]
        row[column] = 4 if self._random.random() < self.probability_fours else 2

    def _find_state(self) -> State:
        if self.best_tile >= self.target:
            return State.SUCCESS
        if any(0 in row for row in self.board):
            return State.ONGOING
        # On a full board, two equal neighbours can still merge.
        for line in (*self.board, *zip(*self.board, strict=True)):
            if any(a == b for a, b in itertools.pairwise(line)):
                return State.ONGOING
        return State.FAILED


def known_answers(row: Mapping[str, Any], options: Options) -> list[tuple[str, str]]:
    """(kind, completion) for check.py. Which reference wins, and whether fixed cycles of moves are
    wrong, depends on the board: on the default one they win honestly."""
    small = options.size <= 4
    reference, wrong = REFERENCE, WRONG
    if small and options.target >= 256:
        reference = LOOK_AHEAD
    if small and options.target >= 1024 and options.games * options.win_share > 2:
        wrong = [*map(in_turns, CYCLES), *WRONG]
    answers = [("reference", reference)]
    answers += [("wrong", text) for text in wrong]
    return answers + [("cheat", text) for text in CHEAT]


@dataclass(frozen=True)
class Game:
    """How one game went."""

    outcome: Outcome
    status: Status
    detail: str
    best_tile: int
    score: int
    # Of each call of the strategy; 0 where the kernel refuses its clock
    moves_cpu_s: tuple[float, ...]


def rows(options: Options) -> list[dict[str, Any]]:
    """Rows whose prompt names the budgets, where it has {move_cpu_s} and {game_cpu_s}."""
    text = options.prompt.replace("{move_cpu_s}", f"{options.move_cpu_s:g}")
    text = text.replace("{game_cpu_s}", f"{options.game_cpu_s:g}")
    return [{"prompt": [{"role": "user", "content": text}]} for _ in range(options.num_rows)]


def play(program: Program, options: Options, seed: int) -> Game:
    """One game by a loaded strategy, from the first move to its end."""
    game = GameBoard(options.size, seed, options.target, options.probability_fours)
    moves_cpu_s: list[float] = []
    cpu_left_s, wall_left_s, no_ops = options.game_cpu_s, options.game_wall_s, 0

    def ended(outcome: Outcome, status: Status = Status.OK, detail: str = "") -> Game:
        return Game(outcome, status, detail, game.best_tile, game.score, tuple(moves_cpu_s))

    while game.state is State.ONGOING:
        # Ask for a move, within the budgets of a move and of what is left of the game's.
        move_cpu_s = min(options.move_cpu_s, cpu_left_s)
        move_wall_s = min(options.move_wall_s, wall_left_s)
        run = program.call([game.board], timeout_s=move_wall_s, cpu_s=move_cpu_s)  # sent as a copy
        moves_cpu_s.append(run.cpu_s)
        cpu_left_s -= run.cpu_s
        wall_left_s -= run.wall_s
        if run.status is Status.TIMEOUT:
            detail = too_long(run, options, cpu_left_s, wall_left_s)
            return ended(Outcome.TIMEOUT, run.status, detail)
        if run.status is not Status.OK:
            return ended(Outcome(run.status), run.status, run.error)

        # Only a letter of MOVES is a move.
        move = run.value
        if move is None:
            return ended(Outcome.NONE, Status.BAD_RESULT, "None is not a move")
        if is_one_of(MOVES.lower(), move):
            return ended(Outcome.LOWER_CASE, detail=f"{move!r} is lower case; moves are W, A, S, D")
        if not is_one_of(MOVES, move):
            detail = f"{move!r:.80} is not one of W, A, S, D"
            return ended(Outcome.ILLEGAL, Status.BAD_RESULT, detail)
        no_ops = 0 if game.move(move) else no_ops + 1
        if no_ops == MAX_NO_OPS:
            return ended(Outcome.STUCK, detail=f"{MAX_NO_OPS} moves in a row changed nothing")
    if game.state is State.SUCCESS:
        return ended(Outcome.WON)
    return ended(Outcome.LOST, detail=f"no move left, best tile {game.best_tile}")


def too_long(run: Run, options: Options, cpu_left_s: float, wall_left_s: float) -> str:
    """Which limit stopped a move: that of a game, whose rests are given, or its own."""
    if cpu_left_s <= 0:
        return f"a game took more than {options.game_cpu_s:g} s of CPU"
    if wall_left_s <= 0:
        return f"a game took more than {options.game_wall_s:g} s of wall clock"
    return run.error


def grade(
    completion: Any,
    row: Mapping[str, Any],
    options: Options,
    sandbox: Sandbox,
    rng: np.random.Generator,
) -> Grade:
    """Let the completion's strategy play `games` games.

    `data` holds outcome (what stopped it, else the most frequent one of the games that were not
    won), loaded (whether there was a function to call) and, if so, win_rate, best_tile,
    mean_best_tile, mean_score, moves, size and target.
    """
    # The boards of an evaluation have seeds that training never draws.
    first_seed = 0
    if "evaluation_seed" in row:
        first_seed = HELD_OUT_SEEDS.stop
    drawn = rng.integers(HELD_OUT_SEEDS.start, size=options.games)
    seeds = [first_seed + int(seed) for seed in drawn]

    def try_games(program: Program) -> Grade:
        return try_program(program, options, seeds)

    without_function = {"outcome": Outcome.NO_FUNCTION, "loaded": False}
    return grade_program(
        completion, "strategy", sandbox, try_games, without_function, plain_subclasses=True
    )


def try_program(program: Program, options: Options, seeds: Iterable[int]) -> Grade:
    if program.status is not Status.OK:
        return Grade(
            program.status,
            detail=program.error,
            data={"outcome": Outcome(program.status), "loaded": False},
        )
    # Play until a game ends in a way that is not ok.
    games: list[Game] = []
    for seed in seeds:
        games.append(play(program, options, seed))
        if games[-1].status is not Status.OK:
            break

    # What was won
    last = games[-1]
    outcomes = Counter(game.outcome for game in games)
    won = outcomes.pop(Outcome.WON, 0)
    win_rate = won / options.games
    correct = last.status is Status.OK and win_rate >= options.win_share
    detail = f"won {won} of {len(games)} games"
    if last.detail:
        detail += f"; {last.detail}"

    # What stopped it, or why it is not enough
    win_s = seconds_to_win(games, options)
    if last.status is not Status.OK:
        status, outcome = last.status, last.outcome
    elif not correct and win_s > options.game_cpu_s:
        status, outcome = Status.TIMEOUT, Outcome.TOO_SLOW
        detail += f"; a win would take {win_s:.0f} s of CPU, the budget is {options.game_cpu_s:g} s"
    elif correct:
        status, outcome = Status.OK, Outcome.WON
    else:
        status, outcome = Status.OK, outcomes.most_common(1)[0][0]
    data = {"outcome": outcome, "loaded": True, "win_rate": win_rate}
    data |= measurements(games, options)
    return Grade(status, correct=correct, passed=win_rate, detail=detail, data=data)


def measurements(games: Sequence[Game], options: Options) -> dict[str, Any]:
    """How the games went, and on which board."""
    return {
        "best_tile": max(game.best_tile for game in games),
        "mean_best_tile": statistics.fmean(game.best_tile for game in games),
        "mean_score": statistics.fmean(game.score for game in games),
        "moves": sum(len(game.moves_cpu_s) for game in games),
        "size": options.size,
        "target": options.target,
    }


def seconds_to_win(games: Iterable[Game], options: Options) -> float:
    """CPU seconds that a win takes at the pace of the median move. A move adds one tile to the sum
    of all tiles, and that must reach the target."""
    pace_s = statistics.median(cpu_s for game in games for cpu_s in game.moves_cpu_s)
    return pace_s * options.target / (2 + 2 * options.probability_fours)


def evaluate(
    code: str, options: Options, sandbox: Sandbox, seeds: Sequence[int] = HELD_OUT_SEEDS
) -> dict[str, Any]:
    """How good a strategy is, over one game for each seed, on the size and target of `options`, not
    its curriculum.

    Every game has a process of its own, and one that is not played to its end counts as it stood.
    Each figure comes with its 95 % confidence interval (low, high): Wilson's for the win rate, the
    normal one for the means.

    Args:
        code: the program, as Grade.code has it.
        seeds: 50 or more; the default ones occur in no training.
    """

    def one_game(seed: int) -> Game:
        with sandbox.open(code, "strategy", plain_subclasses=True) as program:
            return play(program, options, seed)

    with ThreadPoolExecutor(sandbox.workers) as pool:
        games = list(pool.map(one_game, seeds))
    outcomes = Counter(str(game.outcome) for game in games)
    won = outcomes[Outcome.WON]
    report = {"games": len(games), "outcomes": dict(outcomes)}
    report |= {"win_rate": won / len(games), "win_rate_ci": wilson_interval(won, len(games))}
    for name, values in (
        ("mean_best_tile", [game.best_tile for game in games]),
        ("mean_score", [game.score for game in games]),
    ):
        mean = statistics.fmean(values)
        margin = Z_95 * statistics.stdev(values) / math.sqrt(len(values))
        report |= {name: mean, f"{name}_ci": (mean - margin, mean + margin)}
    return report


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a binomial share (E. B. Wilson, Probable inference, the law of
    succession, and statistical inference, JASA 22, 1927, 209-212); unlike the normal one it holds
    near 0 and 1."""
    share, z2 = successes / trials, Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    margin = (
        Z_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    )
    return max(centre - margin, 0.0), min(centre + margin, 1.0)
