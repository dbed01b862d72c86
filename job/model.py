"""Loading a model and its tokenizer, and what its files say about the config.

This is the only file that knows Unsloth from plain transformers. Heavy imports stay inside the
functions: Unsloth must be imported before TRL, transformers and PEFT, and mistakes in the config
should not wait for torch.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from job import hub, memory
from job.adapters import find_folder, local_folder, own_template
from job.chat_templates import NAMED, set_template
from job.checkpoints import places_of_model
from job.config import ROOT, Config, Lora, Model, load_config, looks_local
from job.distributed import local_rank, world_size
from job.errors import ConfigError, one_line
from job.quantization import IN_WORDS, HubCopies, check_stored, hub_copies, pick
from job.rules import VLLM_UNDER_UNSLOTH
from job.waiting import bytes_in_words, waiting

# Models with fewer parameters train on one thread on a CPU.
SMALL_MODEL = 50e6
# Cards with less memory keep the embedding in main memory.
SMALL_CARD_BYTES = 24 * 2**30
# What from_pretrained and the Hub's functions raise for anything that they cannot find or read.
LOADING_ERRORS = (OSError, ValueError, SafetensorError)

# ---- loading


def load_model(model_config: Model, lora: Lora | None) -> tuple[Any, Any]:
    """The model with a fresh LoRA adapter, and its tokenizer.

    Args:
        lora: None loads the model without an adapter.

    Raises:
        ConfigError: if the model cannot be loaded: no such folder or Hub id, no access, no network,
            or a backend that this machine cannot run.
    """
    if model_config.quantization == "auto":
        picked, _ = pick_quantization(model_config)
        model_config = dataclasses.replace(model_config, quantization=picked)
    stay_offline_if_complete(model_config)
    load = load_transformers
    if choose_backend(model_config) == "unsloth":
        load = load_unsloth
    try:
        with waiting(f"loading the model {model_config.name}{size_in_words(model_config)}"):
            model, tokenizer = load(model_config, lora)
    except LOADING_ERRORS as error:
        raise cannot_be_loaded(model_config, error) from error
    for adapter in getattr(model, "peft_config", {}).values():
        name = adapter.base_model_name_or_path
        adapter.base_model_name_or_path = hub_id(name) or name
    if choose_template(tokenizer, model_config):
        stop_at(model, tokenizer.eos_token_id)
    if lora is not None and model_config.adapter:
        folder = find_folder(model_config.adapter)
        put_adapter(model, folder, model_config.name)
        print(f"adapter: {folder}", flush=True)
    return model, tokenizer


def size_in_words(model_config: Model) -> str:
    """The size of the weights on this machine, as an addition to a line; empty if none are here."""
    folders = [Path(model_config.path), *snapshots(repositories(model_config)[0])]
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        if size:
            return f", {bytes_in_words(size)}"
    return ""


def choose_template(tokenizer: Any, model_config: Model) -> bool:
    """Give the tokenizer the template of `model.chat_template`, else that of the adapter from which
    training starts. Returns whether it got one.

    Raises:
        ConfigError: if the template cannot be used with this tokenizer.
    """
    template = model_config.chat_template
    if template is None and model_config.adapter:
        template = own_template(find_folder(model_config.adapter))
    if template is None:
        return False
    return set_template(tokenizer, template, model_config.name)


def stop_at(model: Any, token: int) -> None:
    """Let a token end completions, beside those that do so already."""
    stop = model.generation_config.eos_token_id
    if stop is None:
        stop = []
    if not isinstance(stop, list):
        stop = [stop]
    model.generation_config.eos_token_id = list(dict.fromkeys([*stop, token]))


def stay_offline_if_complete(model_config: Model) -> bool:
    """Keep the Hub's client from asking for what is on this machine. Returns whether all of it is.

    The client reads the environment when it is imported, so call this before transformers is.
    network.prepare_hub comes before this where a run needs the Hub for something else.
    """
    hub.forget_empty()
    complete = is_on_disk(model_config)
    if complete:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return complete


def load_trained(folder: str | os.PathLike) -> tuple[Any, Any]:
    """The model that a run has trained, and its tokenizer: its base with the adapter of `folder`.

    Args:
        folder: final_model, or a checkpoint. The resolved config of the run is read from beside it.
            Without one, the base that the adapter names is loaded with the defaults of config.yaml.

    Raises:
        ConfigError: if there is no adapter, or its base cannot be loaded.
    """
    source = ModelSource(str(folder), Path(folder))
    if not source.is_adapter:
        raise ConfigError(f"{folder}: no adapter (adapter_config.json) is in this folder")
    return load_for_inference(source, source.config())


@dataclass(frozen=True)
class ModelSource:
    """A model to be used, not trained: a base model, or an adapter on its base.

    Merged models are base models.
    """

    name: str  # as the user wrote it
    folder: Path | None = None  # None: a model on the Hub, or the embedded one
    base_only: bool = False  # of an adapter, only the model that it was trained on

    @property
    def is_adapter(self) -> bool:
        return self.folder is not None and (self.folder / "adapter_config.json").is_file()

    @property
    def run_config(self) -> Path | None:
        """The resolved config of the run that trained the adapter, if it lies beside it."""
        if not self.is_adapter:
            return None
        file = self.folder.absolute().parent / "config.yaml"
        return file if file.is_file() else None

    def config(
        self, paths: Sequence[str | os.PathLike] | None = None, overrides: Sequence[str] = ()
    ) -> Config:
        """The config to use the model with.

        Args:
            paths, overrides: as of load_config. They win over the config of the run, except for
                the model itself.

        Raises:
            ConfigError: if something is wrong with it.
        """
        layers = list(paths or [])
        own: list[str] = []
        if self.run_config:
            layers.insert(0, self.run_config)
        elif self.is_adapter:
            own = adapter_overrides(read_model_json(self.folder / "adapter_config.json"))
        else:
            own = [f"model.name={json.dumps(str(self.folder or self.name))}"]
        if self.is_adapter:
            # What it was trained from is in it. The template with which it was trained lies beside.
            own.append("model.adapter=null")
            template = own_template(self.folder)
            if template:
                own.append(f"model.chat_template={json.dumps(template)}")
        return load_config(layers, [*overrides, *own])


def find_model(name: str) -> ModelSource:
    """The model that `name` stands for.

    It may be a folder with an adapter (final_model, checkpoint-N), a folder with a whole model, the
    output folder of a run (its final_model, else its last checkpoint), a Hub id, or `tiny`.
    Relative paths are looked up here and in the repository.

    Raises:
        ConfigError: if it is a folder without a model, or a path to nothing.
    """
    folder = local_folder(name)
    if folder is None:
        if name == "tiny" or is_hub_id(name):
            return ModelSource(name)
        raise ConfigError(f"{name}: no such folder; a model on the Hub is named owner/model")
    folder = folder.resolve()
    for candidate in places_of_model(folder):
        source = ModelSource(name, candidate)
        if source.is_adapter or (candidate / "config.json").is_file():
            return source
    raise ConfigError(
        f"{name}: holds no model: neither adapter_config.json nor config.json, and neither "
        "final_model nor a checkpoint of a run"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name can be owner/model on the Hub.

    A path into a folder that is here, or into the one where runs go by default, is none.
    """
    owner, slash, model = name.partition("/")
    if not slash or "/" in model or name.startswith((".", "~", "/")):
        return False
    runs = load_config().grpo["output_dir"]
    return owner != runs and not Path(owner).is_dir() and not (ROOT / owner).is_dir()


