"""tasks/game_2048.py: the rules of the game, how strategies are judged on it, and what that
pays."""

import dataclasses
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from job import config
from job.errors import ConfigError
from job.grade_file import grade_file
from job.grading import Grader, resolve
from job.reward_check import check_rewards
from sandbox import Status
from tasks import Grade, extract_code, game_2048
from tasks.game_2048 import (
    HELD_OUT_SEEDS,
    GameBoard,
    Outcome,
    State,
    evaluate,
    shift,
    slide,
    wilson_interval,
)
from tests.test_check import CORPUS, acceptable, assert_totals_in_order

ROOT = Path(__file__).parent.parent
TILES = st.sampled_from([0, 0, 2, 2, 4, 8, 16])
LINES = st.lists(TILES, min_size=2, max_size=8).map(tuple)
BOARDS = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(TILES, min_size=size, max_size=size), min_size=size, max_size=size
    )
)
MOVES = st.sampled_from("WASD")
MIRRORED = dict(zip("WASD", "WDSA", strict=True))  # left for right
TURNED = dict(zip("WASD", "DWAS", strict=True))  # clockwise


def mirror(board):
    return [row[::-1] for row in board]


def turn(board):
    return [list(row) for row in zip(*board[::-1], strict=True)]


def total(board):
    return sum(map(sum, board))


# ------------------------------------------------------------ rules


@pytest.mark.parametrize(
    ("line", "after", "gain"),
    [
        ((2, 2, 0, 0), (4, 0, 0, 0), 4),
        ((2, 0, 0, 2), (4, 0, 0, 0), 4),
        ((2, 2, 2, 0), (4, 2, 0, 0), 4),  # the two nearer to the wall
        ((2, 2, 2, 2), (4, 4, 0, 0), 8),  # not 8: a tile merges once
        ((4, 2, 2, 0), (4, 4, 0, 0), 4),
        ((2, 2, 4, 8), (4, 4, 8, 0), 4),
        ((2, 4, 2, 4), (2, 4, 2, 4), 0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0),
        ((1024, 1024), (2048, 0), 2048),
    ],
)
def test_slide(line, after, gain):
    assert slide(line) == (after, gain)


