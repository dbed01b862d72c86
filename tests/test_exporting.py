"""exporting.py and export.py: what a run has trained, as files that others load."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from job import config
from job.errors import ConfigError, ExportError, OutputError
from job.export import export_check, exporting
from job.export.base_weights import BaseWeights
from job.mxfp4 import unpack_mxfp4

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

    def compare(job, folder, tensors_only):
        spec = {
            "tensors_only": tensors_only,
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


def edit_config(adapter, **values):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rename_base(adapter, name):
    edit_config(adapter, base_model_name_or_path=str(name))


def test_lora_needs_no_adapter_that_can_be_merged(dense_base, tmp_path, in_this_process):
    adapter = save_adapter(tmp_path / "run" / "final_model", dense_base, use_dora=True)
    made = exporting.export(adapter, "lora")
    assert verdict_of(made)["tokens"]["kl"] == 0


def test_trained_biases_are_exported(dense_base, tmp_path, in_this_process):
    model_config = LlamaConfig(**SHAPE, attention_bias=True)
    base = save_base(tmp_path / "base", model_config.to_dict(), random_weights(model_config))
    adapter = save_adapter(tmp_path / "run" / "final_model", base, bias="lora_only")
    made = exporting.export(adapter, "merged_16bit")
    name = "model.layers.1.self_attn.o_proj.bias"
    trained = load_file(adapter / "adapter_model.safetensors")
    (bias,) = [trained[key] for key in trained if "1.self_attn.o_proj" in key and "bias" in key]
    assert torch.equal(BaseWeights(made).stored(name), bias.bfloat16())


def test_modules_that_were_trained_as_a_whole_take_their_place(
    dense_base, tmp_path, in_this_process
):
    options = {"modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]}
    adapter = save_adapter(tmp_path / "run" / "final_model", dense_base, **options)
    trained = load_file(adapter / "adapter_model.safetensors")
    made = BaseWeights(exporting.export(adapter, "merged_16bit"))
    (embedding,) = [trained[key] for key in trained if "embed_tokens" in key]
    assert torch.equal(made.stored("model.embed_tokens.weight"), embedding.bfloat16())
    head = trained["base_model.model.lm_head.base_layer.weight"].double()
    a, b = (trained[f"base_model.model.lm_head.lora_{part}.weight"].double() for part in "AB")
    off = made.stored("lm_head.weight") - (head + 3 * b @ a)
    assert off.abs().max() < 0.01


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
    assert "which the adapter was trained on" in capsys.readouterr().err
    assert "quantised to 4 bit by bitsandbytes" in (made / "README.md").read_text()
    for name, tensor in unpacked.items():
        off = BaseWeights(base).read(name).float() - tensor.float()
        assert 0 < off.abs().mean() < 0.02, name
    assert verdict_of(made)["tensors"]["merged"] == 8

    other = exporting.export(
        adapter, "merged_16bit", output=tmp_path / "other", base=str(dense_base)
    )
    assert f"trained on {base}" in capsys.readouterr().err
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


# ---- what the comparison finds


def test_a_wrong_sum_is_found_and_nothing_is_left(
    dense_base, tmp_path, in_this_process, monkeypatch
):
    """One weight of one matrix, off by one unit in the last place."""
    adapter = save_adapter(tmp_path / "run" / "final_model", dense_base)
    right = exporting.merged_tensor

    def wrong(job, name):
        tensor = right(job, name)
        if name == "model.layers.1.self_attn.q_proj.weight":
            tensor.view(torch.int16)[3, 5] += 1
        return tensor

    monkeypatch.setattr(exporting, "merged_tensor", wrong)
    with pytest.raises(ExportError, match="1 tensors differ, such as model.layers.1.self_attn.q"):
        exporting.export(adapter, "merged_16bit")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["final_model"]


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.mlp.experts.down_proj_blocks"])
def test_a_changed_byte_of_what_was_to_stay_is_found(
    mxfp4_base, tmp_path, in_this_process, monkeypatch, name
):
    adapter = save_adapter(tmp_path / "run" / "final_model", mxfp4_base)
    right = exporting.mxfp4_tensor

    def wrong(job, asked):
        tensor = right(job, asked).clone()
        if asked == name:
            tensor.view(torch.uint8).flatten()[7] ^= 1
        return tensor

    monkeypatch.setattr(exporting, "mxfp4_tensor", wrong)
    with pytest.raises(ExportError, match=f"1 tensors differ, such as {name.split('_blocks')[0]}"):
        exporting.export(adapter, "mxfp4")


def test_a_model_that_says_something_else_is_found(dense_base, tmp_path, monkeypatch):
    """The weights are right, but config.json makes another model of them."""
    adapter = save_adapter(tmp_path / "run" / "final_model", dense_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "compare", lambda *_: {"summary": ""})
        made = exporting.export(adapter, "merged_16bit")
    file = made / "config.json"
    values = json.loads(file.read_text())
    values["rope_parameters"]["rope_theta"] = 3.0
    file.write_text(json.dumps(values))
    asked = {"format": "merged_16bit", "adapter": str(adapter), "base": str(dense_base)}
    asked["tensors_only"] = False
    verdict = export_check.check(
        asked | {"export": str(made), "prompts": exporting.prompts_of(None)}
    )
    assert verdict["tensors"]["passed"] and not verdict["tokens"]["passed"]


def test_a_model_that_does_not_fit_is_compared_by_tensors_alone(
    dense_base, tmp_path, in_this_process, monkeypatch
):
    adapter = save_adapter(tmp_path / "run" / "final_model", dense_base)
    monkeypatch.setattr(export_check, "free_memory_bytes", lambda: 1000)
    made = exporting.export(adapter, "merged_16bit")
    verdict = verdict_of(made)
    assert verdict["tensors"]["merged"] == 8
    assert "to run the model takes a GPU" in verdict["tokens"]["skipped"]
    quick = exporting.export(adapter, "lora", tensors_only=True)
    assert verdict_of(quick)["tokens"]["skipped"] == "--compare tensors"


def test_where_a_model_is_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(export_check, "free_memory_bytes", lambda: 8e9)
    assert export_check.find_place(10**9) == ("cpu", "float32")
    monkeypatch.setattr(export_check, "free_memory_bytes", lambda: 4e9)
    assert export_check.find_place(10**9) == ("cpu", "bfloat16")
    assert export_check.find_place(2 * 10**9) is None


@given(st.lists(st.integers(0, 255), min_size=16, max_size=16), st.integers(0, 254))
def test_mxfp4_blocks_are_unpacked_as_transformers_does(values, scale):
    blocks = torch.tensor(values, dtype=torch.uint8).reshape(1, 1, 16)
    scales = torch.tensor([[scale]], dtype=torch.uint8)
    ours = unpack_mxfp4(blocks, scales)
    theirs = convert_moe_packed_tensors(blocks[None], scales[None])[0].T
    if 2 <= scale <= 252:  # beyond them bfloat16 ends
        assert torch.equal(ours, theirs)
    pair = values[0] & 15
    magnitude = [0, 0.5, 1, 1.5, 2, 3, 4, 6][pair & 7] * (-1) ** (pair >> 3)
    if 2 <= scale <= 252:
        assert ours[0, 0].item() == magnitude * 2.0 ** (scale - 127)


# ---- what cannot be exported is one clear line, and nothing is written


def refused(kind, match, source, form="merged_16bit", **options):
    """Exports, and checks that it is refused and that nothing was written."""
    run = source
    before = sorted(path for path in run.rglob("*"))
    with pytest.raises(kind, match=match) as caught:
        exporting.export(source, form, **options)
    assert "\n" not in str(caught.value)
    assert sorted(path for path in run.rglob("*")) == before


@pytest.fixture
def dense_run(dense_base, tmp_path):
    save_adapter(tmp_path / "run" / "final_model", dense_base)
    return tmp_path / "run"


def test_a_missing_run_and_an_empty_one(tmp_path):
    refused(ConfigError, "nowhere: there is no such folder", tmp_path / "nowhere")
    (tmp_path / "checkpoint-3").mkdir()  # not whole
    refused(ConfigError, "neither final_model nor a whole checkpoint", tmp_path)


def test_a_run_without_final_model_gives_its_last_checkpoint(dense_run, in_this_process, capsys):
    for step in (8, 10, 9):
        checkpoint = dense_run / f"checkpoint-{step}"
        shutil.copytree(dense_run / "final_model", checkpoint)
        state = {"global_step": step, "max_steps": 20, "log_history": []}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    shutil.rmtree(dense_run / "final_model")
    (dense_run / "checkpoint-10" / "trainer_state.json").write_text("{")  # its save was killed
    made = exporting.export(dense_run, "lora")
    assert "its last checkpoint is taken, checkpoint-9" in capsys.readouterr().err
    assert json.loads((made / "export.json").read_text())["adapter"] == "checkpoint-9"


def test_an_adapter_of_another_architecture(dense_run, mxfp4_base, tmp_path):
    other = LlamaConfig(**SHAPE | {"hidden_size": 32})
    base = save_base(tmp_path / "other", other.to_dict(), random_weights(other))
    refused(ConfigError, "belongs to another architecture: .*q_proj", dense_run, base=str(base))
    adapter = save_adapter(tmp_path / "moe", mxfp4_base, EXPERTS)
    refused(ConfigError, "another architecture", adapter, base=str(dense_run_base(dense_run)))


def test_a_lora_export_over_another_architecture(dense_run, tmp_path, in_this_process):
    other = LlamaConfig(**SHAPE | {"hidden_size": 32})
    base = save_base(tmp_path / "other", other.to_dict(), random_weights(other))
    refused(ExportError, "cannot load base .* adapter: .*size mismatch", dense_run, "lora",
            base=str(base))  # fmt: skip


def dense_run_base(run):
    values = json.loads((run / "final_model" / "adapter_config.json").read_text())
    return values["base_model_name_or_path"]


def test_a_base_that_is_not_there(dense_run):
    rename_base(dense_run / "final_model", "/models/gone")
    refused(ConfigError, "the base /models/gone .* name it with --base", dense_run)
    rename_base(dense_run / "final_model", "someone/not-in-the-cache")
    refused(ConfigError, "the base someone/not-in-the-cache .* name it with --base", dense_run)


def test_damaged_files(dense_run, dense_base, tmp_path):
    base = tmp_path / "damaged"
    shutil.copytree(dense_base, base)
    rename_base(dense_run / "final_model", base)
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:-100])
    refused(ConfigError, "model.safetensors is damaged", dense_run)
    (base / "model.safetensors").unlink()
    refused(ConfigError, "no model.safetensors", dense_run)
    (base / "config.json").write_text("{")
    refused(ConfigError, "config.json cannot be read", dense_run)

    file = dense_run / "final_model" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    refused(ConfigError, "the adapter cannot be read", dense_run)
    file.unlink()
    refused(ConfigError, "the adapter cannot be read", dense_run)


def test_a_missing_shard(mxfp4_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(mxfp4_base, base)
    save_adapter(tmp_path / "run" / "final_model", base)
    (base / "model-1.safetensors").unlink()
    refused(ConfigError, "model-1.safetensors is missing", tmp_path / "run", "mxfp4")


def test_weights_that_are_not_finite(dense_run):
    file = dense_run / "final_model" / "adapter_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, file)
    refused(ConfigError, "values that are not finite", dense_run)


def test_kinds_of_adapters_that_are_not_merged(dense_base, tmp_path):
    save_adapter(tmp_path / "run" / "final_model", dense_base, use_dora=True)
    refused(ConfigError, "only plain LoRA adapters", tmp_path / "run")
    other = save_adapter(tmp_path / "other", dense_base)
    edit_config(other, init_lora_weights="pissa_niter_1")
    refused(ConfigError, "init_lora_weights is pissa_niter_1", tmp_path / "other")


def test_a_parameter_that_the_base_does_not_store(tmp_path):
    tied = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    weights = random_weights(tied)
    del weights["lm_head.weight"]
    base = save_base(tmp_path / "base", tied.to_dict(), weights)
    save_adapter(tmp_path / "run" / "final_model", base, modules=["q_proj", "lm_head"])
    refused(ConfigError, "changes lm_head.weight, which the base stores in parts or shares",
            tmp_path / "run")  # fmt: skip


def test_what_cannot_become_mxfp4(dense_run, mxfp4_base, tmp_path):
    refused(ConfigError, "is not a gpt-oss in MXFP4; name one with --base", dense_run, "mxfp4")
    adapter = save_adapter(tmp_path / "experts", mxfp4_base, EXPERTS)
    refused(ConfigError, r"also changes the experts \(4 of its 12 parameters", adapter, "mxfp4")


def test_too_little_disk_or_memory(dense_run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(exporting.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10))
        refused(OutputError, "on the disk of .*, and 0.0 GB are free", dense_run)
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "free_memory_bytes", lambda: 10**8)
        refused(ConfigError, "takes 1.0 GB of memory, and 0.1 GB are free", dense_run)


def test_an_output_that_exists_or_cannot_be_made(dense_run, tmp_path):
    refused(OutputError, "exists; remove it", dense_run, output=tmp_path)
    (tmp_path / "file").touch()
    refused(OutputError, "cannot write", dense_run, output=tmp_path / "file" / "export")


def test_an_unknown_format(dense_run):
    refused(ConfigError, "no merged_16bits; did you mean merged_16bit", dense_run, "merged_16bits")


def test_a_run_that_is_stopped_leaves_nothing(dense_run, monkeypatch):
    def stop(*_):
        raise SystemExit(143)

    monkeypatch.setattr(exporting, "compare", stop)
    refused(SystemExit, "143", dense_run)


def test_what_a_killed_export_left_is_removed_by_the_next(dense_run, in_this_process):
    left = dense_run / "exports" / ".lora.unfinished"
    left.mkdir(parents=True)
    (left / "half").touch()
    made = exporting.export(dense_run, "lora")
    assert [path.name for path in made.parent.iterdir()] == ["lora"]
    assert not (made / "half").exists()


def test_two_exports_do_not_write_beside_each_other(dense_run):
    (dense_run / "exports").mkdir()
    with exporting.locked(dense_run / "exports" / "mxfp4"):
        refused(OutputError, "another export is writing to", dense_run)


# ---- gguf


CONVERTER = """
import sys
from pathlib import Path
folder, target = Path(sys.argv[1]), Path(sys.argv[3])
assert (folder / "model.safetensors").is_file() and sys.argv[2] == "--outfile"
target.write_bytes({content!r})
"""


def test_gguf_through_the_converter_of_llama_cpp(dense_run, tmp_path, in_this_process, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(ConfigError, "convert_hf_to_gguf.py is not in PATH; put a checkout", dense_run, "gguf")
    converter = tmp_path / "convert_hf_to_gguf.py"
    monkeypatch.setenv("CONVERT_HF_TO_GGUF", str(converter))
    refused(ConfigError, "is not at .*convert_hf_to_gguf.py", dense_run, "gguf")
    converter.write_text("raise SystemExit('this model is not supported')")
    refused(ExportError, "failed: this model is not supported", dense_run, "gguf")
    converter.write_text(CONVERTER.format(content=b"no"))
    refused(ExportError, "wrote no GGUF file", dense_run, "gguf")
    converter.write_text(CONVERTER.format(content=b"GGUF..."))
    made = exporting.export(dense_run, "gguf")
    assert sorted(path.name for path in made.iterdir()) == ["README.md", "export.json", "run.gguf"]
    assert "not read back" in verdict_of(made)["summary"]


# ---- the whole command


SCRIPT = config.ROOT / "export.py"


def run_script(*arguments):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow  # starts several processes that import torch
def test_the_command_compares_in_a_fresh_process(mxfp4_base, tmp_path):
    save_adapter(tmp_path / "run" / "final_model", mxfp4_base)
    done = run_script(tmp_path / "run", "--format", "mxfp4")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "run" / "exports" / "mxfp4"
    assert f"{made}  29 tensors equal to the bit, 8 merged" in done.stdout
    assert (made / "export.json").is_file()

    again = run_script(tmp_path / "run", "--format", "mxfp4")
    assert again.returncode == 4 and re.fullmatch("error: .* exists; remove it.*\n", again.stderr)
    missing = run_script(tmp_path / "nowhere", "--format", "lora")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1


@pytest.mark.slow  # starts a process that imports torch
def test_a_signal_leaves_nothing(dense_run):
    process = subprocess.Popen(
        [sys.executable, SCRIPT, dense_run, "--format", "merged_16bit"],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("comparing"):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert [path.name for path in dense_run.iterdir()] == ["final_model"]


NO_NETWORK = """
import os, socket, sys
def refuse(*arguments, **options):
    print("a network address was looked up or connected to", flush=True)
    os._exit(99)
socket.socket.connect = socket.getaddrinfo = refuse
import export
sys.exit(export.main(sys.argv[1:]))
"""


@pytest.mark.slow  # starts processes that import torch
def test_a_base_in_the_cache_needs_no_network_and_is_named_by_its_id(dense_base, tmp_path):
    repository = tmp_path / "hub" / "models--someone--some-model"
    shutil.copytree(dense_base, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    adapter = save_adapter(tmp_path / "run" / "final_model", dense_base)
    rename_base(adapter, "someone/some-model")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, adapter.parent, "--format", "merged_16bit"],
        cwd=config.ROOT,
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = tmp_path / "run" / "exports" / "merged_16bit"
    assert json.loads((made / "export.json").read_text())["base"] == "someone/some-model"
    assert "base_model: someone/some-model" in (made / "README.md").read_text()
