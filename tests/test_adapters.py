"""adapters.py: training starts from an adapter. model_checks.py: which modules an adapter gets."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from job import config, model_checks
from job.adapters import drop_reference, read_adapter
from job.config import TINY_MODEL, load_config
from job.errors import ConfigError
from job.model import find_model, load_model

TINY = config.ROOT / "configs" / "tiny.yaml"


def make_adapter(folder, r=4):
    """An adapter on the tiny model that changes what it says."""
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype="float32")
    settings = LoraConfig(r=r, lora_alpha=12, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    """The folder of an adapter, as SFT leaves it."""
    folder = tmp_path_factory.mktemp("sft")
    make_adapter(folder)
    return folder


@pytest.fixture
def copy(sft, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(sft, tmp_path / "copy")


def change(folder, **keys):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_an_adapter_decides_its_base_and_its_shape(sft):
    job = load_config(None, [f"model.adapter={sft}", "lora.lora_dropout=0.1"])
    assert job.model.name == str(TINY_MODEL) and job.model.reference == "adapter"
    assert (job.lora.r, job.lora.lora_alpha, job.lora.lora_dropout) == (4, 12, 0.1)
    assert sorted(job.lora.target_modules) == ["q_proj", "v_proj"]
    assert any("the base of the adapter" in notice for notice in job.notices)
    # What config.yaml says, or a file that agrees, is no contradiction
    load_config(TINY, [f"model.adapter={sft}", "lora.target_parameters=null", "lora.r=4"])


def test_what_a_run_leaves_is_started_from_as_its_config_says(copy, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoint-9").mkdir(parents=True)
    shutil.copytree(copy, run / "checkpoint-20")
    (run / "config.yaml").write_text("model: {name: tiny, quantization: none}")
    assert read_adapter(str(run)).folder.name == "checkpoint-20"
    shutil.copytree(copy, run / "final_model")
    assert read_adapter(str(run)).folder.name == "final_model"
    job = load_config(None, [f"model.adapter={run}"])
    assert (job.model.name, job.model.quantization) == ("tiny", "none")
    moved = load_config(None, [f"model.adapter={run}", f"model.name={TINY_MODEL}"])
    assert moved.model.name == str(TINY_MODEL)
    assert any("is taken for the base of the adapter, which names tiny" in notice
               for notice in moved.notices)  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "overrides", "message"),
    [
        ({}, ["lora.r=8"], "lora.r: 8, but the adapter in .* has 4; write that, or leave it out"),
        ({}, ["lora.target_modules=all-linear"], "lora.target_modules: all-linear, but"),
        ({"use_dora": True}, [], "model.adapter: .* has use_dora, which cannot .*; merge it into"),
        ({"modules_to_save": ["lm_head"]}, [], "model.adapter: .* has modules_to_save"),
        ({"init_lora_weights": "pissa"}, [], "model.adapter: .* has init_lora_weights"),
        ({"alpha_pattern": {"q_proj": 1}}, [], "model.adapter: .* has alpha_pattern"),
        ({"peft_type": "IA3"}, [], "model.adapter: .* is of the type IA3; only LoRA"),
        ({"base_model_name_or_path": None}, [], "model.adapter: .* names no base_model"),
    ],
)
def test_what_contradicts_an_adapter_is_refused(copy, keys, overrides, message):
    change(copy, **keys)
    with pytest.raises(ConfigError, match=message):
        load_config(None, [f"model.adapter={copy}", *overrides])


def test_a_folder_without_an_adapter_is_one_clear_line(copy, tmp_path):
    with pytest.raises(ConfigError, match="^model.adapter: there is no folder nowhere$"):
        load_config(None, ["model.adapter=nowhere"])
    with pytest.raises(ConfigError, match="^model.adapter: .* holds no adapter"):
        load_config(None, [f"model.adapter={tmp_path}"])
    (copy / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match="^model.adapter: .*adapter_config.json cannot be read"):
        load_config(None, [f"model.adapter={copy}"])


def test_weights_that_are_missing_or_damaged_are_seen_at_once(copy):
    file = copy / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ConfigError, match="^model.adapter: .*adapter_model.safetensors is damaged"):
        load_config(None, [f"model.adapter={copy}"])
    file.unlink()
    with pytest.raises(ConfigError, match="^model.adapter: .* has no weights"):
        load_config(None, [f"model.adapter={copy}"])


def test_training_starts_with_the_weights_of_the_adapter(sft, copy):
    job = load_config(TINY, [f"model.adapter={sft}", "lora.target_parameters=null"])
    model, tokenizer = load_model(job.model, job.lora)
    ids = tokenizer("def matmul(A, B):", return_tensors="pt")
    with torch.no_grad():
        started = model(**ids).logits
        expected = make_adapter(copy)(**ids).logits
        with model.disable_adapter():
            base = model(**ids).logits
    assert torch.allclose(started, expected, atol=1e-5) and not torch.allclose(started, base)
    trained = {name.split(".lora_")[0] for name, weight in model.named_parameters()
               if weight.requires_grad}  # fmt: skip
    assert trained and all(name.endswith(("q_proj", "v_proj")) for name in trained)


def test_an_adapter_with_other_weights_than_it_says_is_refused(copy):
    change(copy, r=2)
    job = load_config(TINY, [f"model.adapter={copy}", "lora.target_parameters=null"])
    with pytest.raises(ConfigError, match=f"{copy}: the adapter does not fit tiny, or"):
        load_model(job.model, job.lora)


def test_a_result_is_used_without_what_it_was_started_from(copy, tmp_path):
    """The folder of model.adapter may be gone by then."""
    run = tmp_path / "run"
    shutil.copytree(copy, run / "final_model")
    (run / "final_model" / "chat_template.jinja").write_text("{{ messages }}")
    config.save(load_config(TINY, [f"model.adapter={copy}", "lora.target_parameters=null"]),
                run / "config.yaml")  # fmt: skip
    shutil.rmtree(copy)
    job = find_model(str(run)).config()
    assert job.model.adapter is None and job.lora.r == 4
    assert job.model.chat_template == str(run / "final_model" / "chat_template.jinja")


# ---- the reference of the KL penalty


def test_without_its_copy_the_penalty_compares_with_the_base(copy):
    model = make_adapter(copy)
    drop_reference(model)  # where beta is 0 there is none
    model.add_adapter("ref", model.peft_config["default"])
    drop_reference(model)
    assert list(model.peft_config) == ["default"]


@pytest.mark.slow  # trains twice
def test_the_penalty_begins_at_zero_against_the_adapter_and_above_against_the_base(
    sft, tmp_path, run_job
):
    kl = {}
    for reference in ("adapter", "base"):
        run = tmp_path / reference
        keys = [f"grpo.output_dir={run}", f"model.adapter={sft}", "lora.target_parameters=null"]
        keys += [f"model.reference={reference}", "grpo.max_steps=1", "task.timing_pairs=1"]
        result = run_job("--config", TINY, *keys, "grpo.per_device_train_batch_size=8")
        assert result.returncode == 0, result.stderr
        kl[reference] = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["kl"]
        assert f"adapter: {sft}" in result.stdout
    assert abs(kl["adapter"]) < 1e-6 and kl["base"] > 1e-3


def test_unsloth_has_no_other_reference_than_the_base(sft, monkeypatch):
    monkeypatch.setattr(model_checks, "choose_backend", lambda model_config: "unsloth")
    adapter = [f"model.adapter={sft}", "lora.target_parameters=null"]
    with pytest.raises(ConfigError, match="^model.reference: Unsloth keeps the model near the ba"):
        model_checks.check_model(load_config(TINY, adapter))
    for way_out in ("model.reference=base", "grpo.beta=0"):
        model_checks.check_model(load_config(TINY, [*adapter, way_out]))


# ---- which modules an adapter gets

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("architecture", "targets", "expected"),
    [
        (Phi3Config, None, "all-linear"),
        (LlamaConfig, None, list(model_checks.ATTENTION)),
        (Phi3Config, "[qkv_proj]", ["qkv_proj"]),  # the user knows
    ],
)
def test_fused_projections_get_all_linear_layers(architecture, targets, expected, tmp_path):
    architecture(**SMALL).save_pretrained(tmp_path)
    overrides = [f"model.name={tmp_path}", "model.backend=transformers", "model.quantization=none"]
    if targets:
        overrides.append(f"lora.target_modules={targets}")
    job, notices = model_checks.settle_targets(load_config(None, overrides))
    assert job.lora.target_modules == expected
    assert len(notices) == (expected == "all-linear")
    assert all("has no q_proj, k_proj, v_proj; all-linear takes" in notice for notice in notices)
    model_checks.check_model(job)
    model = AutoModelForCausalLM.from_config(architecture(**SMALL))
    adapted = get_peft_model(model, LoraConfig(target_modules=job.lora.target_modules))
    names = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in adapted.named_parameters()
             if ".lora_" in name}  # fmt: skip
    if expected == "all-linear":
        assert names == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    else:
        assert names == set(expected)


def test_the_default_modules_are_those_of_the_config():
    assert load_config().lora.target_modules == list(model_checks.ATTENTION)
