"""model.py: loading on the CPU backend without a network, and clear errors."""

import shutil
import socket

import pytest

import config
import model
from config import ConfigError, load


@pytest.fixture(scope="module")
def tiny():
    job = load(config.ROOT / "configs" / "tiny.yaml")
    return job, *model.load(job.model, job.lora)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network address was looked up or connected to")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_adapter_alone_is_trained(tiny):
    job, loaded, _ = tiny
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert any("experts" in name for name in trained)  # lora.target_parameters


def test_rewards_will_read_the_final_channel_only(tiny):
    _, _, tokenizer = tiny
    from trl.chat_template_utils import parse_response

    said = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>the answer<|return|>"
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)["input_ids"]
    message = parse_response(tokenizer, tokenizer(said, add_special_tokens=False)["input_ids"], prefix=prompt)
    assert message["content"] == "the answer"
    cut = tokenizer("<|channel|>analysis<|message|>hm", add_special_tokens=False)["input_ids"]
    assert not parse_response(tokenizer, cut, prefix=prompt).get("content")


def test_settings_follow_the_model(tiny):
    job, loaded, _ = tiny
    settings = model.trainer_settings(job.model, job.lora, loaded)
    assert settings["router_aux_loss_coef"] == 0.0
    assert (settings["bf16"], settings["fp16"], settings["gradient_checkpointing"]) == (False, False, False)


def test_a_local_model_touches_no_network(no_network, monkeypatch):
    job = load(config.ROOT / "configs" / "tiny.yaml")
    model.load(job.model, job.lora)


def test_a_cached_hub_model_touches_no_network(no_network, monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--some-model"
    shutil.copytree(config.TINY_MODEL, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    job = load(config.ROOT / "configs" / "tiny.yaml", ["model.name=someone/some-model"])
    assert model.is_on_disk(job.model)
    loaded, _ = model.load(job.model, job.lora)
    assert loaded.config.model_type == "gpt_oss"


def test_missing_models_are_one_clear_line(tmp_path):
    job = load(config.ROOT / "configs" / "tiny.yaml", ["model.name=someone/not-there"])
    with pytest.raises(ConfigError, match="model.name: someone/not-there cannot be loaded"):
        model.load(job.model, job.lora)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    job = load(config.ROOT / "configs" / "tiny.yaml", [f"model.name={tmp_path}"])
    with pytest.raises(ConfigError, match="model.name: .* cannot be loaded"):
        model.load(job.model, job.lora)


def test_unsloth_without_a_gpu_is_refused():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA GPU is visible")
    job = load(config.ROOT / "configs" / "tiny.yaml", ["model.backend=unsloth"])
    with pytest.raises(ConfigError, match="unsloth needs a CUDA GPU"):
        model.load(job.model, job.lora)


def test_a_16_bit_gpt_oss_is_never_half_quantised():
    job = load(config.ROOT / "configs" / "tiny.yaml", ["model.load_in_4bit=true"])
    assert not model.quantize(job.model)  # its fused experts would stay in 16 bit
    assert model.quantize(load().model)