@given(LINES)
def test_each_tile_merges_once(line):
    after, gain = slide(line)
    tiles, merged = [tile for tile in line if tile], 0
    for tile in filter(None, after):  # every tile is one old tile, or two equal ones side by side
        if tiles[0] == tile:
            tiles = tiles[1:]
        else:
            assert tiles[:2] == [tile // 2] * 2
            tiles, merged = tiles[2:], merged + tile
    assert not tiles and merged == gain
    assert 0 not in after[: len(after) - after.count(0)]


@given(BOARDS, MOVES)
def test_a_move_conserves_the_sum_of_the_tiles(board, move):
    after, gain = shift(board, move)
    assert total(after) == total(board)
    assert gain % 4 == 0 and (gain > 0) == (
        sum(map(bool, sum(after, []))) < sum(map(bool, sum(board, [])))
    )


@given(BOARDS, MOVES)
def test_a_move_that_changes_nothing_never_does(board, move):
    after, gain = shift(board, move)
    if after == board:
        assert gain == 0
    while gain:
        after, gain = shift(after, move)
    assert shift(after, move) == (after, 0)


@given(BOARDS, MOVES)
def test_mirror_and_rotation_symmetry(board, move):
    after, gain = shift(board, move)
    assert shift(mirror(board), MIRRORED[move]) == (mirror(after), gain)
    assert shift(turn(board), TURNED[move]) == (turn(after), gain)


@given(st.integers(2, 6), st.integers(0, 2**33), st.lists(MOVES, max_size=60))
@settings(max_examples=50)
def test_a_game(size, seed, moves):
    game, twin = GameBoard(size, seed, 64), GameBoard(size, seed, 64)
    assert sum(map(bool, sum(game.board, []))) == 2
    score = 0
    for move in moves:
        if game.state is not State.ONGOING:
            break
        before, (shifted, gain) = game.board, shift(game.board, move)
        changed = game.move(move)
        assert changed == twin.move(move) == (shifted != before)
        score += gain
        new = [
            (old, tile)
            for old, tile in zip(sum(shifted, []), sum(game.board, []), strict=True)
            if old != tile
        ]
        assert new in ([(0, 2)], [(0, 4)]) if changed else not new
        assert (game.state is State.SUCCESS) == (game.best_tile >= 64)
        if game.state is State.FAILED:
            assert all(shift(game.board, move)[0] == game.board for move in "WASD")
    assert (game.board, game.score, game.state) == (twin.board, score, twin.state)


@pytest.mark.parametrize(
    ("move", "to"), [("W", (0, 1)), ("A", (1, 0)), ("S", (2, 1)), ("D", (1, 2))]
)
def test_directions(move, to):
    after, _ = shift([[0, 0, 0], [0, 2, 0], [0, 0, 0]], move)
    assert after[to[0]][to[1]] == 2


@pytest.mark.parametrize("move", ["w", "", "WA", "X", None, 0, ["W"], b"W"])
def test_what_is_no_move_is_refused(move):
    game = GameBoard(4, 1)
    before = game.board
    with pytest.raises(ValueError, match="not one of W, A, S, D"):
        game.move(move)
    assert game.board is before


def test_nothing_moves_after_the_end():
    game = GameBoard(4, 1, target=4, probability_fours=1.0)
    assert game.state is State.SUCCESS
    with pytest.raises(ValueError, match="over"):
        game.move("W")


def test_new_tiles():
    games = [GameBoard(4, seed) for seed in range(2000)]
    tiles = [tile for game in games for row in game.board for tile in row if tile]
    assert 0.08 < tiles.count(4) / len(tiles) < 0.12
    cells = [i for game in games for i, tile in enumerate(sum(game.board, [])) if tile]
    assert all(200 < cells.count(i) < 300 for i in range(16))  # 250 expected, standard deviation 15
    assert {GameBoard(3, seed, probability_fours=0.0).best_tile for seed in range(20)} == {2}


def test_a_game_leaves_other_random_numbers_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    GameBoard(4, 9).move("W")
    assert random.random() == expected


def test_pretty():
    game = GameBoard(2, 0)
    game.board, game.score = [[2, 0], [16384, 4]], 36
    assert game.pretty().splitlines() == [
        "+-------+-------+",
        "|     2 |     . |",
        "+-------+-------+",
        "| 16384 |     4 |",
        "+-------+-------+",
        "score 36, ongoing",
    ]


# ------------------------------------------------------------ strategies


def graded(sandbox, body, seed=0, **options):
    options = {"size": 4, "target": 64, "move_cpu_s": 0.5, **options}
    text = body if "def strategy" in body else game_2048.answer(body)
    text = text if "```" in text else f"```python\n{text}\n```"
    settled = game_2048.Options(type="game_2048", **options)
    return game_2048.grade(text, {}, settled, sandbox, np.random.default_rng(seed))


def paid(grade):
    return [resolve(name)([""], grades=[grade])[0] for name in game_2048.REWARDS]


IN_TURNS = 'def strategy(board, moves=[]):\n    moves.append(0)\n    return "WASD"[len(moves) % 4]'
# fine at first, then something else
AFTER_SOME = "global n\nn = globals().get('n', 0) + 1\n{}\nreturn 'WASD'[n % 4]"


@pytest.mark.parametrize(
    ("body", "outcome", "status", "rewards"),
    [
        (game_2048.REFERENCE, "won", Status.OK, [1, 1, 20]),
        (IN_TURNS, "won", Status.OK, [1, 1, 20]),
        ("return 'W'", "stuck", Status.OK, [1, 1, 2]),
        ("return 'w'", "lower_case", Status.OK, [1, 1, 2]),
        (AFTER_SOME.format("if n > 9: return 'd'"), "lower_case", Status.OK, [1, 1, 2]),
        ("return None", "none", Status.BAD_RESULT, [-0.5, 1, -3]),
        ("pass", "none", Status.BAD_RESULT, [-0.5, 1, -3]),
        (AFTER_SOME.format("if n > 9: return None"), "none", Status.BAD_RESULT, [-0.5, 1, -3]),
        ("return 'left'", "illegal", Status.BAD_RESULT, [-0.5, 1, -3]),
        ("return ''", "illegal", Status.BAD_RESULT, [-0.5, 1, -3]),
        ("return 'W '", "illegal", Status.BAD_RESULT, [-0.5, 1, -3]),
        ("return 'WASD'", "illegal", Status.BAD_RESULT, [-0.5, 1, -3]),
        ("return 'ſ'", "illegal", Status.BAD_RESULT, [-0.5, 1, -3]),  # its upper case is S
        ("return True", "illegal", Status.BAD_RESULT, [-0.5, 1, -3]),
        ("return ['W']", "illegal", Status.BAD_RESULT, [-0.5, 1, -3]),
        ("return {'W'}", "bad_result", Status.BAD_RESULT, [-0.5, 1, -3]),
        ("return 'W' * 10 ** 9", "memory", Status.MEMORY, [-0.5, 1, -3]),
        ("raise ValueError", "crash", Status.CRASH, [-0.5, 1, -3]),
        ("raise SystemExit", "crash", Status.CRASH, [-0.5, 1, -3]),
        (AFTER_SOME.format("if n > 9: 1 / 0"), "crash", Status.CRASH, [-0.5, 1, -3]),
        ("def strategy():\n    return 'W'", "crash", Status.CRASH, [-0.5, 1, -3]),
        ("while True:\n    pass", "timeout", Status.TIMEOUT, [-0.5, 1, -1]),
        # By the wall clock
        ("import time\ntime.sleep(60)", "timeout", Status.TIMEOUT, [-0.5, 1, -1]),
        (AFTER_SOME.format("while n > 9: pass"), "timeout", Status.TIMEOUT, [-0.5, 1, -1]),
        ("1 / 0\ndef strategy(board):\n    return 'W'", "crash", Status.CRASH, [-0.5, 1, 0]),
        ("def strategy(board:\n    return 'W'", "syntax_error", Status.SYNTAX_ERROR, [-2, -1, -2]),
        (
            "def strategy(board): pass\ndel strategy",
            "no_function",
            Status.NO_FUNCTION,
            [-2, -1, -2],
        ),
        (
            "```python\ndef play(board):\n    return 'def strategy'\n```",
            "no_function",
            Status.NO_FUNCTION,
            [-2, -1, -2],
        ),
        ("import os\nreturn 'W'", "stuck", Status.OK, [1, 1, 2]),
        ("import os\nos._exit(0)", "crash", Status.CRASH, [-0.5, -20, -3]),
        ("import ctypes\nreturn 'W'", "crash", Status.CRASH, [-0.5, -20, -3]),
        (
            "try:\n    import ctypes\nexcept ImportError:\n    pass\nreturn 'W'",
            "stuck",
            Status.OK,
            [1, -20, 0],
        ),
        (
            "from enum import StrEnum\nreturn StrEnum('M', {'UP': 'W'}).UP",
            "stuck",
            Status.OK,
            [1, 1, 2],
        ),
    ],
)
def test_outcomes(sandbox, body, outcome, status, rewards):
    short = {"move_timeout_s": 0.5} if outcome == "timeout" else {}  # others may take their time
    grade = graded(sandbox, body, **short)
    assert (grade.data["outcome"], grade.status, grade.correct) == (
        outcome,
        status,
        outcome == "won",
    )
    assert paid(grade) == rewards
    assert isinstance(grade.data["outcome"], Outcome) and json.dumps(dict(grade.data))


def test_a_winner_that_cheats_is_not_paid(sandbox):
    code = (
        extract_code(game_2048.REFERENCE, "strategy")[0]
        + "\ntry:\n    import numpy\nexcept ImportError:\n    pass\n"
    )
    grade = graded(sandbox, code)
    assert grade.correct and grade.cheating and paid(grade) == [1, -20, 0]


def test_lost(sandbox):
    grade = graded(sandbox, IN_TURNS, target=2048)
    assert (grade.status, grade.data["outcome"], grade.passed) == (Status.OK, Outcome.LOST, 0.0)
    assert (
        grade.data["best_tile"] >= 32
        and grade.data["mean_score"] > 100
        and grade.data["moves"] > 5 * 50
    )
    assert grade.detail.startswith("won 0 of 5 games; no move left")


SPIN = "from time import process_time as now\nend = now() + {}\nwhile now() < end: pass\n"
ANY_MOVE = "return 'WASD'[sum(map(sum, board)) % 4]"


def test_a_game_has_a_budget(sandbox):
    grade = graded(sandbox, SPIN.format(0.02) + ANY_MOVE, game_cpu_s=0.05)
    assert (grade.status, grade.data["outcome"]) == (Status.TIMEOUT, Outcome.TIMEOUT)
    assert grade.detail.endswith("a game took more than 0.05 s of CPU") and grade.data["moves"] < 6


def test_a_wall_clock_stands_behind_the_budgets(sandbox):
    sleep = "__import__('time').sleep({})\n" + ANY_MOVE
    grade = graded(sandbox, sleep.format(0.02), game_timeout_s=0.1)
    assert grade.status is Status.TIMEOUT and grade.detail.endswith(
        "a game took more than 0.1 s of wall clock"
    )
    grade = graded(sandbox, sleep.format(60), move_timeout_s=0.1)
    assert grade.status is Status.TIMEOUT and grade.detail.endswith(
        "stopped after 0.1 s of wall clock"
    )
    # A pause costs no budget
    assert graded(sandbox, sleep.format(0.001), target=16).status is Status.OK


def test_the_prompt_says_what_a_move_may_use():
    options = game_2048.Options(type="game_2048", move_cpu_s=0.5, game_cpu_s=4)
    text = game_2048.rows(options)[0]["prompt"][0]["content"]
    assert "A move may take 0.5 s of CPU time, all moves of one game together 4 s." in text
    own = game_2048.Options(type="game_2048", prompt="Play {well}.")
    assert game_2048.rows(own)[0]["prompt"][0]["content"] == "Play {well}."


def test_old_limits_become_budgets_with_a_notice():
    job = config.load_config(
        None, ["task.type=game_2048", "task.move_timeout_s=0.5", "sandbox.timeout_s=2"]
    )
    task = job.tasks[0]
    assert (task.move_cpu_s, task.move_timeout_s, task.game_cpu_s) == (0.5, 3.0, 3.0)
    assert (job.sandbox.call_cpu_s, job.sandbox.timeout_s, job.sandbox.cpu_s) == (2, 12, 20)
    assert len(job.notices) == 2 and all("alone is taken for" in notice for notice in job.notices)
    stages = "task.curriculum=[{step: 3, game_timeout_s: 9}]"
    job = config.load_config(None, ["task.type=game_2048", stages])
    stage = tasks.at_step(job.tasks[0], 3)
    assert (stage.game_cpu_s, stage.game_timeout_s) == (3, 9)
    assert "curriculum[0].game_timeout_s is wall clock" in job.notices[0]
    both = [
        "task.type=game_2048",
        "task.move_timeout_s=2",
        "task.move_cpu_s=1",
        "sandbox.timeout_s=9",
    ]
    job = config.load_config(None, [*both, "sandbox.call_cpu_s=3"])
    assert (job.tasks[0].move_cpu_s, job.tasks[0].move_timeout_s) == (1, 2) and job.notices == ()
    assert (job.sandbox.call_cpu_s, job.sandbox.timeout_s) == (3, 9)


def test_the_pace_follows_the_share_of_fours():
    game = game_2048.Game(Outcome.LOST, Status.OK, "", 2, 0, (0.01, 0.01, 9.0))
    for fours, moves in ((0.0, 1024), (1.0, 512)):
        options = game_2048.Options(type="game_2048", probability_fours=fours)
        assert game_2048.seconds_to_win([game], options) == pytest.approx(0.01 * moves)


def test_too_slow_to_ever_win_is_a_timeout_though_lost_in_time(sandbox):
    slow = SPIN.format(0.01) + "return 'W'"
    grade = graded(sandbox, slow, target=2048)
    assert (grade.status, grade.data["outcome"]) == (Status.TIMEOUT, Outcome.TOO_SLOW)
    assert "a win would take" in grade.detail
    assert graded(sandbox, slow, target=64).status is Status.OK


def test_a_move_that_changes_nothing_costs_nothing(sandbox):
    # each up to four times in a row
    body = "global n\nn = globals().get('n', 0) + 1\nreturn 'WASD'[n // 4 % 4]"
    assert graded(sandbox, body, target=16).data["outcome"] is Outcome.WON
    grade = graded(sandbox, "return 'W'", games=1)
    assert grade.data["outcome"] is Outcome.STUCK and 5 <= grade.data["moves"] < 60


def test_the_board_is_a_copy(sandbox):
    for body in game_2048.WRONG:
        if "board[0][0] =" in body:
            grade = graded(sandbox, body)
            assert grade.data["best_tile"] < 64 and grade.data["outcome"] is Outcome.STUCK
    code = extract_code(game_2048.REFERENCE, "strategy")[0]
    code += "\ninner = strategy\ndef strategy(board):\n"
    code += "    move = inner(board)\n    board.clear()\n    return move\n"
    assert graded(sandbox, code).correct  # untidy, and none of our business


def test_one_lucky_board_does_not_win(sandbox):
    code = (
        'import random\nrng = random.Random(1)\ndef strategy(board):\n    return rng.choice("WASD")'
    )
    grades = [graded(sandbox, code, seed, target=128) for seed in range(8)]
    assert any(grade.passed > 0 for grade in grades) and not any(grade.correct for grade in grades)
    assert graded(sandbox, code, 0, target=128, win_share=0.01).correct == (grades[0].passed > 0)


def test_boards_follow_the_random_generator(sandbox):
    first, again, other = (graded(sandbox, IN_TURNS, seed, target=2048).data for seed in (1, 1, 2))
    assert first == again and first["mean_score"] != other["mean_score"]


def test_rounding_does_not_cost_a_win(sandbox):
    for games in range(1, 12):
        assert graded(sandbox, IN_TURNS, games=games, target=16, win_share=1.0).correct


# ------------------------------------------------------------ curriculum, configuration, evaluation

STAGES = [{"step": 0, "size": 3, "target": 8}, {"step": 10, "size": 4, "target": 16}]


@pytest.mark.parametrize(
    ("step", "game"), [(0, (3, 8)), (9, (3, 8)), (10, (4, 16)), (999, (4, 16))]
)
def test_curriculum(sandbox, step, game):
    options = game_2048.Options(type="game_2048", curriculum=STAGES)
    (grade,) = Grader([options], sandbox, seed=0).grade([f"```python\n{IN_TURNS}\n```"], [{}], step)
    assert (grade.data["size"], grade.data["target"]) == game


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "curriculum=[{step: 0, size: 4, target: 60}]",
            "task.curriculum[0]: size must be 2 or more, target a power",
        ),
        ("curriculum=[{step: 0, size: 4, target: x}]", "task.curriculum[0].target: Value 'x'"),
        ("size=1", "size must be 2 or more"),
        ("target=100", "a power of 2"),
        ("probability_fours=1.5", "probability_fours"),
        ("games=0", "games"),
        ("win_share=0", "win_share"),
        ("move_timeout_s=0", "move_timeout_s"),
        ("boards=5", "no such key"),
    ],
)
def test_impossible_options_are_refused(override, message):
    with pytest.raises(ConfigError) as refused:
        config.load_config(None, ["task.type=game_2048", f"task.{override}"])
    assert message in str(refused.value)