def load_for_inference(source: ModelSource, config: Config) -> tuple[Any, Any]:
    """The model of a source in evaluation mode, and its tokenizer.

    Args:
        config: as source.config() returns it.

    Raises:
        ConfigError: if the model cannot be loaded, or the adapter does not fit it.
    """
    with_adapter = source.is_adapter and not source.base_only
    lora = config.lora if with_adapter else None
    model, tokenizer = load_model(config.model, lora)
    if with_adapter:
        put_adapter(model, source.folder, config.model.name)
    model.eval()
    return model, tokenizer


def put_adapter(model: Any, folder: Path, base: str) -> None:
    """Put the weights of an adapter into a model that has a fresh one.

    Args:
        base: the model's name, for messages.

    Raises:
        ConfigError: if they do not fit, or their file is damaged.
    """
    try:
        left_over = restore_adapter(model, folder)
    except Exception as error:  # torch's, PEFT's and safetensors' have no common type
        raise ConfigError(
            f"{folder}: the adapter does not fit {base}, or its file is damaged: "
            f"{one_line(error)[:300]}"
        ) from error
    if left_over:
        raise ConfigError(
            f"{folder}: the adapter does not fit {base}, which has no {left_over[0]} "
            f"({len(left_over)} such weights)"
        )


def read_model_json(file: Path) -> dict[str, Any]:
    """A JSON file of a model.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {one_line(error)}") from error


def adapter_overrides(adapter: dict[str, Any]) -> list[str]:
    """What an adapter_config.json decides, as overrides of the command line."""
    keys = {"model.name": adapter["base_model_name_or_path"]}
    for key in ("r", "lora_alpha", "lora_dropout", "bias", "target_modules", "target_parameters"):
        keys[f"lora.{key}"] = adapter.get(key)
    return [f"{key}={json.dumps(value)}" for key, value in keys.items()]


def restore_adapter(model: Any, folder: str | os.PathLike) -> list[str]:
    """Put the adapter weights of a checkpoint or final_model into a model.

    The model must have an adapter of the same shape.

    Returns:
        The names of weights for which the model has no place.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    model = getattr(model, "module", model)  # unwrap DistributedDataParallel
    weights = load_peft_weights(str(folder), device="cpu")
    outcome = set_peft_model_state_dict(model, weights, adapter_name="default")
    return list(outcome.unexpected_keys)


