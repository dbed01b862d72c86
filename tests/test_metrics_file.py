"""metrics_file.py: each step once, whatever was done to the file."""

import json
import os
import random

import pytest

from job import metrics_file

LOGS = [{"loss": 0.5 * step, "reward": float(step), "step": step} for step in range(1, 9)]


def evaluation(step):
    return {"step": step, "eval_reward": float(step)}


def write(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, [evaluation(0), *LOGS[:4], evaluation(4), *LOGS[4:], evaluation(8)])
    return path


def test_steps_after_the_checkpoint_are_left_out(file):
    assert metrics_file.cut_off(file, 4, LOGS[:4]) == ""
    assert read(file) == [evaluation(0), *LOGS[:4], evaluation(4)]


def test_damaged_lines_are_filled_from_the_checkpoint(file):
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = os.urandom(len(lines[2]))
    lines[3] = lines[3][:9]
    file.write_bytes(b"".join(lines))
    said = metrics_file.cut_off(file, 6, LOGS[:6])
    assert "metrics.jsonl" in said and "damaged or missing" in said
    assert [entry for entry in read(file) if "loss" in entry] == LOGS[:6]


def test_whatever_the_file_holds_each_step_stands_there_once(file):
    rng = random.Random(0)
    whole = file.read_bytes()
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content + whole[: rng.randrange(len(whole))])  # doubles, and half a line
        metrics_file.cut_off(file, 8, LOGS)
        steps = [entry["step"] for entry in read(file) if metrics_file.is_step(entry)]
        assert steps == sorted(set(steps)) and {1, 2, 3, 4, 5, 6, 7, 8} >= set(steps)
        assert metrics_file.read_metrics(file) == read(file)


def test_a_file_that_is_not_there_is_not_made_up(tmp_path):
    assert metrics_file.cut_off(tmp_path / "metrics.jsonl", 8, LOGS) == ""
    assert not list(tmp_path.iterdir())