def test_the_config(sandbox, tmp_path):
    path = ROOT / "configs" / "game_2048.yaml"
    job = config.load_config(path)
    assert "bash train.sh --config configs/game_2048.yaml" in "".join(path.open().readlines()[:3])
    task = job.tasks[0]
    first, last = tasks.at_step(task, 0), tasks.at_step(task, 10**6)
    seeds_game = game_2048.Options(type="game_2048")
    assert (first.size, first.target, first.win_share) == (
        seeds_game.size,
        seeds_game.target,
        seeds_game.win_share,
    )
    assert (last.size, last.target, last.win_share) == (task.size, task.target, task.win_share)
    assert job.grpo["max_steps"] > task.curriculum[-1]["step"]
    config.save(job, tmp_path / "resolved.yaml")
    assert config.load_config(tmp_path / "resolved.yaml").tasks == (task,)
    assert task.games * task.game_cpu_s + job.sandbox.call_cpu_s <= job.sandbox.cpu_s


def kinds_of(options):
    answers = game_2048.known_answers({}, options)
    cycles = [text for text in map(game_2048.in_turns, game_2048.CYCLES)]
    return dict((text, kind) for kind, text in answers), cycles


def test_cycles_are_wrong_only_where_the_board_is_needed():
    job = config.load_config(ROOT / "configs" / "game_2048.yaml")
    hard, cycles = kinds_of(tasks.at_step(job.tasks[0], 10**6))
    assert [hard[cycle] for cycle in cycles] == ["wrong"] * len(cycles)
    assert hard[game_2048.LOOK_AHEAD] == "reference"
    for easy in (tasks.at_step(job.tasks[0], 0), game_2048.Options(type="game_2048")):
        known, _ = kinds_of(easy)
        assert not set(cycles) & set(known) and known[game_2048.REFERENCE] == "reference"
    assert not set(cycles) & set(kinds_of(dataclasses.replace(job.tasks[0], games=1))[0])


