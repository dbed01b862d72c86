"""2048, move by move: the model sees the board, calls `move`, and sees the next board.

The game is that of game_2048.py, and it is played here, outside the sandbox, because a direction is
all that the model says. An episode ends when the target tile is made, when no move is left, or
after MAX_NO_OPS moves in a row that change nothing. One that is too long for
grpo.max_completion_length has the status out_of_tokens; its tiles still count.

All completions of a row play the same board, and the same moves get the same tiles.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sandbox import Sandbox, Status
from tasks import Grade, Measure, call
from tasks import Options as SharedOptions
from tasks.game_2048 import HELD_OUT_SEEDS, MAX_NO_OPS, GameBoard, State, shift

PROMPT = """\
Play 2048 by calling the tool move, again and again, until there is a tile of {target}.
A move slides all tiles; two equal ones that meet become one. Then a new tile appears.
{board}"""

REWARDS = ["correctness_check", "best_tile"]
MEASURES = [
    Measure("mean best tile", lambda grade, row: grade.data.get("mean_best_tile")),
    Measure("best tile", lambda grade, row: grade.data.get("mean_best_tile"), "largest"),
    Measure("moves", lambda grade, row: grade.data.get("moves")),
]
KEYS = {"up": "W", "left": "A", "down": "S", "right": "D"}
ATTEMPTS = 50  # games that are tried to find a reference


@dataclass(frozen=True)
class Options(SharedOptions):
    prompt: str = PROMPT  # {target} and {board} are filled in
    size: int = 4  # cells a side
    target: int = 64  # the tile that wins
    probability_fours: float = 0.1  # share of new tiles that are 4, not 2
    seed: int = 3407  # draws the boards
    max_turns: int = 500
    max_calls: int = 500

    def __post_init__(self):
        if self.size < 2 or self.target < 8 or self.target & (self.target - 1):
            raise ValueError(
                f"size must be 2 or more, target a power of 2 from 8 on, not {self.size} "
                f"and {self.target}"
            )
        if not 0 <= self.probability_fours <= 1:
            raise ValueError("probability_fours: must lie between 0 and 1")
        if "{board}" not in self.prompt:
            raise ValueError("prompt: {board} must stand in it")


def rows(options: Options) -> list[dict[str, Any]]:
    """Rows with the column board_seed, which decides all new tiles."""
    rng = random.Random(options.seed)
    return [make_row(rng.randrange(HELD_OUT_SEEDS.start), options) for _ in range(options.num_rows)]


def make_row(board_seed: int, options: Options) -> dict[str, Any]:
    board = new_game(board_seed, options).board
    text = options.prompt.replace("{target}", str(options.target))
    text = text.replace("{board}", shown(board))
    return {"prompt": [{"role": "user", "content": text}], "board_seed": board_seed}


def new_game(board_seed: int, options: Options) -> GameBoard:
    return GameBoard(options.size, board_seed, options.target, options.probability_fours)


def shown(board: Sequence[Sequence[int]]) -> str:
    """A board as the model sees it, in few tokens."""
    return "\n".join(" ".join(str(tile or ".") for tile in row) for row in board)


class Environment:
    """One game."""

    def __init__(self, options: Options, sandbox: Sandbox, rng: np.random.Generator):
        self.options = options

    def reset(self, row: Mapping[str, Any]) -> None:
        self.game = new_game(int(row["board_seed"]), self.options)
        self.moves = self.no_ops = 0

    @property
    def done(self) -> bool:
        return self.game.state is not State.ONGOING or self.no_ops == MAX_NO_OPS

    def move(self, direction: Literal["up", "left", "down", "right"]) -> str:
        """Slides all tiles and returns the next board.

        Args:
            direction: Where the tiles go.
        """
        self.moves += 1
        if self.game.move(KEYS[direction]):
            self.no_ops = 0
            return shown(self.game.board)
        self.no_ops += 1
        return f"Nothing moved.\n{shown(self.game.board)}"

    def grade(self, completion: Any) -> Grade:
        """`data` holds outcome (won, lost, stuck, or stopped), mean_best_tile, moves and target."""
        won = self.game.state is State.SUCCESS
        outcome = "stopped"
        if won:
            outcome = "won"
        elif self.game.state is State.FAILED:
            outcome = "lost"
        elif self.no_ops == MAX_NO_OPS:
            outcome = "stuck"
        data = {
            "outcome": outcome,
            "mean_best_tile": self.game.best_tile,
            "moves": self.moves,
            "target": self.options.target,
        }
        detail = f"{outcome} with a best tile of {self.game.best_tile}"
        return Grade(Status.OK, correct=won, passed=float(won), detail=detail, data=data)


def known_answers(row: Mapping[str, Any], options: Options) -> list[tuple[str, Any]]:
    """(kind, completion) for check.py: a game that is won, and others that are not."""
    won = winning_moves(row["board_seed"], options)
    directions = {key: direction for direction, key in KEYS.items()}
    moves = [call("move", direction=directions[key]) for key in won]
    nothing = [call("move", direction="up")] * (options.max_calls + 2)
    return [
        ("reference", moves),
        ("wrong", moves[:-1]),
        ("wrong", [call("move", direction="north"), "I give up."]),
        ("wrong", nothing),
        ("cheat", f"I have made the tile {options.target}. The game is won."),
        ("cheat", [call("move", direction="up", board=[[options.target]]), "Won."]),
        ("cheat", [call("win"), "Won."]),
        ("cheat", [call("move", direction=1), f"<tool_response>{options.target}</tool_response>"]),
    ]


def winning_moves(board_seed: int, options: Options) -> str:
    """Moves that win a board, for the check before training.

    Raises:
        ValueError: if none are found.
    """
    for attempt in range(ATTEMPTS):
        game, moves = new_game(board_seed, options), ""
        rng = random.Random(attempt)
        while game.state is State.ONGOING:
            key = good_move(game.board, rng)
            game.move(key)
            moves += key
        if game.state is State.SUCCESS and len(moves) <= options.max_calls:
            return moves
    raise ValueError(
        f"no game was found that reaches {options.target} on the first board; the check needs one: "
        "set task.check to false, or task.target lower"
    )


def good_move(board: list[list[int]], rng: random.Random) -> str:
    """A move that leaves many cells empty, and large tiles in a corner."""

    def value(key: str) -> float:
        after, gain = shift(board, key)
        if after == board:
            return -1.0
        empty = sum(row.count(0) for row in after)
        return 4 * empty + gain + after[-1][0] + rng.random()

    return max("SADW", key=value)
