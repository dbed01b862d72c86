"""model.py: loading on the CPU backend without a network, and clear errors."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig

from job import config, model, model_checks, rules
from job.batches import batch_plan
from job.config import load_config as load
from job.errors import ConfigError
from job.run_folder import RunFolder


@pytest.fixture(scope="module")
def tiny():
    job = load(config.ROOT / "configs" / "tiny.yaml")
    return job, *model.load_model(job.model, job.lora)


def test_the_adapter_alone_is_trained(tiny):
    job, loaded, _ = tiny
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert any("experts" in name for name in trained)  # lora.target_parameters


def test_settings_follow_the_model(tiny):
    job, _, _ = tiny
    settings = model.trainer_settings(job.model, job.lora)
    assert settings["router_aux_loss_coef"] == 0.0
    assert (settings["bf16"], settings["fp16"], settings["gradient_checkpointing"]) == (
        False,
        False,
        False,
    )


NO_NETWORK = """
import os, socket, sys
def refuse(*args, **kwargs):
    print("a network address was looked up or connected to", flush=True)
    os._exit(1)  # the Hub's client would try again for a minute
socket.socket.connect = socket.getaddrinfo = refuse
from job import config, model
job = config.load_config("configs/tiny.yaml", sys.argv[1:])
print(model.load_model(job.model, job.lora)[0].config.model_type)
"""


def load_without_network(cache, *overrides):
    """Starts a fresh process that loads the model while every use of a network is refused and
    reported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-c", NO_NETWORK, *overrides], cwd=config.ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment | {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path):
    """A Hub cache that holds the tiny model as someone/some-model."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--some-model"
    shutil.copytree(config.TINY_MODEL, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return tmp_path


@pytest.mark.slow
def test_a_local_or_cached_model_touches_no_network(cache):
    here = load_without_network(cache)
    cached = load_without_network(cache, "model.name=someone/some-model")
    elsewhere = load_without_network(cache, "model.name=someone/other-model")
    assert here.communicate()[0] == cached.communicate()[0] == "gpt_oss\n"
    assert "was looked up" in elsewhere.communicate()[0]


def test_an_adapter_names_its_base_by_the_id_on_the_hub(cache):
    (snapshot,) = cache.glob("models--*/snapshots/*")
    job = load(config.ROOT / "configs" / "tiny.yaml", [f"model.name={snapshot}"])
    loaded, _ = model.load_model(job.model, job.lora)
    assert loaded.peft_config["default"].base_model_name_or_path == "someone/some-model"


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_an_interrupted_download_is_not_taken_for_a_model(cache, missing, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    job = load(config.ROOT / "configs" / "tiny.yaml", ["model.name=someone/some-model"])
    assert model.is_on_disk(job.model)
    next(cache.rglob(missing)).unlink()
    assert not model.is_on_disk(job.model)


def test_all_shards_are_needed(tmp_path):
    for name in ("config.json", "tokenizer_config.json", "one.safetensors"):
        (tmp_path / name).touch()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not model.is_complete(tmp_path)
    (tmp_path / "two.safetensors").touch()
    assert model.is_complete(tmp_path)


SHAPES = json.loads(
    (config.ROOT / "tests" / "data" / "gpu_memory.json").read_text(encoding="utf-8")
)["shapes"]
DRY_RUN = (
    NO_NETWORK.split("from job import config, model")[0]
    + "import train; sys.exit(train.main(sys.argv[1:]))"
)


@pytest.fixture
def hub(tmp_path):
    """A function that puts config.json and tokenizer of gpt-oss-20b into a Hub cache.

    It returns the folder of the snapshot, which has no weights.
    """

    def add(repository, shape):
        snapshot = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs" / "main").write_text("0123")
        for path in config.TINY_MODEL.glob("*token*"):
            shutil.copy(path, snapshot)
        shutil.copy(config.TINY_MODEL / "chat_template.jinja", snapshot)
        (snapshot / "config.json").write_text(json.dumps(SHAPES[shape]))
        return snapshot

    return add


def test_the_dry_run_of_the_default_job_needs_no_weights_and_no_network(tmp_path, hub):
    """The Hub cache holds a tokenizer and config.json of gpt-oss-20b, no more."""
    hub("unsloth/gpt-oss-20b", "gpt_oss_20b_mxfp4")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", DRY_RUN, "--dry-run"],
        cwd=config.ROOT,
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert "was looked up" not in run.stdout
    assert "weights: unsloth/gpt-oss-20b in MXFP4 (auto: " in run.stdout
    assert "8 completions of 1 prompt, 8 each" in run.stdout and "Reasoning: low" in run.stdout
    peak = float(re.search(r"peak ([\d.]+) GiB", run.stdout)[1])
    assert 12 < peak < 20


# ---- the form of the weights


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A function that makes this machine look as if it had a GPU of this size, and Unsloth.

    The Hub cache is empty.
    """
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(model, "import_unsloth", lambda: None)
    monkeypatch.setattr(model, "choose_dtype", lambda model_config: torch.bfloat16)

    def of(gib):
        card = SimpleNamespace(total_memory=int(gib * 2**30), name="GPU")
        monkeypatch.setattr(model, "first_card", lambda: card)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    return of