def test_the_last_stage_pays_a_strategy_that_looks_at_the_board_and_no_cycle(sandbox):
    job = config.load_config(ROOT / "configs" / "game_2048.yaml")
    options = dataclasses.replace(job.tasks[0], curriculum=[], win_share=0.4)
    texts = [game_2048.LOOK_AHEAD, *map(game_2048.in_turns, game_2048.CYCLES)]
    scored = Grader([options], sandbox, seed=0).score(texts, [{}] * len(texts))
    ahead, *cycles = [item.total(dict.fromkeys(item.rewards, 1.0)) for item in scored]
    assert scored[0].grade.correct and ahead > 26
    for item, total in zip(scored[1:], cycles, strict=True):
        assert not item.grade.correct and 4 < total < 9


@pytest.mark.slow
def test_the_check_passes_at_every_stage_of_the_config(sandbox):
    task = config.load_config(ROOT / "configs" / "game_2048.yaml").tasks[0]
    _, line = check_rewards(task, sandbox)
    assert line.count("honest ones earn 2") == len(task.curriculum), line


@pytest.mark.slow
def test_no_cycle_of_up_to_four_moves_wins_the_hard_board():
    from benchmarks import game_2048 as benchmark

    for cycle in benchmark.cycles(4):
        won = [tile >= benchmark.TARGET for tile in benchmark.best_tiles(cycle, range(20))]
        assert sum(won) <= 4, cycle


