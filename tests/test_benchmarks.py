"""Benchmarks on the tiny model: rollout.py, tools.py, interpreter.py."""

import json
import sys

import pyarrow
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import interpreter, rollout, sums, tools
from job.config import TINY_MODEL


def test_decoding_is_measured(tmp_path, monkeypatch, capsys):
    own = tmp_path / "own.json"
    keys = ["model.backend=transformers", "lora.target_parameters=null"]
    sizes = ["--sequences", "2", "--tokens", "4", "--json", str(own)]
    monkeypatch.setattr(sys, "argv", ["rollout.py", "--steps", "0", *sizes, *keys])
    assert rollout.main() == 0
    results = json.loads(own.read_text())
    assert [row["engine"] for row in results["decoding"]] == ["graph", "generate"]
    printed = capsys.readouterr().out
    for row in results["decoding"]:
        assert row["sequences"] == 2 and row["floor_ms"] > 0
        assert f"| {row['engine']} | 2 | {row['step_ms']:.2f} |" in printed


@pytest.mark.parametrize(("change", "code"), [(1.19, 0), (1.21, 1), (0.5, 0)])
def test_more_than_a_fifth_slower_is_a_failure(change, code, capsys):
    row = {"engine": "graph", "sequences": 8, "tokens": 128, "step_ms": 5.0}
    before = {"device": "H200", "decoding": [row]}
    after = {"device": "H200", "decoding": [row | {"step_ms": 5.0 * change}]}
    assert rollout.compare(after, before) == code
    assert ("graph, 8 sequences" in capsys.readouterr().out) == (code == 1)


# ---- tools.py


def test_a_script_of_turns_is_decoded_to_its_end(tiny_rollout):
    script = [[3, 5], [4], [2, 2, 9]]
    prompt = list(range(3, 3 + tools.RESULT_TOKENS))
    for _ in range(2):  # with buffers that hold an earlier play
        seconds, idle_s = tools.play(tiny_rollout, prompt, script, 0.001)
        assert seconds >= idle_s >= 0 and tiny_rollout.unfinished == 0
    assert sorted(tiny_rollout.said) == sorted([3, 5, 4, 2, 2, 9] * 2)


@pytest.fixture
def tiny_rollout():
    """A rollout that keeps the number of tokens of each turn."""
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    rollout = tools.open_rollout(model, tokenizer, [[9, 9, 9]] * 3)
    rollout.said = []
    step = rollout.step

    def counted():
        finished = step()
        rollout.said += [len(row.completion_ids) for row in finished]
        return finished

    rollout.step = counted
    return rollout


# ---- interpreter.py


def test_worked_examples_are_right_and_are_not_asked():
    rows, _ = sums.make()
    questions = {row["question"] for row in rows}
    for question, calculation, result in interpreter.EXAMPLES:
        assert eval(calculation) == result and question not in questions
    for name in interpreter.ASKED:
        row = interpreter.row_of(name, rows[0])
        assert row["prompt"][-1]["content"].startswith(rows[0]["question"])
        assert row["answer"] == rows[0]["answer"]
        calls = [message for message in row["prompt"] if "<tool_call>" in message["content"]]
        assert len(calls) == (len(interpreter.EXAMPLES) if name == "with" else 0)


def test_what_is_paid_and_wrong_is_counted(tmp_path):
    rows = [
        {"answer": "Answer: 4", "correct": True, "calls": 1.0, "failures": 0.0},
        {"answer": "4 it is", "correct": True, "calls": 2.0, "failures": 1.0},
        {"answer": "Answer: 4, or 5", "correct": True, "calls": 0.0, "failures": 0.0},
        {"answer": "Answer: 5", "correct": False, "calls": 1.0, "failures": 0.0},
    ]
    path = tmp_path / "completions.parquet"
    rows = [row | {"question": "2 + 2", "cheating": False, "tokens": 10} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = interpreter.judged(path, {"2 + 2": 4})
    assert found["right by the strict judge"] == 0.25 and found["paid as correct"] == 0.75
    # One ends in another integer, and one has the right one in another form
    assert found["paid, and the last integer is wrong"] == 1
    assert found["calls a completion"] == 1.0 and found["failed calls"] == 1