def load_tokenizer(model_config: Model) -> Any:
    """The tokenizer alone: prompts are measured with it before the weights are fetched.

    Call this before anything else imports transformers.

    Raises:
        ConfigError: if it cannot be loaded, or has no chat template.
    """
    before_transformers(model_config)
    from transformers import AutoTokenizer

    tokenizer = from_first(AutoTokenizer.from_pretrained, model_config)
    choose_template(tokenizer, model_config)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"model.name: {model_config.name} has no chat template; take an instruct model, or "
            f"name a template in model.chat_template: {', '.join(NAMED)}, or a file"
        )
    return tokenizer


def before_transformers(model_config: Model) -> None:
    """What must have happened before anything imports transformers."""
    quiet_bitsandbytes()
    if choose_backend(model_config) == "unsloth":
        import_unsloth()
    stay_offline_if_complete(model_config)


def quiet_bitsandbytes() -> None:
    """Silence its advice to download a kernel that nothing here uses. Call it before its import."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def load_architecture(model_config: Model) -> dict[str, Any]:
    """config.json of the model, from its folder, the cache or the Hub."""
    before_transformers(model_config)
    from transformers.utils import cached_file

    def fetch(name: str, local_files_only: bool) -> str:
        return cached_file(name, "config.json", local_files_only=local_files_only)

    file = Path(from_first(fetch, model_config))
    try:
        return read_json(file)
    except LOADING_ERRORS as error:
        raise cannot_be_loaded(model_config, error) from error


def read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def from_first(fetch: Callable[..., Any], model_config: Model) -> Any:
    """Calls `fetch` for each candidate, those on this machine first; returns the first success.

    Raises:
        ConfigError: if every call fails.
    """
    names = repositories(model_config)
    candidates = [(name, True) for name in names] + [(name, False) for name in names]
    failure: Exception | None = None
    for name, local in candidates:
        try:
            return fetch(name, local_files_only=local)
        except LOADING_ERRORS as error:
            failure = error
    raise cannot_be_loaded(model_config, failure) from failure


# ---- errors


def cannot_be_loaded(model_config: Model, error: Exception) -> ConfigError:
    """The error for the user, with what the library said."""
    said = one_line(error)[:500]
    if "Target modules" in said:  # PEFT's
        return ConfigError(f"lora.target_modules: {said}")
    return ConfigError(
        f"model.name: {model_config.name} cannot be loaded; it must be a folder (/path, ./path) "
        f"or a model on the Hub that this machine can reach: {said}"
    )


# ---- backends


def choose_backend(model_config: Model) -> str:
    """unsloth or transformers.

    Raises:
        ConfigError: if unsloth is asked for and there is no GPU.
    """
    import torch

    cuda = torch.cuda.is_available()
    if model_config.backend == "unsloth" and not cuda:
        raise ConfigError(
            "model.backend: unsloth needs a CUDA GPU and none is visible; use auto or transformers"
        )
    if model_config.backend != "auto":
        return model_config.backend
    return "unsloth" if cuda else "transformers"


def import_unsloth() -> Any:
    # Its statistics make a request while it is loaded, which can hang for 2 minutes.
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    try:
        import unsloth
    except ImportError as error:
        raise ConfigError(
            f"model.backend: unsloth cannot be imported ({error}); "
            "install requirements-gpu.txt or use model.backend=transformers"
        ) from error
    return unsloth


def load_unsloth(model_config: Model, lora: Lora | None) -> tuple[Any, Any]:
    FastLanguageModel = import_unsloth().FastLanguageModel
    import torch

    card = torch.cuda.get_device_properties(0)
    dtype = None
    if model_config.dtype != "auto":
        dtype = getattr(torch, model_config.dtype)
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=repository(model_config),
        max_seq_length=model_config.max_seq_length,
        dtype=dtype,
        load_in_4bit=quantize(model_config),
        offload_embedding=offloads_embedding(model_config, card.total_memory),
    )
    if lora is None:
        return model, tokenizer
    experts = {}
    if lora.target_parameters:
        experts["target_parameters"] = lora.target_parameters
    model = FastLanguageModel.get_peft_model(
        model,
        **adapter_options(lora),
        use_gradient_checkpointing=lora.use_gradient_checkpointing,
        random_state=lora.random_state,
        **experts,
    )
    return model, tokenizer


def load_transformers(model_config: Model, lora: Lora | None) -> tuple[Any, Any]:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_config.path)
    options = placement() | quantization(model_config)
    model = AutoModelForCausalLM.from_pretrained(
        model_config.path, dtype=choose_dtype(model_config), **options
    )
    if not torch.cuda.is_available() and model.num_parameters() < SMALL_MODEL:
        # Matrices this small lose more to handing work between threads than they gain, and far more
        # on busy cores.
        torch.set_num_threads(1)
    if lora is None:
        return model, tokenizer
    if "quantization_config" in options:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=bool(lora.use_gradient_checkpointing)
        )

    torch.manual_seed(lora.random_state)
    adapter = LoraConfig(
        task_type="CAUSAL_LM", target_parameters=lora.target_parameters, **adapter_options(lora)
    )
    return get_peft_model(model, adapter), tokenizer


def adapter_options(lora: Lora) -> dict[str, Any]:
    """Arguments that have the same names for Unsloth's get_peft_model and PEFT's LoraConfig."""
    return {
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "bias": lora.bias,
        "target_modules": lora.target_modules,
    }


def placement() -> dict[str, Any]:
    """Arguments of from_pretrained that put the model on this process's GPU."""
    import torch
    from transformers.integrations import is_deepspeed_zero3_enabled

    # ZeRO-3, which GRPOConfig has switched on by now, and FSDP place the weights themselves.
    shards = is_deepspeed_zero3_enabled() or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if shards or not torch.cuda.is_available():
        return {"device_map": None}
    return {"device_map": {"": local_rank()}}