def test_every_cycle_is_searched_once():
    from benchmarks import game_2048 as benchmark

    assert benchmark.cycles(2) == ["A", "AS", "AD"]
    found = set(benchmark.cycles(5))
    for length in range(1, 6):
        for moves in itertools.product("WASD", repeat=length):
            cycle = "".join(moves)
            root = next(
                cycle[:n] for n in range(1, length + 1) if cycle[:n] * (length // n) == cycle
            )
            assert benchmark.canonical(root) in found


def test_evaluate(sandbox):
    options = game_2048.Options(type="game_2048", size=4, target=128, curriculum=STAGES)
    seeds = HELD_OUT_SEEDS[:50]
    report, again = (evaluate(IN_TURNS, options, sandbox, seeds) for _ in range(2))
    assert report == again and report["games"] == sum(report["outcomes"].values()) == 50
    assert set(report["outcomes"]) <= {"won", "lost", "stuck"}
    assert report["win_rate"] == report["outcomes"]["won"] / 50
    for name in ("win_rate", "mean_best_tile", "mean_score"):
        low, high = report[f"{name}_ci"]
        assert low < report[name] < high
    assert 16 < report["mean_best_tile"] <= 128


@pytest.mark.parametrize(
    ("code", "outcome"),
    [("1 / 0", "crash"), ("def strategy(", "syntax_error"), ("x = 1", "no_function")],
)
def test_evaluate_what_does_not_load(sandbox, code, outcome):
    report = evaluate(code, game_2048.Options(type="game_2048"), sandbox, HELD_OUT_SEEDS[:2])
    assert report["outcomes"] == {outcome: 2} and report["win_rate"] == 0.0


def test_held_out_seeds_occur_in_no_training(sandbox, monkeypatch):
    seen = []
    play = game_2048.play
    monkeypatch.setattr(
        game_2048,
        "play",
        lambda program, options, seed: seen.append(seed) or play(program, options, seed),
    )
    for seed in range(3):
        graded(sandbox, "return 'W'", seed)
    assert len(set(seen)) == 15 and max(seen) < HELD_OUT_SEEDS.start and len(HELD_OUT_SEEDS) >= 50


def test_wilson_interval():
    # R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in
    # Medicine 17, 1998, table I
    for counts, expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
    }.items():
        assert wilson_interval(*counts) == pytest.approx(expected, abs=1e-4)
    assert wilson_interval(20, 20)[1] == 1.0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_symmetric_and_holds_the_share(counts):
    won, n = counts
    low, high = wilson_interval(won, n)
    assert 0 <= low <= won / n + 1e-12 and won / n - 1e-12 <= high <= 1
    assert wilson_interval(n - won, n) == pytest.approx((1 - high, 1 - low))


