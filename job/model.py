"""The only room that knows Unsloth from plain transformers. Heavy imports stay inside the functions: Unsloth must be
imported before TRL, transformers and PEFT, and config errors should not wait for torch."""

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job import memory
from job.config import Config, Lora, Model, load_config
from job.distributed import local_rank, world_size
from job.errors import ConfigError, nearest, one_line

# Modules of experts. PEFT saves some of them as parameters.
FUSED = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def load_model(config: Model, lora: Lora) -> tuple[Any, Any]:
    """The model with a fresh LoRA adapter, and its tokenizer.

    Raises:
        ConfigError: if the model cannot be had: no such folder or Hub id, no access, no network, or a backend that
            this machine cannot run.
    """
    if is_on_disk(config):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    backend = choose_backend(config)
    try:
        model, tokenizer = (
            load_unsloth(config, lora) if backend == "unsloth" else load_transformers(config, lora)
        )
    except (
        OSError,
        ValueError,
    ) as error:  # what from_pretrained raises for anything that it cannot find, fetch or read
        raise cannot_be_loaded(config, error) from error
    return model, tokenizer


def load_trained(folder: str | os.PathLike) -> tuple[Any, Any]:
    """The model that a run has trained, and its tokenizer: its base with the adapter of `folder`.

    Args:
        folder: final_model, or a checkpoint. The resolved config of the run is read from beside it. Without one, the
            base that the adapter names is loaded with the defaults of config.yaml.

    Raises:
        ConfigError: if there is no adapter, or its base cannot be loaded.
    """
    folder = Path(folder)
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise ConfigError(f"{folder}: no adapter (adapter_config.json) is in this folder")
    run_config = folder.parent / "config.yaml"
    if run_config.is_file():
        job = load_config(run_config)
    else:
        job = load_config(overrides=adapter_overrides(json.loads(file.read_text(encoding="utf-8"))))
    model, tokenizer = load_model(job.model, job.lora)
    restore_adapter(model, folder)
    model.eval()
    return model, tokenizer


def adapter_overrides(adapter: dict[str, Any]) -> list[str]:
    """The keys of the config that an adapter_config.json decides, as overrides of the command line."""
    keys = {"model.name": adapter["base_model_name_or_path"]}
    for key in ("r", "lora_alpha", "lora_dropout", "bias", "target_modules", "target_parameters"):
        keys[f"lora.{key}"] = adapter.get(key)
    return [f"{key}={json.dumps(value)}" for key, value in keys.items()]


def restore_adapter(model: Any, folder: str | os.PathLike) -> None:
    """Put the adapter weights of a checkpoint or final_model into a model that has an adapter of the same shape."""
    from peft import load_peft_weights, set_peft_model_state_dict

    model = getattr(model, "module", model)  # unwrap DistributedDataParallel
    set_peft_model_state_dict(
        model, load_peft_weights(str(folder), device="cpu"), adapter_name="default"
    )


def load_tokenizer(config: Model) -> Any:
    """The tokenizer alone: prompts are measured with it before the weights are fetched. To be called before anything
    else imports transformers.

    Raises:
        ConfigError: if it cannot be had, or has no chat template.
    """
    # It advises downloading a kernel that nothing here uses.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if choose_backend(config) == "unsloth":
        import_unsloth()
    if is_on_disk(config):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    tokenizer = from_first(AutoTokenizer.from_pretrained, config)
    if not tokenizer.chat_template:
        raise ConfigError(f"model.name: {config.name} has no chat template; take an instruct model")
    return tokenizer


def load_model_config(config: Model) -> dict[str, Any]:
    """config.json of the model, from its folder, the cache or the Hub."""
    from transformers.utils import cached_file

    path = from_first(lambda name, **options: cached_file(name, "config.json", **options), config)
    return json.loads(Path(path).read_text(encoding="utf-8"))


