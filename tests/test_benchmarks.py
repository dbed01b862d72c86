"""benchmarks/rollout.py on the tiny model: its numbers are there, and a slower run is noticed."""

import json
import sys

import pytest

from benchmarks import rollout


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
