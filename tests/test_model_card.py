"""model_card.py: what README.md says about a trained model, to people and to the Hub."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from job import config, model_card
from job.config import load_config
from job.model import hub_id

SNAPSHOT = "/cache/hub/models--someone--some-model/snapshots/0123"


def facts(*overrides, **values):
    job = load_config(config.ROOT / "configs" / "tiny.yaml", list(overrides))
    given = {"config": job, "base": "someone/some-model", "base_folder": None, "format": "lora"}
    return model_card.Facts(**(given | values))


def test_the_metadata_is_what_the_hub_reads(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    model_card.save(tmp_path, facts(base_folder=tmp_path))
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.library_name, data.license, data.pipeline_tag) == (
        "someone/some-model",
        "peft",
        "apache-2.0",
        "text-generation",
    )
    assert {"grpo", "trl", "lora", "matmul"} <= set(data.tags)
    assert data.datasets is None


@pytest.mark.parametrize("form, library", [("merged_16bit", "transformers"), ("gguf", None)])
def test_a_whole_model_is_no_adapter(form, library):
    card = ModelCard(model_card.render(facts(format=form)))
    assert card.data.library_name == library and "lora" not in card.data.tags
    assert "AutoPeftModel" not in card.text and card.text.count("```") == 2


def test_a_base_without_an_id_is_named_without_its_path():
    text = model_card.render(facts(base="/app/models/mine"))
    assert "base_model" not in text and "/app" not in text and "# mine, trained on" in text


def test_a_run_that_continued_from_an_adapter_says_so():
    job = facts().config
    earlier = replace(job, model=replace(job.model, adapter="/app/runs/first/final_model"))
    text = model_card.render(facts(config=earlier))
    assert "continued from the adapter `first/final_model`" in text and "/app" not in text
    assert "continued from" not in model_card.render(facts())


@pytest.mark.parametrize(
    "name, expected",
    [
        ("someone/some-model", "someone/some-model"),
        (SNAPSHOT, "someone/some-model"),
        ("/cache/hub/models--gpt2/snapshots/01", "gpt2"),
        ("/models/some-model", None),
        (str(config.TINY_MODEL), None),
    ],
)
def test_the_id_of_a_base(name, expected):
    assert hub_id(name) == expected


def test_before_and_after_are_told_as_the_evaluation_tells_them(tmp_path):
    assert model_card.read_evaluation(tmp_path) == {}
    (tmp_path / "evaluation.json").write_text("[")
    assert model_card.read_evaluation(tmp_path) == {}
    assert "**Result:** not evaluated" in model_card.render(facts())
    few, many = {"value": 0.41, "low": 0.35, "high": 0.47}, {"value": 0.63, "low": 0.6, "high": 0.7}
    evaluations = [
        {"step": 0, "pass_at": {"1": few, "2": many}, "cheating": few},
        {"step": 40, "pass_at": {"1": many}, "cheating": few},
    ]
    (tmp_path / "evaluation.json").write_text(json.dumps({"evaluations": evaluations[:1]}))
    once = model_card.read_evaluation(tmp_path)
    assert "**Result:** not evaluated" in model_card.render(facts(evaluation=once))
    comparison = {"sentence": "41 % → 63 %, +22 points [15, 29]"}
    found = {"evaluations": evaluations, "comparison": comparison}
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    text = model_card.render(facts(evaluation=model_card.read_evaluation(tmp_path)))
    assert "**Result:** 41 % → 63 %, +22 points [15, 29]\n\n| held-out problems | step 0" in text
    assert "| pass@1 | 41 % [35, 47] | 63 % [60, 70] |" in text and "pass@2" not in text


def test_the_algorithm_the_rewards_and_the_data_are_named():
    text = model_card.render(facts("grpo.algorithm=dr_grpo", "task.type=jsonl"))
    assert "| grpo.algorithm | dr_grpo |" in text and "| grpo.loss_type | dr_grpo |" in text
    assert "| lora.r | 8 |" in text and "- `jsonl`: the file arithmetic.jsonl" in text
    assert "memorised a few dozen programs" in text  # the embedded tiny model
    (row,) = [line for line in text.splitlines() if line.startswith("| rewards |")]
    assert "matches_answer" in row or "correct" in row


def test_a_dataset_of_the_hub_is_linked():
    assert model_card.hub_dataset("openai/gsm8k")
    assert not model_card.hub_dataset("configs/arithmetic.jsonl")
    assert not model_card.hub_dataset(None)


def test_a_layout_of_unsloth_is_loaded_with_unsloth():
    text = model_card.render(facts(base="unsloth/gpt-oss-20b-unsloth-bnb-4bit"))
    assert "FastLanguageModel.from_pretrained" in text


def test_an_adapter_without_a_config_has_a_card_too():
    card = ModelCard(model_card.render(facts(config=None)))
    assert card.data.base_model == "someone/some-model" and "## Training" not in card.text
    assert Path("README.md").name not in card.text