def settled(*overrides, trained_in=None):
    """(value of model.quantization, repository, the line that says why)."""
    job, line = model.settle_quantization(load(None, overrides), trained_in)
    return job.model.quantization, model.repository(job.model), line


@pytest.mark.parametrize("name", ["unsloth/gpt-oss-20b", "openai/gpt-oss-20b"])
def test_gpt_oss_is_loaded_in_its_own_format_where_that_fits(gpu, hub, name):
    hub("unsloth/gpt-oss-20b", "gpt_oss_20b_mxfp4")
    packed = ("mxfp4", "unsloth/gpt-oss-20b")
    copied = ("bnb-4bit", "unsloth/gpt-oss-20b-unsloth-bnb-4bit")
    for gib, expected, why in ((80, packed, "fits"), (24, packed, "GiB of the GPU's 24.0")):
        gpu(gib)
        *got, line = settled(f"model.name={name}")
        assert tuple(got) == expected and why in line
    gpu(10)
    *got, line = settled(f"model.name={name}")
    assert tuple(got) == copied and "MXFP4 does not fit" in line
    # Shorter completions make it fit again; what is written is taken, fit or not.
    gpu(15.5)
    assert settled(f"model.name={name}", "model.max_seq_length=256")[0] == "mxfp4"
    assert settled(f"model.name={name}", "model.quantization=mxfp4")[:2] == packed
    assert settled(f"model.name={name}", "model.load_in_4bit=true")[:2] == copied
    assert settled(f"model.name={name}", "model.load_in_4bit=false")[:2] == ("none", packed[1])


def test_the_memory_estimate_follows_the_form(gpu, hub):
    gpu(80)
    hub("unsloth/gpt-oss-20b", "gpt_oss_20b_mxfp4")
    peaks = []
    for form in ("mxfp4", "bnb-4bit"):
        job = load(None, [f"model.quantization={form}"])
        for shape in ("gpt_oss_20b_mxfp4", "gpt_oss_20b_bnb4"):
            # Whichever copy's config.json is at hand, it is the form asked for that counts.
            peaks.append(model.memory_estimate(job, SHAPES[shape], 195, 128).total("load"))
    assert peaks[0] == peaks[1] > peaks[2] == peaks[3]


def test_a_run_that_is_continued_keeps_the_form_of_its_weights(gpu, hub, tmp_path):
    gpu(80)
    hub("unsloth/gpt-oss-20b", "gpt_oss_20b_mxfp4")
    assert settled(trained_in="bnb-4bit")[0] == "bnb-4bit"
    assert settled("model.quantization=mxfp4", trained_in="bnb-4bit")[0] == "mxfp4"
    assert settled(trained_in="no such form")[0] == "mxfp4"
    with pytest.raises(ConfigError, match="bnb-4bit of .* needs model.backend: unsloth"):
        settled("model.backend=transformers", trained_in="bnb-4bit")
    job = load(None, [f"grpo.output_dir={tmp_path}", "grpo.resume_from_checkpoint=auto"])
    old = "model: {name: unsloth/gpt-oss-20b, load_in_4bit: true}\n"
    (tmp_path / "config.yaml").write_text(old)
    assert RunFolder(job).trained_in(job) is None  # there is no checkpoint to continue
    (tmp_path / "checkpoint-1").mkdir()
    assert RunFolder(job).trained_in(job) == "bnb-4bit"
    other = load(
        None, ["model.name=tiny", f"grpo.resume_from_checkpoint={tmp_path / 'checkpoint-1'}"]
    )
    assert RunFolder(other).trained_in(other) is None
    (tmp_path / "config.yaml").write_text("[broken")
    assert RunFolder(job).trained_in(job) is None


def test_offline_the_copy_in_the_cache_is_taken(gpu, hub, monkeypatch):
    gpu(80)
    snapshot = hub("unsloth/gpt-oss-20b-unsloth-bnb-4bit", "gpt_oss_20b_bnb4")
    (snapshot / "model.safetensors").touch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert settled()[0] == "bnb-4bit"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert settled()[0] == "mxfp4"


def local_model(folder, **architecture):
    """A folder whose config.json is the tiny model's with other keys."""
    folder.mkdir()
    tiny = json.loads((config.TINY_MODEL / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tiny | architecture))
    return f"model.name={folder}"


