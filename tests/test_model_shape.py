"""model_shape.py: its counts are those of the models that transformers builds."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from job.model_shape import read_shape

ROOT = Path(__file__).resolve().parent.parent
DATA = json.loads((ROOT / "tests/data/gpu_memory.json").read_text(encoding="utf-8"))
SHAPES = DATA["shapes"] | {
    "tiny": json.loads((ROOT / "tiny_model/config.json").read_text(encoding="utf-8"))
}
SMALL = dict(
    vocab_size=500,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
)
CONFIGS = {
    "llama": {},
    "llama with biases": dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": {},
    "qwen2": {},
    "qwen3": dict(head_dim=16, attention_bias=True),
    "qwen3_moe": dict(
        num_experts=4, moe_intermediate_size=24, num_experts_per_tok=2, mlp_only_layers=[1]
    ),
    "mixtral": dict(num_local_experts=4),
    "gemma": dict(head_dim=16),
    "gemma2": dict(head_dim=16),
    "gemma3_text": dict(head_dim=16),
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, head_dim=16),
}


def on_meta(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_exact(name):
    config = AutoConfig.for_model(name.split()[0], **(SMALL | CONFIGS[name]))
    assert read_shape(config.to_dict()).parameters == on_meta(config)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_exact_for_the_measured_shapes(shape):
    keys = {
        key: value
        for key, value in SHAPES[shape].items()
        if key not in ("quantization_config", "model_type")
    }
    config = AutoConfig.for_model(SHAPES[shape]["model_type"], **keys)
    assert read_shape(SHAPES[shape]).parameters == on_meta(config)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text", "gpt_oss"])
def test_windows_are_those_of_transformers_when_config_json_does_not_list_them(name):
    config = AutoConfig.for_model(name, **(SMALL | CONFIGS[name] | dict(sliding_window=7)))
    listed = config.to_dict()
    kinds = listed.pop("layer_types", None) or ["sliding_attention"] * 6
    assert read_shape(listed).windows == tuple(
        7 if kind == "sliding_attention" else None for kind in kinds
    )


def test_windows_can_be_switched_off():
    config = AutoConfig.for_model("qwen2", **SMALL).to_dict() | dict(
        sliding_window=7, use_sliding_window=False
    )
    assert read_shape(config).windows == (None,) * 6


def test_a_config_without_sizes_is_refused():
    with pytest.raises(ValueError, match="hidden_size, num_attention_heads"):
        read_shape({"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 10})


def test_the_text_model_of_a_multimodal_config_is_read():
    text = AutoConfig.for_model("gemma3_text", **(SMALL | CONFIGS["gemma3_text"])).to_dict()
    assert read_shape({"model_type": "gemma3", "text_config": text}) == read_shape(text)