def quantization(model_config: Model) -> dict[str, Any]:
    """Arguments of from_pretrained that load a 16-bit model in 4 bit; empty if it is not to be."""
    import torch
    from transformers import BitsAndBytesConfig

    already = stored_architecture(model_config).get("quantization_config")
    if already or not quantize(model_config) or not torch.cuda.is_available():
        return {}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=choose_dtype(model_config),
        )
    }


def offloads_embedding(model_config: Model, card_bytes: float) -> bool:
    """Whether the embedding stays in main memory."""
    if model_config.offload_embedding == "auto":
        return card_bytes < SMALL_CARD_BYTES
    return model_config.offload_embedding


def choose_dtype(model_config: Model) -> Any:
    """The torch.dtype of the weights."""
    import torch

    if model_config.dtype != "auto":
        return getattr(torch, model_config.dtype)
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def estimate_memory(config: Config, prompt_tokens: int, completion_tokens: int) -> str:
    """A table of the GPU memory that the run will need, compared with the card.

    Without a card it is the memory that Unsloth would need on any.
    """
    architecture = load_architecture(config.model)
    estimate = memory_estimate(config, architecture, prompt_tokens, completion_tokens)
    card = first_card()
    if card:
        return estimate.table(card.total_memory, card.name)
    return estimate.table()