def test_a_local_checkpoint_decides_by_what_it_stores(tmp_path):
    packed = local_model(tmp_path / "packed", quantization_config={"quant_method": "mxfp4"})
    bnb = local_model(tmp_path / "bnb", quantization_config={"quant_method": "bitsandbytes"})
    dense = local_model(tmp_path / "dense", model_type="qwen3")
    assert [settled(name)[0] for name in (packed, bnb, dense, "model.name=tiny")] == [
        "mxfp4",
        "bnb-4bit",
        "bnb-4bit",
        "none",
    ]
    # As with load_in_4bit: true before
    assert [settled(name, "model.load_in_4bit=true")[0] for name in (packed, dense)] == [
        "mxfp4",
        "bnb-4bit",
    ]
    for name, asked, says in (
        (packed, "bnb-4bit", "is stored in MXFP4, which bitsandbytes cannot quantise again"),
        (bnb, "mxfp4", "is not stored in MXFP4"),
        (dense, "mxfp4", "is not stored in MXFP4"),
        ("model.name=tiny", "bnb-4bit", "is a 16-bit gpt-oss"),
        ("model.backend=transformers", "bnb-4bit", "needs model.backend: unsloth"),
    ):
        with pytest.raises(ConfigError, match=says):
            settled(name, f"model.quantization={asked}")
    (tmp_path / "dense" / "config.json").write_text("{broken")
    with pytest.raises(ConfigError, match="model.name: .* cannot be loaded"):
        settled(dense)


def test_transformers_never_gets_the_copy_that_only_unsloth_reads():
    *got, line = settled("model.backend=transformers", "model.name=openai/gpt-oss-20b")
    assert got == ["mxfp4", "openai/gpt-oss-20b"] and "unpacks to 16 bit" in line


def test_unsloth_is_asked_for_packed_weights_by_name_and_without_4_bit(gpu, monkeypatch):
    gpu(80)
    asked = []

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**options):
            asked.append((options["model_name"], options["load_in_4bit"]))
            return None, None

        @staticmethod
        def get_peft_model(*arguments, **options):
            return None

    library = SimpleNamespace(FastLanguageModel=FastLanguageModel)
    monkeypatch.setattr(model, "import_unsloth", lambda: library)
    card = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    for form in ("auto", "mxfp4", "bnb-4bit"):
        job = load(None, [f"model.quantization={form}", "model.name=openai/gpt-oss-20b"])
        model.load_model(job.model, job.lora)
    assert asked == [
        ("unsloth/gpt-oss-20b", False),
        ("unsloth/gpt-oss-20b", False),
        ("unsloth/gpt-oss-20b-unsloth-bnb-4bit", True),
    ]


def test_vllm_is_refused_under_unsloth_before_anything_is_fetched(gpu, monkeypatch):
    monkeypatch.setattr(rules, "is_installed", lambda package: True)
    job = load(None, ["grpo.use_vllm=true"])
    model.check_vllm(job)  # no GPU: plain transformers
    gpu(80)
    with pytest.raises(ConfigError, match="grpo.use_vllm: Unsloth has no vLLM for gpt-oss"):
        model.check_vllm(job)
    model.check_vllm(load(None, ["grpo.use_vllm=true", "model.backend=transformers"]))


def test_missing_models_are_one_clear_line(tmp_path):
    job = load(config.ROOT / "configs" / "tiny.yaml", ["model.name=someone/not-there"])
    with pytest.raises(ConfigError, match="model.name: someone/not-there cannot be loaded"):
        model.load_model(job.model, job.lora)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    job = load(config.ROOT / "configs" / "tiny.yaml", [f"model.name={tmp_path}"])
    with pytest.raises(ConfigError, match="model.name: .* cannot be loaded"):
        model.load_model(job.model, job.lora)


def test_unsloth_is_told_what_it_would_replace_unasked(monkeypatch):
    job = load()
    monkeypatch.setattr(model, "choose_backend", lambda config: "unsloth")
    told = model.as_written(job.model, {"loss_type": "dapo", "beta": 0.1})
    spelled_out = {
        "loss_type": "dapo",
        "beta": 0.1,
        "mask_truncated_completions": False,
        "epsilon_high": 0.2,
    }
    assert spelled_out.items() <= told.items()
    plan, size = batch_plan({}, world_size=1), told["per_device_eval_batch_size"]
    assert told["per_device_train_batch_size"] == plan.per_device_batch and size == 8
    assert told["gradient_accumulation_steps"] == plan.accumulation
    told = model.as_written(
        job.model, {"loss_type": "dr_grpo", "scale_rewards": "group", "epsilon": 0.1}
    )
    assert told["scale_rewards"] is None and told["epsilon_high"] == 0.1 and told["beta"] == 0.0
    assert (
        model.as_written(job.model, {"loss_type": "dr_grpo", "scale_rewards": "none"})[
            "scale_rewards"
        ]
        == "none"
    )
    monkeypatch.setattr(model, "choose_backend", lambda config: "transformers")
    assert model.as_written(job.model, {"loss_type": "dapo"}) == {"loss_type": "dapo"}