def from_first(fetch: Callable[..., Any], config: Model) -> Any:
    """`fetch` of the first folder or repository that has what it wants, of those on this machine if one does."""
    tries = [(name, local) for local in (True, False) for name in repositories(config)]
    for name, local in tries:
        try:
            return fetch(name, local_files_only=local)
        except (
            OSError,
            ValueError,
        ) as error:  # what the Hub's functions raise for all that they cannot find or read
            if (name, local) == tries[-1]:
                raise cannot_be_loaded(config, error) from error


def check_model(job: Config) -> list[str]:
    """What this model and its backend make of the config, before the weights are there: notices of what they ignore.

    Raises:
        ConfigError: for what they cannot have.
    """
    check_targets(job.model, job.lora)
    router_loss, beta = job.grpo.get("router_aux_loss_coef"), job.grpo.get("beta")
    if choose_backend(job.model) == "unsloth":
        if router_loss:
            raise ConfigError(
                "grpo.router_aux_loss_coef: Unsloth cannot compute that loss; leave it out"
            )
        # unsloth_zoo/rl_replacements.py; it says so itself, but only when the first step is trained
        off = {"top_entropy_quantile": 1.0, "entropy_coef": 0.0, "use_adaptive_entropy": False}
        ignored = [key for key, default in off.items() if job.grpo.get(key, default) != default]
        return [
            f"grpo.{key}: is ignored by Unsloth; it needs model.backend: transformers"
            for key in ignored
        ]
    if router_loss and not has_router(job.model):
        raise ConfigError(
            f"grpo.router_aux_loss_coef: {job.model.name} has no experts to balance; leave it out"
        )
    if job.lora.bias != "none" and beta:
        raise ConfigError(
            f"lora.bias: {job.lora.bias} cannot be with grpo.beta above 0, for which a second adapter is kept; set it "
            "to none, or grpo.beta to 0"
        )
    return []


def has_router(config: Model) -> bool:
    from transformers import AutoConfig

    return hasattr(
        from_first(AutoConfig.from_pretrained, config).get_text_config(), "output_router_logits"
    )


def check_targets(config: Model, lora: Lora) -> None:
    """Sees that every module and parameter which the adapter is to have is in the model, as its config.json builds it
    without weights: PEFT is content if one of them is, and leaves the others out. Not under Unsloth, which builds the
    modules of some models anew and has names of its own for them.

    Raises:
        ConfigError: for a name that is not.
    """
    if choose_backend(config) == "unsloth":
        return
    import torch
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = from_first(AutoConfig.from_pretrained, config)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings)
    except Exception:  # of any type: it is the model's code
        return  # what cannot be built so may still be loaded
    adapter = LoraConfig(
        target_modules=lora.target_modules, target_parameters=lora.target_parameters
    )
    try:  # of Mixtral, Qwen3-MoE and their like PEFT takes the names of the experts' modules for the fused parameters
        convert_peft_config_for_transformers(adapter, model, None)
    except ValueError as error:
        if config.backend == "auto":
            return
        raise ConfigError(f"lora.target_modules: {error}") from error
    modules = {name for name, _ in model.named_modules()}
    if (
        config.backend == "auto"
    ):  # on another machine perhaps Unsloth, with its names of what is inside fused experts
        modules |= {"gate_proj", "up_proj", "down_proj"}
    kinds = [
        (
            "target_parameters",
            adapter.target_parameters,
            {name for name, _ in model.named_parameters()},
        )
    ]
    if not isinstance(lora.target_modules, str):  # all-linear, or a regular expression
        kinds.append(("target_modules", adapter.target_modules, modules))
    for key, wanted, there in kinds:
        for name in sorted(wanted or ()):
            if not any(other == name or other.endswith(f".{name}") for other in there):
                ends = {".".join(other.split(".")[-1 - name.count(".") :]) for other in there}
                raise ConfigError(f"lora.{key}: the model has no {name}{nearest(name, ends)}")