def memory_estimate(
    config: Config, architecture: dict[str, Any], prompt_tokens: int, completion_tokens: int
) -> memory.Estimate:
    """The GPU memory that the run will need, in the form that model.quantization names.

    Args:
        architecture: config.json of the model, or of its copy in another form.
    """
    card, card_bytes = first_card(), None
    dtype = "bfloat16"
    if card:
        card_bytes = card.total_memory
    if card or config.model.dtype != "auto":
        dtype = str(choose_dtype(config.model)).removeprefix("torch.")
    if hub_copies(config.model.path):
        method = "bitsandbytes" if quantize(config.model) else "mxfp4"
        architecture = architecture | {"quantization_config": {"quant_method": method}}
    weight_files = Path(config.model.path).glob("*.safetensors")
    return memory.estimate(
        architecture,
        backend=planned_backend(config.model),
        load_in_4bit=quantize(config.model),
        lora=config.lora,
        grpo=config.grpo,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        dtype=dtype,
        offload_embedding=offloads_embedding(config.model, card_bytes or math.inf),
        stored_bytes=sum(file.stat().st_size for file in weight_files),
        processes=world_size(),
        graphs=config.rollout.engine != "generate" and not config.grpo.get("use_vllm"),
    )


def first_card() -> Any | None:
    """What PyTorch knows of the first GPU; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0)


def planned_backend(model_config: Model) -> str:
    """The backend that a run is planned for, on a machine without a GPU too."""
    if model_config.backend == "auto":
        return "unsloth"
    return model_config.backend


# ---- the form of the weights


def settle_quantization(config: Config, trained_in: str | None = None) -> tuple[Config, str]:
    """The config with what `model.quantization: auto` picks here, and a line that says why.

    Call this before anything else imports transformers. At most config.json is downloaded.

    Args:
        trained_in: the value of the run that is continued, if there is one. `auto` keeps it,
            because an adapter belongs to the weights that it was trained on.

    Raises:
        ConfigError: for a form that this model does not exist in, or that its backend cannot load.
    """
    model_config = config.model
    copies = hub_copies(model_config.path)
    picked, why = model_config.quantization, "as model.quantization says"
    if picked == "auto":
        if trained_in in IN_WORDS:
            picked, why = trained_in, "auto: the run that is continued has it"
        elif copies and model_config.backend != "transformers":
            picked, why = pick_hub_copy(config, copies)
        else:
            picked, why = pick_quantization(model_config)
    model_config = dataclasses.replace(model_config, quantization=picked)
    check_quantization(model_config)
    config = dataclasses.replace(config, model=model_config)
    return config, f"weights: {repository(model_config)} in {IN_WORDS[picked]} ({why})"


def check_quantization(model_config: Model) -> None:
    """Refuses a form that this model does not exist in, or that its backend cannot load.

    Raises:
        ConfigError: for such a form.
    """
    asked = model_config.quantization
    if hub_copies(model_config.path):
        if asked == "bnb-4bit" and model_config.backend == "transformers":
            raise ConfigError(
                f"model.quantization: bnb-4bit of {model_config.name} needs model.backend: "
                "unsloth, because its experts are stored as Unsloth has them; write auto, "
                "or another backend"
            )
    elif asked != "none":
        check_stored(asked, model_config.name, load_architecture(model_config))


def pick_quantization(model_config: Model) -> tuple[str, str]:
    """What `auto` picks without looking at the GPU, and why."""
    if not hub_copies(model_config.path):
        picked, why = pick(load_architecture(model_config))
        if picked == "bnb-4bit" and first_card() is None:
            why += ", but not on a CPU"
        return picked, f"auto: {why}"
    why = "auto: gpt-oss's own 4-bit format"
    if model_config.backend == "transformers":
        why += ", which transformers unpacks to 16 bit"
    return "mxfp4", why


def pick_hub_copy(config: Config, copies: HubCopies) -> tuple[str, str]:
    """The form of gpt-oss that fits the GPU, and why.

    MXFP4 decodes faster, and is what gpt-oss was trained in; the bitsandbytes copy needs about 1 GB
    less.
    """
    if hub_is_off() and not in_cache(copies.mxfp4) and in_cache(copies.bnb_4bit):
        return "bnb-4bit", "auto: HF_HUB_OFFLINE is set, and MXFP4 is not in the cache"
    own_format = "auto: gpt-oss's own 4-bit format"
    card = first_card()
    if card is None:
        return "mxfp4", f"{own_format}; no GPU here to compare with"

    # The longest completions that the config allows: prompts are measured later, with the
    # tokenizer of the model that is picked here.
    total = config.model.max_seq_length
    completion = config.grpo.get("max_completion_length") or max(total - 2, 1)
    prompt = max(total - completion - 1, 1)
    packed = dataclasses.replace(
        config, model=dataclasses.replace(config.model, quantization="mxfp4")
    )
    architecture = cached_architecture(copies) or load_architecture(packed.model)
    estimate = memory_estimate(packed, architecture, prompt, completion)
    verdict = estimate.verdict(card.total_memory)
    sizes = (
        f"at most {estimate.peak / memory.GIB:.1f} GiB "
        f"of the GPU's {card.total_memory / memory.GIB:.1f}"
    )
    if verdict == "does not fit":
        return "bnb-4bit", f"auto: smaller; MXFP4 does not fit, with {sizes}"
    return "mxfp4", f"{own_format} {'is tight' if verdict == 'tight' else 'fits'}, with {sizes}"


def check_vllm(config: Config) -> None:
    """Refuses vLLM where it cannot decode. Needs no file of the model.

    Raises:
        ConfigError: under Unsloth.
    """
    if config.grpo.get("use_vllm") and choose_backend(config.model) == "unsloth":
        raise ConfigError(VLLM_UNDER_UNSLOTH)


# ---- GRPOConfig


def trainer_settings(model_config: Model, lora: Lora) -> dict[str, Any]:
    """The GRPOConfig arguments that this job sets, unless the user's config says otherwise."""
    import torch

    dtype = choose_dtype(model_config)
    cuda = torch.cuda.is_available()
    settings = {
        "disable_tqdm": True,  # callbacks.Progress shows the bar
        # TRL would log the mean of earlier losses in place of a loss that is NaN.
        "logging_nan_inf_filter": False,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "dataloader_pin_memory": cuda,
        # Without this and ddp_backend, several processes on CPUs would each train by themselves.
        "use_cpu": not cuda,
        # TRL would add the load-balancing loss of pre-training with the coefficient of the model's
        # config, 0.9 for gpt-oss, though the adapter does not train the router. Unsloth cannot
        # compute this loss. Dense models have none.
        "router_aux_loss_coef": 0.0,
    }
    if world_size() > 1 and not cuda:
        settings["ddp_backend"] = "gloo"
    # Unsloth's own checkpointing is set in get_peft_model.
    if choose_backend(model_config) == "transformers":
        settings["gradient_checkpointing"] = bool(lora.use_gradient_checkpointing)
    return settings


