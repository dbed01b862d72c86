"""exporting.py and export.py: what a run has trained, as files that others load."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import export as script
from job import base_weights, config, export_check, exporting, hub, model
from job.base_weights import BaseWeights
from job.errors import ConfigError, ExportError, OutputError
from job.lora_weights import read_adapter
from job.run_folder import RunFolder

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SHAPE = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
QUANTISED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


# ---- bases and adapters to export


def save_base(folder, architecture, weights, shards=1):
    """A base model as the Hub has them, with the tokenizer of the tiny model."""
    folder.mkdir(parents=True)
    for file in config.TINY_MODEL.glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(config.TINY_MODEL / "chat_template.jinja", folder)
    (folder / "config.json").write_text(json.dumps(architecture))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names, weight_map = sorted(weights), {}
    for number in range(shards):
        file = f"model-{number}.safetensors"
        part = names[number::shards]
        save_file({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def random_weights(model_config):
    """{name: bfloat16 tensor} of a model with random weights."""
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
    weights = {}
    for name, tensor in built.state_dict().items():
        random = torch.randn(tensor.shape) * 0.1
        if "norm" in name:
            random += 1.0
        weights[name] = random.bfloat16()
    return weights


@pytest.fixture(scope="module")
def mxfp4_base(tmp_path_factory):
    """A tiny gpt-oss whose experts are packed as in the published one, in two files."""
    model_config = GptOssConfig(num_local_experts=4, num_experts_per_tok=2, **SHAPE)
    weights = random_weights(model_config)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = weights.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        weights[f"{name}_blocks"] = blocks
        weights[f"{name}_scales"] = torch.randint(
            120, 125, (experts, outputs, inputs // 32), dtype=torch.uint8
        )
    architecture = model_config.to_dict() | {"quantization_config": QUANTISED}
    return save_base(tmp_path_factory.mktemp("mxfp4") / "base", architecture, weights, shards=2)


@pytest.fixture(scope="module")
def dense_base(tmp_path_factory):
    """A tiny Llama in bfloat16."""
    model_config = LlamaConfig(**SHAPE)
    weights = random_weights(model_config)
    return save_base(tmp_path_factory.mktemp("dense") / "base", model_config.to_dict(), weights)


def save_adapter(folder, base, target_parameters=None, modules=ATTENTION, **options):
    """An adapter with random weights, in a folder like final_model."""
    weights = BaseWeights(base)
    plain = {key: v for key, v in weights.config.items() if key != "quantization_config"}
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(model_config_of(plain), dtype=torch.float32)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules=modules,
        target_parameters=target_parameters, **options,
    )  # fmt: skip
    adapted = get_peft_model(built, lora).to_empty(device="cpu")
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    for file in [*base.glob("*token*"), base / "chat_template.jinja"]:
        shutil.copy(file, folder)
    return folder


def model_config_of(architecture):
    from transformers import AutoConfig

    return AutoConfig.for_model(**architecture)


@pytest.fixture
def in_this_process(monkeypatch):
    """Compares in this process: a fresh one takes seconds to import its libraries."""

    def compare(job, folder):
        spec = {
            "format": job.format,
            "adapter": str(job.source),
            "base": job.base and str(job.base),
            "export": str(folder),
            "prompts": exporting.prompts_of(None)[:1],
        }
        verdict = export_check.check(json.loads(json.dumps(spec)))
        verdict["summary"] = exporting.summary(verdict)
        if not verdict["passed"]:
            raise ExportError(verdict["summary"])
        return verdict

    monkeypatch.setattr(exporting, "compare", compare)


def verdict_of(folder):
    return json.loads((folder / "export.json").read_text())["verdict"]


# ---- the formats


def test_an_attention_adapter_leaves_the_bytes_of_mxfp4_experts(
    mxfp4_base, tmp_path, in_this_process, monkeypatch
):
    monkeypatch.setattr(exporting, "SHARD_BYTES", 100_000)  # several files
    adapter = save_adapter(tmp_path / "run" / "final_model", mxfp4_base)
    made = exporting.export(adapter, "mxfp4")
    assert made == tmp_path / "run" / "exports" / "mxfp4"
    assert len(list(made.glob("*.safetensors"))) > 2
    before, after = BaseWeights(mxfp4_base), BaseWeights(made)
    assert before.files.keys() == after.files.keys()
    changed = set()
    for name in before.files:
        one, other = before.stored(name), after.stored(name)
        assert one.dtype == other.dtype and one.shape == other.shape
        if not torch.equal(one, other):
            changed.add(name)
    assert changed == {name for name in before.files if name.endswith("_proj.weight")}
    assert after.config["quantization_config"] == QUANTISED
    tokens = verdict_of(made)["tokens"]
    assert tokens["passed"] and tokens["kl"] < 0.01 * tokens["kl_without_adapter"]


def test_every_file_has_its_sha256_and_nothing_else_is_left(dense_base, tmp_path, in_this_process):
    adapter = save_adapter(tmp_path / "run" / "final_model", dense_base)
    made = exporting.export(adapter.parent, "merged_16bit")
    said = json.loads((made / "export.json").read_text())
    files = {path.name for path in made.iterdir()} - {"export.json"}
    assert said["files"].keys() == files and "README.md" in files
    for name, entry in said["files"].items():
        content = (made / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert sorted(path.name for path in made.parent.iterdir()) == ["merged_16bit"]


@pytest.mark.parametrize("experts", [None, EXPERTS])
def test_merged_experts_are_what_peft_merges(mxfp4_base, tmp_path, in_this_process, experts):
    adapter = save_adapter(tmp_path / "run" / "final_model", mxfp4_base, experts)
    made = exporting.export(adapter, "merged_16bit")
    place = ("cpu", "float32")
    merged = export_check.load_adapted(mxfp4_base, adapter, place).merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(made, dtype="auto")
    assert ours.dtype == torch.bfloat16
    theirs = merged.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs[name].bfloat16()), name
    tensors = verdict_of(made)["tensors"]
    assert tensors["merged"] == 2 * (len(ATTENTION) + len(experts or []))
    assert 0.3 < tensors["largest_error_steps"] <= 0.5


def test_lora_is_the_same_adapter_with_its_base_named(dense_base, tmp_path, in_this_process):
    adapter = save_adapter(tmp_path / "run" / "final_model", dense_base)
    made = exporting.export(adapter, "lora")
    file = "adapter_model.safetensors"
    assert (made / file).read_bytes() == (adapter / file).read_bytes()
    tokens = verdict_of(made)["tokens"]
    assert tokens["max_logit_difference"] == 0 and tokens["greedy_equal"] == tokens["greedy_total"]


def test_lora_needs_no_base_on_this_machine(dense_base, tmp_path, in_this_process):
    adapter = save_adapter(tmp_path / "run" / "final_model", dense_base)
    rename_base(adapter, "someone/not-in-the-cache")
    made = exporting.export(adapter, "lora")
    assert "not on this machine" in verdict_of(made)["tokens"]["skipped"]


def rename_base(adapter, name):
    file = adapter / "adapter_config.json"
    values = json.loads(file.read_text()) | {"base_model_name_or_path": str(name)}
    file.write_text(json.dumps(values))


def test_trained_biases_are_exported(dense_base, tmp_path, in_this_process):
    model_config = LlamaConfig(**SHAPE, attention_bias=True)
    base = save_base(tmp_path / "base", model_config.to_dict(), random_weights(model_config))
    adapter = save_adapter(tmp_path / "run" / "final_model", base, bias="lora_only")
    made = exporting.export(adapter, "merged_16bit")
    name = "model.layers.1.self_attn.o_proj.bias"
    trained = load_file(adapter / "adapter_model.safetensors")
    (bias,) = [trained[key] for key in trained if "1.self_attn.o_proj" in key and "bias" in key]
    assert torch.equal(BaseWeights(made).stored(name), bias.bfloat16())


def test_a_base_in_4_bit_is_unpacked_and_named(dense_base, tmp_path, in_this_process, capsys):
    from bitsandbytes.functional import quantize_4bit

    weights, unpacked = {}, {}
    for name, tensor in load_file(dense_base / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            weights[name] = tensor
            continue
        packed, state = quantize_4bit(
            tensor, compress_statistics=True, quant_type="nf4", quant_storage=torch.uint8
        )
        weights[name] = packed
        unpacked[name] = tensor
        for key, value in state.as_dict(packed=True).items():
            weights[f"{name}.{key}"] = value
    quantisation = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
    }  # fmt: skip
    architecture = json.loads((dense_base / "config.json").read_text())
    architecture["quantization_config"] = quantisation
    base = save_base(tmp_path / "base-4bit", architecture, weights)
    adapter = save_adapter(tmp_path / "run" / "final_model", base)
    made = exporting.export(adapter, "merged_16bit")
    assert "which the adapter was trained on" in capsys.readouterr().out
    assert "quantised to 4 bit by bitsandbytes" in (made / "README.md").read_text()
    for name, tensor in unpacked.items():
        off = BaseWeights(base).read(name).float() - tensor.float()
        assert 0 < off.abs().mean() < 0.02, name
    assert verdict_of(made)["tensors"]["merged"] == 8

    other = exporting.export(
        adapter, "merged_16bit", output=tmp_path / "other", base=str(dense_base)
    )
    assert f"trained on {base}" in capsys.readouterr().out
    assert "base-4bit" in (other / "README.md").read_text()


def test_unsloths_4_bit_experts_are_put_back_into_their_stacks(tmp_path):
    """Each expert is a module of its own there, with its matrix transposed."""
    from bitsandbytes.functional import quantize_4bit

    expert = torch.randn(2, 32, 64).bfloat16()  # (experts, out, in)
    weights = {"model.layers.0.mlp.router.linear.weight": torch.ones(2, 32)}
    for number in range(2):
        name = f"model.layers.0.mlp.experts.gate_up_projs.{number}"
        packed, state = quantize_4bit(expert[number], quant_type="nf4", quant_storage=torch.uint8)
        weights[f"{name}.weight"] = packed
        weights[f"{name}.bias"] = torch.full((32,), float(number))
        for key, value in state.as_dict(packed=True).items():
            weights[f"{name}.weight.{key}"] = value
    architecture = {
        "model_type": "gpt_oss",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }
    base = BaseWeights(save_base(tmp_path / "base", architecture, weights))
    layer = "model.layers.0.mlp"
    assert set(base.parameters) == {
        f"{layer}.router.weight",
        f"{layer}.experts.gate_up_proj",
        f"{layer}.experts.gate_up_proj_bias",
    }
    stack = base.read(f"{layer}.experts.gate_up_proj")
    assert stack.shape == base.shape(f"{layer}.experts.gate_up_proj") == (2, 64, 32)
    assert (stack.transpose(1, 2) - expert).abs().max() < 0.8  # a step of nf4 at this scale
    both = torch.stack([stack.transpose(1, 2).flatten(), expert.flatten()])
    assert torch.corrcoef(both.float())[0, 1] > 0.98
    bias = base.read(f"{layer}.experts.gate_up_proj_bias")
    assert bias.shape == base.shape(f"{layer}.experts.gate_up_proj_bias") == (2, 32)
    assert bias[1].unique().tolist() == [1.0]
