"""The weights of a base model, read from its files one parameter at a time.

No model is built. Three layouts are understood:

plain   each parameter is one tensor in 16 or 32 bit
mxfp4   gpt-oss as published: the experts are packed in 4 bit, as `_blocks` and `_scales`
bnb4    bitsandbytes: any matrix may be packed in 4 bit. Of gpt-oss, Unsloth's copies hold each
        expert as a module of its own
"""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job.errors import ConfigError, one_line
from job.model import read_json

# What a file of weights raises that is damaged, cut short or no longer there
READING_ERRORS = (OSError, ValueError, KeyError, RuntimeError)
# Of the types that safetensors files name, in bits
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
# Tensors that bitsandbytes stores beside a packed matrix
PACKED_PARTS = re.compile(
    r"\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)$"
)
# Names of Unsloth's 4-bit gpt-oss that differ from the model's own
UNSLOTH_EXPERT = re.compile(r"(.*\.experts)\.(gate_up|down)_projs\.(\d+)\.(weight|bias)$")


class BaseWeights:
    """The parameters of the model in `folder`, by the names that transformers gives them.

    Args:
        folder: config.json and safetensors files.

    Raises:
        ConfigError: if something of it is missing, cannot be read, or has a layout that is not
            understood.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.config = read_json(folder / "config.json")
        except READING_ERRORS as error:
            raise ConfigError(f"{folder}/config.json cannot be read: {one_line(error)}") from error
        self.files = stored_tensors(folder)
        self.layout = find_layout(folder, self.config)
        # parameter -> the tensors that it is made of
        self.parameters = dict(self._parameters())

    def _parameters(self) -> Iterator[tuple[str, list[str]]]:
        experts: dict[str, dict[int, str]] = {}
        for name in self.files:
            if self.layout == "plain":
                yield name, [name]
            elif self.layout == "mxfp4":
                if name.endswith("_scales"):
                    continue
                packed = name.removesuffix("_blocks")
                if packed == name:
                    yield name, [name]
                else:
                    yield packed, [name, f"{packed}_scales"]
            elif PACKED_PARTS.search(name):
                continue
            elif found := UNSLOTH_EXPERT.fullmatch(name):
                parent, projection, number, kind = found.groups()
                fused = f"{parent}.{projection}_proj"
                if kind == "bias":
                    fused += "_bias"
                experts.setdefault(fused, {})[int(number)] = name
            else:
                yield name.replace(".router.linear.", ".router."), [name]
        for fused, parts in experts.items():
            yield fused, [parts[number] for number in sorted(parts)]

    def stored(self, name: str) -> Any:
        """One tensor as it is stored.

        Raises:
            ConfigError: if its file is damaged.
        """
        # Opened anew for each tensor: pages of a file that stays open count as this process's.
        with opened(self.folder / self.files[name]) as tensors:
            return tensors.get_tensor(name)

    def stored_bytes(self, name: str) -> int:
        """The size of a tensor as it is stored."""
        with opened(self.folder / self.files[name]) as tensors:
            view = tensors.get_slice(name)
            return math.prod(view.get_shape()) * DTYPE_BITS[view.get_dtype()] // 8

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the model gives to the parameter."""
        parts = self.parameters[name]
        shape = self._stored_shape(parts[0])
        if is_packed(self, name):
            experts, out_features, groups, half = shape
            return (experts, groups * half * 2, out_features)
        if self.layout == "bnb4":
            if f"{parts[0]}.absmax" in self.files:
                shape = tuple(self._quant_state(parts[0]).shape)
            if UNSLOTH_EXPERT.fullmatch(parts[0]):
                shape = (len(parts), *reversed(shape))
        return shape

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        with opened(self.folder / self.files[name]) as tensors:
            return tuple(tensors.get_slice(name).get_shape())

    def read(self, name: str) -> Any:
        """The whole parameter, unpacked."""
        import torch

        from job.mxfp4 import unpack_mxfp4

        parts = self.parameters[name]
        if is_packed(self, name):
            blocks, scales = self.stored(parts[0]), self.stored(parts[1])
            whole = torch.empty(self.shape(name), dtype=torch.bfloat16)
            for expert in range(len(blocks)):
                whole[expert] = unpack_mxfp4(blocks[expert], scales[expert]).T
            return whole
        if UNSLOTH_EXPERT.fullmatch(parts[0]):
            dtype = self._unpacked(parts[0]).dtype
            whole = torch.empty(self.shape(name), dtype=dtype)
            for expert, part in enumerate(parts):
                unpacked = self._unpacked(part)
                if unpacked.dim() == 2:  # a bias has one dimension
                    unpacked = unpacked.T
                whole[expert] = unpacked
            return whole
        return self._unpacked(parts[0])

    def _unpacked(self, name: str) -> Any:
        """A stored tensor; if bitsandbytes has packed it, what it stands for."""
        tensor = self.stored(name)
        if f"{name}.absmax" not in self.files:
            return tensor
        from bitsandbytes.functional import dequantize_4bit

        state = self._quant_state(name)
        return dequantize_4bit(tensor, state)

    def _quant_state(self, name: str) -> Any:
        """What bitsandbytes needs to unpack a matrix."""
        import torch
        from bitsandbytes.functional import QuantState

        prefix = f"{name}."
        parts = {
            other.removeprefix(prefix): self.stored(other)
            for other in self.files
            if other.startswith(prefix)
        }
        return QuantState.from_dict(parts, device=torch.device("cpu"))


def is_packed(weights: BaseWeights, name: str) -> bool:
    """Whether the parameter is stored as MXFP4 blocks and their scales."""
    return weights.layout == "mxfp4" and len(weights.parameters[name]) == 2


def stored_tensors(folder: Path) -> dict[str, str]:
    """{name of a tensor: file that holds it}.

    Raises:
        ConfigError: if a file is missing or damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = read_json(index)["weight_map"]
        except READING_ERRORS as error:
            raise ConfigError(unreadable(index, error)) from error
        for file in sorted(set(weight_map.values())):
            if not (folder / file).is_file():
                raise ConfigError(f"{folder}: {file} is missing; download the base again")
        return weight_map
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ConfigError(f"{folder}: no model.safetensors, nor an index of several, is in it")
    with opened(file) as tensors:
        return dict.fromkeys(tensors.keys(), file.name)


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, from which single tensors are read.

    Raises:
        ConfigError: if it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (*READING_ERRORS, SafetensorError) as error:
        raise ConfigError(unreadable(file, error)) from error


def find_layout(folder: Path, config: dict[str, Any]) -> str:
    """plain, mxfp4 or bnb4.

    Raises:
        ConfigError: for any other quantisation.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return "plain"
    method = quantization.get("quant_method")
    if method == "mxfp4" and config.get("model_type") == "gpt_oss":
        return "mxfp4"
    if method == "bitsandbytes" and quantization.get("load_in_4bit"):
        return "bnb4"
    raise ConfigError(
        f"{folder}: its weights are quantised by {method}, which cannot be unpacked here; "
        "export with --format lora, or name a 16-bit base with --base"
    )


def unreadable(file: Path, error: Exception) -> str:
    return f"{file} is damaged and cannot be read; copy or download it again: {one_line(error)}"