# ------------------------------------------------------------ rewards


@pytest.mark.parametrize(
    ("grade", "score"),
    [
        (Grade(Status.NO_FUNCTION), -2.0),
        (Grade(Status.SYNTAX_ERROR), -2.0),
        (Grade(Status.CRASH, data={"loaded": False}), 0.0),
        (Grade(Status.MEMORY, data={"loaded": False}), 0.0),
        (Grade(Status.CRASH, data={"loaded": True}), -3.0),
        (Grade(Status.BAD_RESULT, data={"loaded": True}), -3.0),
        (Grade(Status.TIMEOUT, data={"loaded": False}), -1.0),
        (Grade(Status.TIMEOUT, data={"loaded": True}), -1.0),
        (Grade(Status.OK), 2.0),
        (Grade(Status.OK, correct=True), 20.0),
        (Grade(Status.OK, correct=True, cheating=("import numpy",)), 0.0),
        (Grade(Status.CRASH, cheating=("import numpy",)), -3.0),
    ],
)
def test_strategy_succeeds(grade, score):
    assert resolve("strategy_succeeds")([""], grades=[grade]) == [score]


def games_grade(mean_best_tile, target, **changes):
    data = {"loaded": True, "mean_best_tile": mean_best_tile, "target": target}
    return dataclasses.replace(Grade(Status.OK, data=data), **changes)