def test_keys_that_unsloth_ignores_are_named(monkeypatch):
    tiny = config.ROOT / "configs" / "tiny.yaml"
    job = load(
        tiny,
        [
            "grpo.top_entropy_quantile=0.2",
            "grpo.entropy_coef=0.0",
            "grpo.use_adaptive_entropy=true",
        ],
    )
    monkeypatch.setattr(model_checks, "choose_backend", lambda config: "unsloth")
    ignored = ["grpo.top_entropy_quantile", "grpo.use_adaptive_entropy"]
    assert [notice.split(":")[0] for notice in model_checks.check_model(job)] == ignored
    with pytest.raises(ConfigError, match="grpo.router_aux_loss_coef: Unsloth cannot compute"):
        model_checks.check_model(load(tiny, ["grpo.router_aux_loss_coef=0.1"]))
    monkeypatch.setattr(model_checks, "choose_backend", lambda config: "transformers")
    assert model_checks.check_model(job) == []


def mixture_of_experts(folder):
    """config.json and tokenizer of a small Qwen3-MoE, whose experts are fused parameters."""
    shutil.copytree(config.TINY_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    Qwen3MoeConfig(
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    ).save_pretrained(folder)
    return folder


def test_modules_of_experts_that_peft_finds_in_fused_parameters_are_let_through(tmp_path):
    fused = ["lora.target_parameters=null", f"model.name={mixture_of_experts(tmp_path / 'moe')}"]
    tiny = config.ROOT / "configs" / "tiny.yaml"

    def check(modules):
        job = load(tiny, [*fused, "model.backend=transformers", f"lora.target_modules={modules}"])
        model_checks.check_targets(job.model, job.lora)

    check("[q_proj, gate_proj, up_proj, down_proj]")
    job = load(tiny, [*fused, "lora.target_modules=[q_proj, gate_proj, up_proj, down_proj]"])
    adapter = LoraConfig(r=job.lora.r, target_modules=job.lora.target_modules)
    built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.model.path))
    get_peft_model(built, adapter).save_pretrained(tmp_path / "checkpoint")
    model_checks.check_adapter(tmp_path / "checkpoint", job.lora)  # such a run can be resumed
    with pytest.raises(ConfigError, match="lora.target_modules: .*'k_proj'.* was trained with"):
        model_checks.check_adapter(
            tmp_path / "checkpoint", dataclasses.replace(job.lora, target_modules=["k_proj"])
        )
    with pytest.raises(ConfigError, match="lora.target_modules: .*without also targeting up_proj"):
        check("[gate_proj]")
    with pytest.raises(
        ConfigError, match="lora.target_modules: the model has no k_prj; did you mean k_proj"
    ):
        check("[k_prj]")


def test_unsloth_without_a_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("a CUDA GPU is visible")
    job = load(config.ROOT / "configs" / "tiny.yaml", ["model.backend=unsloth"])
    with pytest.raises(ConfigError, match="unsloth needs a CUDA GPU"):
        model.load_model(job.model, job.lora)


def test_a_16_bit_gpt_oss_is_never_half_quantised():
    job = load(config.ROOT / "configs" / "tiny.yaml", ["model.load_in_4bit=true"])
    assert not model.quantize(job.model)  # its fused experts would stay in 16 bit


def test_what_a_run_has_saved_is_loaded_again(tmp_path):
    job = load(config.ROOT / "configs" / "tiny.yaml", [f"grpo.output_dir={tmp_path}", "lora.r=4"])
    trained, tokenizer = model.load_model(job.model, job.lora)
    for weight in trained.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.tensor([tokenizer("def matmul(A, B):")["input_ids"]])
    expected = trained.eval()(ids).logits
    folder = RunFolder(job)
    with folder:
        folder.begin(job, checkpoint=None)
        folder.save_final(trained, tokenizer)
    again, _ = model.load_trained(folder.final_model)
    assert torch.equal(again(ids).logits, expected)
    assert "trained on `matmul`" in (folder.final_model / "README.md").read_text()

    (tmp_path / "config.yaml").unlink()  # an adapter that was copied elsewhere
    again, _ = model.load_trained(folder.final_model)
    assert torch.equal(again(ids).logits, expected)
    with pytest.raises(ConfigError, match="no adapter"):
        model.load_trained(tmp_path)