def check_adapter(checkpoint: Path, lora: Lora) -> None:
    """Refuses a checkpoint whose adapter has another shape than the one that the config asks for."""
    file = checkpoint / "adapter_config.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for key in ("r", "target_modules", "target_parameters"):
        own, its = getattr(lora, key), saved.get(key)
        if isinstance(own, list) and isinstance(its, list):
            fused = FUSED if key == "target_modules" and saved.get("target_parameters") else ()
            own, its = (sorted(name for name in names if name not in fused) for names in (own, its))
        if (
            its is not None and type(own) is type(its) and own != its
        ):  # Unsloth writes its own form of the modules
            raise ConfigError(
                f"lora.{key}: {own}, but {checkpoint} was trained with {its}; resume with that"
            )


def cannot_be_loaded(config: Model, error: Exception) -> ConfigError:
    text = one_line(error)[:500]
    if "Target modules" in text:  # PEFT's
        return ConfigError(f"lora.target_modules: {text}")
    ways = "; it is neither a folder (/path, ./path) nor to be had from the Hub under that name, or there is no network"
    return ConfigError(f"model.name: {config.name} cannot be loaded{ways}: {text}")


def choose_backend(config: Model) -> str:
    import torch

    if config.backend == "unsloth" and not torch.cuda.is_available():
        raise ConfigError(
            "model.backend: unsloth needs a CUDA GPU and none is visible; use auto or transformers"
        )
    if config.backend != "auto":
        return config.backend
    return "unsloth" if torch.cuda.is_available() else "transformers"


def import_unsloth() -> Any:
    os.environ.setdefault(
        "UNSLOTH_DISABLE_STATISTICS", "1"
    )  # it pings out while loading and can hang for 2 minutes
    try:
        import unsloth
    except ImportError as error:
        raise ConfigError(
            f"model.backend: unsloth cannot be imported ({error}); install requirements-gpu.txt or use "
            "model.backend=transformers"
        ) from error
    return unsloth


def load_unsloth(config: Model, lora: Lora) -> tuple[Any, Any]:
    FastLanguageModel = import_unsloth().FastLanguageModel
    import torch

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=config.path,
        max_seq_length=config.max_seq_length,
        dtype=None if config.dtype == "auto" else getattr(torch, config.dtype),
        load_in_4bit=quantize(config),
        offload_embedding=offloads_embedding(
            config, torch.cuda.get_device_properties(0).total_memory
        ),
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        target_modules=lora.target_modules,
        use_gradient_checkpointing=lora.use_gradient_checkpointing,
        random_state=lora.random_state,
        **({"target_parameters": lora.target_parameters} if lora.target_parameters else {}),
    )
    return model, tokenizer


def load_transformers(config: Model, lora: Lora) -> tuple[Any, Any]:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from transformers.integrations import is_deepspeed_zero3_enabled

    transformers.utils.logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    dtype = choose_dtype(config)
    four_bit = quantize(config) and cuda and not stored(config).get("quantization_config")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    tokenizer = AutoTokenizer.from_pretrained(config.path)
    model = AutoModelForCausalLM.from_pretrained(
        config.path,
        dtype=dtype,
        # ZeRO-3, which GRPOConfig has switched on by now, places the weights itself
        device_map={"": local_rank()} if cuda and not is_deepspeed_zero3_enabled() else None,
        **({"quantization_config": quantization} if four_bit else {}),
    )
    if not cuda and model.num_parameters() < 50e6:
        # Matrices this small lose more to handing work between threads than they gain, and far more on busy cores.
        torch.set_num_threads(1)
    if four_bit:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=bool(lora.use_gradient_checkpointing)
        )
    torch.manual_seed(lora.random_state)
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        target_modules=lora.target_modules,
        target_parameters=lora.target_parameters,
    )
    return get_peft_model(model, adapter), tokenizer


def offloads_embedding(config: Model, card_bytes: float) -> bool:
    return (
        card_bytes < 24 * 2**30 if config.offload_embedding == "auto" else config.offload_embedding
    )


