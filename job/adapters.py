"""Starting from an adapter: `model.adapter` names one that SFT or an earlier run has made.

The adapter decides its base, its shape and, where it has one, the chat template that it was trained
with. So these are read from its folder. A key of the config that says otherwise is a mistake.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from yaml import YAMLError

from job.checkpoints import places_of_model
from job.errors import one_line

ROOT = Path(__file__).resolve().parent.parent
ADAPTER_FILE = "adapter_config.json"
TEMPLATE_FILE = "chat_template.jinja"
# Keys of adapter_config.json that have one of the same name under `lora:`
SHAPE_KEYS = ("r", "lora_alpha", "bias", "target_modules", "target_parameters")
# Keys of PEFT's LoraConfig that this project has no key for, each with its harmless values
UNKNOWN_SHAPES: dict[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "use_rslora": (None, False),
    "modules_to_save": (None, []),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "lora_bias": (None, False),
    # PiSSA and its like change the base that they start from
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}
MERGE_IT = "merge it into its base (PEFT's merge_and_unload) and name the merged model"
# Keys of the run that made the adapter which decide what its base is
OF_THE_BASE = ("name", "quantization", "chat_template")


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder.

    Attributes:
        model: keys of the `model:` section that say what its base is.
        lora: its shape, as keys of the `lora:` section.
    """

    folder: Path
    model: dict[str, Any]
    lora: dict[str, Any]


def read_adapter(name: str) -> Adapter:
    """The adapter that `model.adapter` names.

    Args:
        name: the folder of an adapter, or that of a run: its final_model, else its last checkpoint.

    Raises:
        ValueError: if there is none, or it is of a kind that this project cannot train on.
    """
    folder = find_folder(name)
    try:
        content = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / ADAPTER_FILE} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict) or not content.get("base_model_name_or_path"):
        raise ValueError(f"{folder / ADAPTER_FILE} names no base_model_name_or_path")
    kind = str(content.get("peft_type", "LORA"))
    if kind.upper() != "LORA":
        raise ValueError(f"{folder} is of the type {kind}; only LoRA can be trained on")
    for key, harmless in UNKNOWN_SHAPES.items():
        if content.get(key) not in harmless:
            raise ValueError(f"{folder} has {key}, which cannot be trained on here; {MERGE_IT}")

    check_weights(folder)
    # PEFT writes patterns of its own for experts that are fused into one parameter.
    patterns = content.get("alpha_pattern") or {}
    if any(not pattern.endswith("gate_up_proj") for pattern in patterns):
        raise ValueError(f"{folder} has alpha_pattern, which cannot be trained on here; {MERGE_IT}")

    lora = {key: content[key] for key in SHAPE_KEYS if key in content}
    if lora.get("target_modules") is None:
        lora["target_modules"] = []  # an adapter of parameters alone
    model = {"name": content["base_model_name_or_path"]}
    return Adapter(folder, model | keys_of_run(folder), lora)


def check_weights(folder: Path) -> None:
    """See that the weights of an adapter are there, and that their file is whole.

    Raises:
        ValueError: if not.
    """
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        if (folder / "adapter_model.bin").is_file():
            return  # of an older PEFT, which torch reads when it is loaded
        raise ValueError(f"{folder} has no weights ({file.name})")
    try:
        with safe_open(file, framework="numpy") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: {one_line(error)}") from error


def local_folder(name: str) -> Path | None:
    """The folder of this name, sought here and in the repository; None if there is none."""
    places = [Path(name).expanduser(), ROOT / name]
    return next((place for place in places if place.is_dir()), None)


def find_folder(name: str) -> Path:
    """The folder with the adapter that `name` stands for. A relative path is looked up here and in
    the repository.

    Raises:
        ValueError: if there is no adapter.
    """
    folder = local_folder(name)
    if folder is None:
        raise ValueError(f"there is no folder {name}")
    for candidate in places_of_model(folder):
        if (candidate / ADAPTER_FILE).is_file():
            return candidate.resolve()
    raise ValueError(f"{name} holds no adapter ({ADAPTER_FILE}), and no final_model with one")


def keys_of_run(folder: Path) -> dict[str, Any]:
    """What the run that made an adapter says of its base, in the config.yaml beside it; empty if
    there is none."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(folder.parent / "config.yaml"))
    except (OSError, YAMLError, OmegaConfBaseException, ValueError):
        return {}
    section = content.get("model") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        return {}
    return {key: section[key] for key in OF_THE_BASE if section.get(key) is not None}


def adopt_adapter(layers: list[dict[str, Any]], mistakes: list[str]) -> Iterator[str]:
    """Put what the adapter of `model.adapter` decides into the layers of a config, in place, above
    the defaults. Yields notices.

    Args:
        layers: sections of config.yaml, of each file and of the command line.
    """
    name = last_value(layers, "model", "adapter")
    if name is None:
        return
    try:
        adapter = read_adapter(str(name))
    except ValueError as error:
        mistakes.append(f"model.adapter: {error}")
        return
    own = layers[1:]
    for key, value in adapter.lora.items():
        written = last_value(own, "lora", key)
        if written is not None and comparable(written) != comparable(value):
            mistakes.append(
                f"lora.{key}: {written}, but the adapter in {adapter.folder} has {value}; "
                "write that, or leave it out"
            )
    base, written = adapter.model["name"], last_value(own, "model", "name")
    if written is None:
        yield f"model.name: {base}, the base of the adapter in {adapter.folder}"
    elif written != base:
        yield f"model.name: {written} is taken for the base of the adapter, which names {base}"
    # Sections of all layers are merged later; the user's own keys win.
    layers.insert(1, {"model": adapter.model, "lora": adapter.lora})


def last_value(layers: Sequence[Mapping[str, Any]], section: str, key: str) -> Any:
    """The value that the last layer gives a key; None if no layer has it."""
    value = None
    for layer in layers:
        content = layer.get(section)
        if isinstance(content, dict) and key in content:
            value = content[key]
    return value


def comparable(value: Any) -> Any:
    """A value with which another is compared: the order of a list means nothing."""
    if isinstance(value, list):
        return sorted(map(str, value))
    return value


def own_template(folder: Path) -> str | None:
    """The file with the chat template that lies beside an adapter; None if there is none."""
    file = folder / TEMPLATE_FILE
    return str(file) if file.is_file() else None


def drop_reference(model: Any) -> None:
    """Let the KL penalty compare with the base.

    TRL keeps a copy of the adapter that training starts from, under the name "ref". Without it, it
    takes the model without an adapter.
    """
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")
