"""How fast games are played, and how good simple strategies are: `python benchmarks/game_2048.py [--games N]`.

Everything runs on one core: the games, the sandbox and the strategies.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sandbox import Sandbox  # noqa: E402
from tasks import extract_code, game_2048  # noqa: E402

STRATEGIES = {
    "in turns": 'def strategy(board, moves=[]):\n    moves.append(0)\n    return "WASD"[len(moves) % 4]',
    "random": 'import random\nrng = random.Random(1)\ndef strategy(board):\n    return rng.choice("WASD")',
    "reference": extract_code(game_2048.REFERENCE, "strategy")[0],
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", type=int, default=100)
    seeds = game_2048.HELD_OUT_SEEDS[: parser.parse_args().games]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(
        "| board | strategy | games | seconds | won (95 % interval) | mean best tile | mean score |"
    )
    print("|---|---|---|---|---|---|---|")
    with Sandbox(workers=1) as sandbox:
        for size in (4, 6):
            options = game_2048.Options(type="game_2048", size=size)
            for name, code in STRATEGIES.items():
                began = time.perf_counter()
                report = game_2048.evaluate(code, options, sandbox, seeds)
                seconds = time.perf_counter() - began
                low, high = report["win_rate_ci"]
                print(
                    f"| {size} x {size} | {name} | {report['games']} | {seconds:.1f} "
                    f"| {report['win_rate']:.0%} ({low:.0%} to {high:.0%}) "
                    f"| {report['mean_best_tile']:.0f} | {report['mean_score']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