def choose_dtype(config: Model) -> Any:
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def estimate_memory(job: Config, prompt_tokens: int, completion_tokens: int) -> str:
    """A table of the GPU memory that the run will need, against the card; without one, for Unsloth on any."""
    import torch

    card = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    estimate = memory.estimate(
        load_model_config(job.model),
        backend="unsloth" if job.model.backend == "auto" else job.model.backend,
        load_in_4bit=quantize(job.model),
        lora=job.lora,
        grpo=job.grpo,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        dtype=str(choose_dtype(job.model)).removeprefix("torch.")
        if card or job.model.dtype != "auto"
        else "bfloat16",
        offload_embedding=offloads_embedding(job.model, card.total_memory if card else math.inf),
        stored_bytes=sum(path.stat().st_size for path in Path(job.model.path).glob("*.safetensors"))
        or None,
        processes=world_size(),
        card_bytes=card and card.total_memory,
    )
    return estimate.table(card.total_memory, card.name) if card else estimate.table()


def trainer_settings(config: Model, lora: Lora) -> dict[str, Any]:
    """The GRPOConfig arguments that this job sets, unless the user's config says otherwise."""
    import torch

    dtype = choose_dtype(config)
    settings = {
        "disable_tqdm": True,  # callbacks.Progress shows the bar
        "logging_nan_inf_filter": False,  # would log a loss that is NaN as the mean of the ones before
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Without these two, several processes on CPUs would each train by themselves.
        "use_cpu": not torch.cuda.is_available(),
        **({"ddp_backend": "gloo"} if world_size() > 1 and not torch.cuda.is_available() else {}),
        # TRL would add the load-balancing loss of pre-training with the coefficient of the model's config, 0.9 for
        # gpt-oss, though the adapter does not train the router; Unsloth cannot compute it. Dense models have none.
        "router_aux_loss_coef": 0.0,
    }
    if (
        choose_backend(config) == "transformers"
    ):  # Unsloth's own checkpointing is set in get_peft_model
        settings["gradient_checkpointing"] = bool(lora.use_gradient_checkpointing)
    return settings


def as_written(config: Model, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` for GRPOConfig, with what Unsloth's would replace unasked spelled out, so that they mean there what
    they mean in TRL."""
    if choose_backend(config) != "unsloth":
        return settings
    epsilon = settings.get("epsilon", 0.2)
    settings = {
        "beta": 0.0,
        "mask_truncated_completions": False,
        "epsilon_high": epsilon,
    } | settings
    # Left out, these would be Unsloth's 4, 2 and 4, and grpo.py has reckoned with TRL's
    batches = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": 8,
    }
    settings = batches | settings
    if settings.get("loss_type") == "dr_grpo" and settings.get("scale_rewards") in (None, "group"):
        settings["scale_rewards"] = (
            None  # Unsloth takes "group" for "none" here, and null for "group"
        )
    return settings


def quantize(config: Model) -> bool:
    """Whether to ask for 4 bit. Not for a local 16-bit gpt-oss: its fused experts would silently stay as they are."""
    model = stored(config)
    fused = model.get("model_type") == "gpt_oss" and not model.get("quantization_config")
    return config.load_in_4bit and not fused


def stored(config: Model) -> dict[str, Any]:
    """config.json of a local model; empty for a Hub id."""
    path = Path(config.path) / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def is_on_disk(config: Model) -> bool:
    """Whether everything is local or in the Hub cache, so that no request need be made."""
    if Path(config.path).is_dir():
        return True
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    weights = repositories(config)[
        0
    ]  # an original beside it is of no use where the 4-bit copy is wanted
    snapshots = (hub / f"models--{weights.replace('/', '--')}/snapshots").glob("*")
    return any(is_complete(folder) for folder in snapshots)


def repositories(config: Model) -> list[str]:
    """Where the model may be: Unsloth fetches its own 4-bit copy of a model where there is one."""
    four_bit = (
        config.load_in_4bit
        and config.name.startswith("unsloth/")
        and not config.name.endswith("-4bit")
    )
    return [config.name + "-unsloth-bnb-4bit"] * four_bit + [config.path]


def is_complete(snapshot: Path) -> bool:
    """Whether a cached snapshot holds every file; an interrupted download leaves some out."""
    index = snapshot / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all(
        (snapshot / name).is_file() for name in {"config.json", "tokenizer_config.json", *shards}
    )