@pytest.mark.parametrize(
    ("grade", "score"),
    [
        (games_grade(1024, 1024, correct=True), 5.0),
        (games_grade(512, 1024), 4.0),
        (games_grade(32, 1024), 0.0),
        (games_grade(2, 2048), 0.0),
        (games_grade(1024, 1024, cheating=("import numpy",)), 0.0),
        (games_grade(512, 1024, status=Status.CRASH), 0.0),
        (games_grade(512, 1024, status=Status.TIMEOUT), 0.0),
        (Grade(Status.NO_FUNCTION), 0.0),
        (Grade(Status.OK, correct=True), 0.0),  # of another task
    ],
)
def test_best_tile(grade, score):
    assert resolve("best_tile")([""], grades=[grade]) == [score]


@given(st.floats(2, 4096), st.floats(2, 4096), st.integers(3, 12))
def test_a_better_mean_tile_never_earns_less_and_the_pay_is_bounded(one, other, power):
    lower, higher = (
        resolve("best_tile")([""], grades=[games_grade(tile, 2**power)])[0]
        for tile in sorted((one, other))
    )
    assert 0.0 <= lower <= higher <= 5.0


def test_the_mean_of_the_best_tiles_is_reported(sandbox):
    grade = graded(sandbox, IN_TURNS, target=64)
    assert grade.correct and grade.data["mean_best_tile"] == 64
    grade = graded(sandbox, "return 'W'", target=64)
    assert 2 <= grade.data["mean_best_tile"] <= grade.data["best_tile"]