def as_written(model_config: Model, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` for GRPOConfig that mean the same to Unsloth's GRPOConfig as to TRL's.

    Unsloth's would replace some values unasked if they were not spelled out.
    """
    if choose_backend(model_config) != "unsloth":
        return settings
    defaults = {
        "beta": 0.0,
        "mask_truncated_completions": False,
        "epsilon_high": settings.get("epsilon", 0.2),
        # Unsloth's defaults would be 4, 2 and 4, but job/batches.py reckons with TRL's.
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "per_device_eval_batch_size": 8,
    }
    settings = defaults | settings
    if settings.get("loss_type") == "dr_grpo" and settings.get("scale_rewards") in (None, "group"):
        # Unsloth takes "group" for "none" here, and null for "group".
        settings["scale_rewards"] = None
    return settings


# ---- the model's files


def quantize(model_config: Model) -> bool:
    """Whether to ask for bitsandbytes' 4 bit."""
    quantization = model_config.quantization
    if quantization == "auto":
        quantization, _ = pick_quantization(model_config)
    return quantization == "bnb-4bit"


def stored_architecture(model_config: Model) -> dict[str, Any]:
    """config.json of a local model; empty for a Hub id."""
    file = Path(model_config.path) / "config.json"
    if not file.is_file():
        return {}
    return read_json(file)


def hub_id(name: str) -> str | None:
    """The id on the Hub that a name or a folder in the Hub's cache stands for.

    Returns:
        None for any other folder.
    """
    cached = re.search(r"/models--([^/]+)/snapshots/", f"{name}/")
    if cached:
        return cached[1].replace("--", "/", 1)
    if looks_local(name) or Path(name).exists():
        return None
    return name


def is_on_disk(model_config: Model) -> bool:
    """Whether everything is local or in the Hub cache, so that no request need be made."""
    if Path(model_config.path).is_dir():
        return True
    # Where the 4-bit copy is wanted, an original beside it is of no use.
    return in_cache(repositories(model_config)[0])


def in_cache(repository: str) -> bool:
    """Whether the Hub cache holds a whole snapshot of this repository."""
    return any(is_complete(folder) for folder in snapshots(repository))


def snapshots(repository: str) -> list[Path]:
    """The folders of this repository in the Hub cache."""
    return list((hub_cache() / f"models--{repository.replace('/', '--')}/snapshots").glob("*"))


def hub_cache() -> Path:
    """The folder of the Hub's cache, found without importing its client."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def cached_architecture(copies: HubCopies) -> dict[str, Any] | None:
    """config.json of either copy from the Hub cache, read without transformers.

    Whether requests may be made must be settled before transformers is imported.
    """
    for folder in snapshots(copies.mxfp4) + snapshots(copies.bnb_4bit):
        with contextlib.suppress(*LOADING_ERRORS):
            return read_json(folder / "config.json")
    return None


def hub_is_off() -> bool:
    """Whether the user forbids requests to the Hub."""
    return hub.is_set("HF_HUB_OFFLINE")


def repository(model_config: Model) -> str:
    """What from_pretrained gets: a folder or a Hub id."""
    if hub_copies(model_config.path):
        return repositories(model_config)[0]
    return model_config.path  # Unsloth replaces names of other models by itself


def repositories(model_config: Model) -> list[str]:
    """Where the model may be, the best place first.

    Unsloth fetches its own 4-bit copy of a model where there is one.
    """
    path, four_bit = model_config.path, model_config.quantization in ("auto", "bnb-4bit")
    if model_config.backend == "transformers":
        return [path]
    copies = hub_copies(path)
    if copies:
        wanted = copies.bnb_4bit if model_config.quantization == "bnb-4bit" else copies.mxfp4
        return list(dict.fromkeys([wanted, path]))
    if four_bit and path.startswith("unsloth/") and not path.endswith("-4bit"):
        return [path + "-unsloth-bnb-4bit", path]
    return [path]


def is_complete(snapshot: Path) -> bool:
    """Whether a cached snapshot holds every file; an interrupted download leaves some out."""
    index = snapshot / "model.safetensors.index.json"
    shards = {"model.safetensors"}
    if index.is_file():
        shards = set(read_json(index)["weight_map"].values())
    needed = {"config.json", "tokenizer_config.json", *shards}
    return all((snapshot / name).is_file() for name in needed)
