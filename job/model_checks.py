"""What a model and its backend cannot have, seen in the model's config.json before any weights are
fetched."""

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from job.config import Config, Lora, Model
from job.errors import ConfigError, nearest
from job.model import choose_backend, from_first, read_json

# Modules of experts. PEFT saves some of them as parameters.
EXPERT_MODULES = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
# The default of lora.target_modules in config.yaml
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def settle_targets(config: Config) -> tuple[Config, list[str]]:
    """The config with modules for the adapter that the model has, and a notice if they changed.

    The default names the four matrices of attention. Where a model has them under other names or
    fused into one, as Phi-3 has, the adapter gets all linear layers instead.
    """
    targets = config.lora.target_modules
    if isinstance(targets, str) or sorted(targets) != sorted(ATTENTION):
        return config, []
    model = build_without_weights(config.model)
    if model is None:
        return config, []
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [name for name in ATTENTION if name not in present]
    if not missing:
        return config, []
    lora = dataclasses.replace(config.lora, target_modules="all-linear")
    notice = (
        f"lora.target_modules: {config.model.name} has no {', '.join(missing)}; "
        "all-linear takes their place"
    )
    return dataclasses.replace(config, lora=lora), [notice]


def check_model(config: Config) -> list[str]:
    """Notices of keys that the backend ignores. Needs the model's config.json, not its weights.

    Raises:
        ConfigError: for keys that this model or its backend cannot have.
    """
    check_targets(config.model, config.lora)
    if choose_backend(config.model) == "unsloth":
        check_reference(config)
        return check_for_unsloth(config)
    check_for_transformers(config)
    return []


def check_for_unsloth(config: Config) -> list[str]:
    """Notices of keys that Unsloth ignores.

    Raises:
        ConfigError: for a key that it refuses.
    """
    if config.grpo.get("router_aux_loss_coef"):
        raise ConfigError(
            "grpo.router_aux_loss_coef: Unsloth cannot compute that loss; leave it out"
        )
    # unsloth_zoo/rl_replacements.py. Unsloth says so itself, but only in the first training step.
    off = {"top_entropy_quantile": 1.0, "entropy_coef": 0.0, "use_adaptive_entropy": False}
    return [
        f"grpo.{key}: is ignored by Unsloth; it needs model.backend: transformers"
        for key, default in off.items()
        if config.grpo.get(key, default) != default
    ]


def check_reference(config: Config) -> None:
    """Refuses a KL penalty against an adapter under Unsloth, whose trainer has the base instead
    (patch_functions in unsloth/models/rl.py).

    Raises:
        ConfigError: for such a config.
    """
    model = config.model
    if model.adapter and model.reference == "adapter" and config.grpo.get("beta"):
        raise ConfigError(
            "model.reference: Unsloth keeps the model near the base, not near the adapter; write "
            "model.reference: base, or grpo.beta: 0, or model.backend: transformers"
        )


def check_for_transformers(config: Config) -> None:
    """Refuses keys that plain transformers cannot combine with this model or with each other.

    Raises:
        ConfigError: for such a key.
    """
    if config.grpo.get("router_aux_loss_coef") and not has_router(config.model):
        raise ConfigError(
            f"grpo.router_aux_loss_coef: {config.model.name} has no experts to balance; "
            "leave it out"
        )
    if config.lora.bias != "none" and config.grpo.get("beta"):
        raise ConfigError(
            f"lora.bias: {config.lora.bias} cannot be combined with grpo.beta above 0, because the "
            "KL penalty keeps a second adapter; set it to none, or grpo.beta to 0"
        )


def has_router(model_config: Model) -> bool:
    from transformers import AutoConfig

    architecture = from_first(AutoConfig.from_pretrained, model_config)
    return hasattr(architecture.get_text_config(), "output_router_logits")


def check_targets(model_config: Model, lora: Lora) -> None:
    """Refuses modules and parameters for the adapter that the model does not have.

    PEFT is content if one of them is there, and leaves out the others. The model is built from its
    config.json without weights. Under Unsloth nothing is checked: it builds the modules of some
    models itself and has names of its own for them.

    Raises:
        ConfigError: for a name that the model does not have.
    """
    if choose_backend(model_config) == "unsloth":
        return
    model = build_without_weights(model_config)
    if model is None:
        return
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    adapter = LoraConfig(
        target_modules=lora.target_modules, target_parameters=lora.target_parameters
    )
    # Of Mixtral, Qwen3-MoE and their like, PEFT takes the names of the experts' modules for the
    # fused parameters.
    try:
        convert_peft_config_for_transformers(adapter, model, None)
    except ValueError as error:
        if model_config.backend == "auto":
            return  # another machine may have Unsloth, which takes them
        raise ConfigError(f"lora.target_modules: {error}") from error

    parameters = {name for name, _ in model.named_parameters()}
    refuse_missing("lora.target_parameters", adapter.target_parameters, parameters)
    # A text is all-linear, or a regular expression.
    if not isinstance(lora.target_modules, str):
        modules = {name for name, _ in model.named_modules()}
        if model_config.backend == "auto":
            # Another machine may have Unsloth, which has names for what is inside fused experts.
            modules |= {"gate_proj", "up_proj", "down_proj"}
        refuse_missing("lora.target_modules", adapter.target_modules, modules)


def build_without_weights(model_config: Model) -> Any | None:
    """The model as its config.json builds it, on the meta device; None if that fails.

    A model that cannot be built in this way may still be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = from_first(AutoConfig.from_pretrained, model_config)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(architecture)
    except Exception:  # of any type, because it is the model's code
        return None


def refuse_missing(key: str, wanted: Iterable[str] | None, present: Collection[str]) -> None:
    """Refuses a wanted name that is not the end of a present one.

    Raises:
        ConfigError: with the nearest name that is there.
    """
    for name in sorted(wanted or ()):
        if name in present or any(other.endswith(f".{name}") for other in present):
            continue
        parts = name.count(".") + 1
        ends = {".".join(other.split(".")[-parts:]) for other in present}
        raise ConfigError(f"{key}: the model has no {name}{nearest(name, ends)}")


def check_adapter(checkpoint: Path, lora: Lora) -> None:
    """Refuses a checkpoint whose adapter has another shape than the config asks for.

    Raises:
        ConfigError: for a key of `lora` with another value.
    """
    file = checkpoint / "adapter_config.json"
    saved = read_json(file) if file.is_file() else {}
    for key in ("r", "target_modules", "target_parameters"):
        own, its = getattr(lora, key), saved.get(key)
        if type(own) is not type(its) or its is None:
            continue  # Unsloth writes its own form of the modules
        if isinstance(own, list):
            own, its = sorted(own), sorted(its)
            if key == "target_modules" and saved.get("target_parameters"):
                own, its = without_experts(own), without_experts(its)
        if own != its:
            raise ConfigError(
                f"lora.{key}: {own}, but {checkpoint} was trained with {its}; resume with that"
            )


def without_experts(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if name not in EXPERT_MODULES]