@pytest.mark.slow
def test_the_corpus_gets_acceptable_verdicts_in_the_right_order(sandbox, patient_sandbox, tmp_path):
    job = config.load_config(None, ["task.type=game_2048"])
    # Honest programs play to the end, on however busy a machine.
    budgets = ["task.move_timeout_s=300", "task.game_timeout_s=600"]
    patient_job = config.load_config(None, ["task.type=game_2048", *budgets])
    # Slow ones meet the limit in every game: some boards are lost before the default of 18 s.
    strict_job = config.load_config(None, ["task.type=game_2048", "task.game_timeout_s=2"])
    verdicts = {}
    for row in CORPUS:
        if row["task"] != "game_2048":
            continue
        completion = row["completion"].replace("@@LEAK@@", str(tmp_path))
        line = json.dumps({"id": row["id"], "completion": completion})
        if row["expect"] == "legit":
            graded = grade_file([line], patient_job, patient_sandbox, None)
        elif row["expect"] == "timeout":
            graded = grade_file([line], strict_job, sandbox, None)
        else:
            graded = grade_file([line], job, sandbox, None)
        verdicts[row["id"]] = (row, json.loads(next(graded)))
    known = [json.dumps({"completion": text}) for text in (*game_2048.WRONG, *game_2048.CHEAT)]
    known_verdicts = [json.loads(line) for line in grade_file(known, job, sandbox, None)]
    reference_line = json.dumps({"completion": game_2048.REFERENCE})
    reference = json.loads(next(grade_file([reference_line], patient_job, patient_sandbox, None)))

    assert len(verdicts) > 30 and reference["correct"]
    for row, verdict in verdicts.values():
        assert acceptable(row, verdict, reference["total"]), (row["note"], verdict)
    assert list(tmp_path.iterdir()) == []
    corpus_verdicts = [verdict for _, verdict in verdicts.values()]
    assert_totals_in_order([*known_verdicts, *corpus_verdicts, reference])


def test_what_a_strategy_remembers_lasts_for_all_games(sandbox):
    code = IN_TURNS + " if len(moves) < 40 else None"
    grade = graded(sandbox, code, target=16)  # about 15 moves a game
    assert grade.data["outcome"] is Outcome.NONE and grade.data["moves"] == 40 and grade.passed > 0


def test_the_completion_has_one_time_limit_for_all_games(sandbox):
    limits = dataclasses.replace(sandbox.limits, cpu_s=0.5)

    class Short:
        def open(self, code, entry_point, **options):
            return sandbox.open(code, entry_point, limits, **options)

    grade = graded(Short(), SPIN.format(0.01) + ANY_MOVE, games=50)
    assert grade.status is Status.TIMEOUT and "0.5 s of CPU in total" in grade.detail
