"""How fast games are played, and how good simple strategies are.

python benchmarks/game_2048.py [--games N]
    Plays N games of each strategy on three boards. Everything runs on one core: the games, the
    sandbox and the strategies.

python benchmarks/game_2048.py --cycles [--length N] [--games N]
    Plays every fixed cycle of up to N moves (8), up to symmetry, on 4 x 4 to 1024, without the
    sandbox: 12 games each, then N games of the best 40. Prints the best cycles.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sandbox import Sandbox  # noqa: E402
from tasks import extract_code, game_2048  # noqa: E402

STRATEGIES = {
    "in turns": extract_code(game_2048.in_turns("WASD"), "strategy")[0],
    "random": (
        'import random\nrng = random.Random(1)\ndef strategy(board):\n    return rng.choice("WASD")'
    ),
    "reference": extract_code(game_2048.REFERENCE, "strategy")[0],
    "look ahead": extract_code(game_2048.LOOK_AHEAD, "strategy")[0],
}
BOARDS = [(4, 1024), (4, 2048), (6, 2048)]
SIZE, TARGET = 4, 1024  # of the search
FIRST_GAMES, FINALISTS = 12, 40

TURNED = dict(zip("WDSA", "DSAW", strict=True))  # clockwise
MIRRORED = dict(zip("WASD", "WDSA", strict=True))  # left for right


def symmetries() -> Iterator[dict[int, int]]:
    """The eight symmetries of the board, as tables for str.translate."""
    moves = {move: move for move in "WASD"}
    for _ in range(4):
        moves = {move: TURNED[moves[move]] for move in moves}
        yield str.maketrans(moves)
        yield str.maketrans({move: MIRRORED[moves[move]] for move in moves})


SYMMETRIES = list(symmetries())


def canonical(cycle: str) -> str:
    """The first in the alphabet of all cycles that play the same: turned, mirrored, begun later."""
    images = []
    for symmetry in SYMMETRIES:
        image = cycle.translate(symmetry)
        images += [image[i:] + image[:i] for i in range(len(image))]
    return min(images)


def cycles(longest: int) -> list[str]:
    """One cycle of each kind, up to `longest` moves."""
    kinds = {}
    for length in range(1, longest + 1):
        for rest in itertools.product("WASD", repeat=length - 1):
            cycle = "A" + "".join(rest)  # the first in the alphabet begins with A
            shorter = any(
                length % part == 0 and cycle == cycle[:part] * (length // part)
                for part in range(1, length)
            )
            if not shorter and canonical(cycle) == cycle:
                kinds[cycle] = None
    return list(kinds)


def best_tiles(cycle: str, seeds: Sequence[int]) -> list[int]:
    """The best tile of one game for each seed. A game ends as in the task: won, lost or stuck."""
    tiles = []
    for seed in seeds:
        game = game_2048.GameBoard(SIZE, seed, TARGET)
        no_ops = 0
        for move in itertools.cycle(cycle):
            no_ops = 0 if game.move(move) else no_ops + 1
            if no_ops == game_2048.MAX_NO_OPS or game.state is not game_2048.State.ONGOING:
                break
        tiles.append(game.best_tile)
    return tiles


def search_cycles(longest: int, games: int) -> None:
    def strength(tiles: list[int]) -> float:
        return statistics.fmean(tiles)

    tried = cycles(longest)
    first = {cycle: best_tiles(cycle, range(FIRST_GAMES)) for cycle in tried}
    finalists = sorted(tried, key=lambda cycle: strength(first[cycle]), reverse=True)[:FINALISTS]
    seeds = range(FIRST_GAMES, FIRST_GAMES + games)
    final = {cycle: best_tiles(cycle, seeds) for cycle in finalists}
    print(f"{len(tried)} cycles of up to {longest} moves; the best in {games} games each:")
    print("| cycle | won | 512 or more | mean best tile |\n|---|---|---|---|")
    for cycle in sorted(finalists, key=lambda cycle: strength(final[cycle]), reverse=True)[:10]:
        tiles = final[cycle]
        won = sum(tile >= TARGET for tile in tiles) / games
        half = sum(tile >= TARGET // 2 for tile in tiles) / games
        print(f"| {cycle} | {won:.1%} | {half:.1%} | {statistics.fmean(tiles):.0f} |")


def compare_strategies(games: int) -> None:
    seeds = game_2048.HELD_OUT_SEEDS[:games]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print("| board | strategy | games | seconds | won (95 % interval) | mean best tile | score |")
    print("|---|---|---|---|---|---|---|")
    with Sandbox(workers=1) as sandbox:
        for (size, target), (name, code) in itertools.product(BOARDS, STRATEGIES.items()):
            options = game_2048.Options(type="game_2048", size=size, target=target)
            began = time.perf_counter()
            report = game_2048.evaluate(code, options, sandbox, seeds)
            seconds = time.perf_counter() - began
            low, high = report["win_rate_ci"]
            print(
                f"| {size} x {size} to {target} | {name} | {report['games']} | {seconds:.1f} "
                f"| {report['win_rate']:.0%} ({low:.0%} to {high:.0%}) "
                f"| {report['mean_best_tile']:.0f} | {report['mean_score']:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", type=int, default=100)
    parser.add_argument("--cycles", action="store_true", help="search the fixed cycles of moves")
    parser.add_argument("--length", type=int, default=8, help="of the longest cycle")
    arguments = parser.parse_args()
    if arguments.cycles:
        search_cycles(arguments.length, arguments.games)
    else:
        compare_strategies(arguments.games)


if __name__ == "__main__":
    main()
