"""What a LoRA adapter adds to the weights of its base.

PEFT itself says which parameter each pair of matrices belongs to, and how it is scaled: its layers
are built around a model without weights.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.errors import ConfigError, one_line
from job.model import read_json

PREFIX = "base_model.model."  # of every name in an adapter file


@dataclass(frozen=True)
class Change:
    """What the adapter adds to one parameter: scaling · B·A (Hu et al., 2021, arXiv 2106.09685).

    Attributes:
        layer: PEFT's LoraLayer. It holds A and B in float32.
        experts: how many matrices the parameter stacks; 1 for an ordinary matrix.
    """

    layer: Any
    experts: int

    def delta(self, expert: int = 0) -> Any:
        """The float32 matrix to add, in the shape of the parameter or of one expert of it."""
        import torch
        from peft.tuners.lora import Linear

        with torch.no_grad():
            if self.experts == 1:
                return Linear.get_delta_weight(self.layer, "default")
            left, right, scaling = self.layer.get_delta_factors("default")
            return scaling * (left[expert] @ right[expert])

    def added_to(self, weight: Any, dtype: Any) -> Any:
        """The sum with the parameter, worked out in float32 and rounded once to `dtype`."""
        import torch

        if self.experts == 1:
            return (weight.float() + self.delta()).to(dtype)
        merged = torch.empty(weight.shape, dtype=dtype)
        for expert in range(self.experts):
            merged[expert] = weight[expert].float() + self.delta(expert)
        return merged


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, read from its files.

    Attributes:
        config: its adapter_config.json.
        changes: parameter of the base -> what is added to it.
        replaced: parameter of the base -> the tensor of the adapter that takes its place, before
            anything is added: trained biases (`lora.bias`), and whole modules that were trained.
    """

    folder: Path
    config: dict[str, Any]
    changes: dict[str, Change] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)

    @property
    def touched(self) -> set[str]:
        """The parameters of the base that the adapter changes."""
        return {*self.changes, *self.replaced}


def read_adapter(folder: Path, architecture: dict[str, Any]) -> Adapter:
    """The adapter in `folder`.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        architecture: config.json of the base.

    Raises:
        ConfigError: if it cannot be read, holds anything but LoRA matrices, has weights that are
            not finite, or belongs to another architecture.
    """
    config, weights = read_adapter_files(folder)
    model, shapes = adapted_model(folder, config, architecture)
    adapter = Adapter(folder, config)
    for name, layer in lora_layers(model):
        parameter = getattr(layer, "parameter_name", None) or "weight"
        target = f"{base_name(name)}.{parameter}"
        for part in ("lora_A", "lora_B"):
            fill(folder, layer, part, name, weights)
        adapter.changes[target] = Change(layer, getattr(layer, "num_experts", 1))

    for name, tensor in weights.items():
        target = base_name(name)
        if shapes.get(target) != tuple(tensor.shape):
            raise ConfigError(
                f"{folder}: {name} is neither a LoRA matrix nor a parameter of this base; the "
                "adapter belongs to another architecture, or is of a kind that is not merged here"
            )
        adapter.replaced[target] = tensor
    return adapter


def read_adapter_files(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """adapter_config.json, and {name: float32 tensor}.

    Raises:
        ConfigError: if one of them cannot be read, or the weights are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / "adapter_model.safetensors"
    try:
        config = read_json(folder / "adapter_config.json")
        weights = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{folder}: the adapter cannot be read: {one_line(error)}") from error
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ConfigError(f"{file}: {name} holds values that are not finite")
    return config, {name: tensor.float() for name, tensor in weights.items()}


def adapted_model(
    folder: Path, config: dict[str, Any], architecture: dict[str, Any]
) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The base with PEFT's layers, on the meta device: it takes no memory.

    Returns:
        the model, and the shape of each parameter of the base.

    Raises:
        ConfigError: if transformers or PEFT cannot build it.
    """
    import torch
    from peft import PeftConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config.get("peft_type")
    if kind != "LORA" or config.get("use_dora"):
        raise ConfigError(f"{folder}: only plain LoRA adapters are exported, not {kind} or DoRA")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start != "gaussian":
        raise ConfigError(
            f"{folder}: init_lora_weights is {start}, which may have changed the base as well; "
            "only plain LoRA adapters are exported"
        )
    shape = {key: value for key, value in architecture.items() if key != "quantization_config"}
    kind_of_model = shape.pop("model_type", None)
    try:
        built_from = AutoConfig.for_model(kind_of_model, **shape)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the base has another name than when it was saved
            model = AutoModelForCausalLM.from_config(built_from, dtype=torch.float32)
            shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
            return get_peft_model(model, PeftConfig.from_pretrained(str(folder))), shapes
    except Exception as error:  # of any type, because files of the user decide what is built
        raise ConfigError(
            f"{folder}: the adapter does not fit a {kind_of_model} model: {one_line(error)[:300]}"
        ) from error


def lora_layers(model: Any) -> list[tuple[str, Any]]:
    """(name, layer) of each layer of PEFT that holds a pair A and B."""
    from peft.tuners.lora import LoraLayer

    found = []
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            found.append((name, module))
    return found


def fill(folder: Path, layer: Any, part: str, name: str, weights: dict[str, Any]) -> None:
    """Move one matrix out of `weights` into PEFT's layer.

    Raises:
        ConfigError: if it is not there, or has another shape.
    """
    import torch

    module = getattr(layer, part)["default"]
    key = f"{name}.{part}.weight"
    tensor = weights.pop(key, None)
    wanted = tuple(module.weight.shape)
    if tensor is None or tuple(tensor.shape) != wanted:
        found = "nothing"
        if tensor is not None:
            found = str(tuple(tensor.shape))
        raise ConfigError(
            f"{folder}: the adapter belongs to another architecture: {key} should have the shape "
            f"{wanted}, and the file holds {found}"
        )
    module.weight = torch.nn.Parameter(tensor, requires_grad=False)


def sixteen_bit(dtype: Any) -> Any:
    """The type in which a tensor of this type is exported: 16-bit types stay as they are."""
    import torch

    if dtype.is_floating_point and dtype.itemsize > 2:
        return torch.bfloat16
    return dtype


def base_name(name: str) -> str:
    """The name in the base of what an adapted model calls `name`."""
    return name.removeprefix(PREFIX).replace(".base_layer", "")
