"""In which form the weights of a model are loaded: what `model.quantization` means.

mxfp4      OpenAI's 4-bit format for the experts of gpt-oss. Unsloth keeps it packed
bnb-4bit   bitsandbytes' NF4: Unsloth's copy of gpt-oss, or 16-bit weights quantised while loading
none       nothing is quantised: the weights stay in the form that the checkpoint stores
auto       one of them, as `pick` says

Nothing here imports torch or reads a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from job.errors import ConfigError

IN_WORDS = {
    "mxfp4": "MXFP4",
    "bnb-4bit": "bitsandbytes 4 bit",
    "none": "the form they are stored in",
}
# Models whose weights are on the Hub in both 4-bit forms
GPT_OSS = ("gpt-oss-20b", "gpt-oss-120b")


@dataclass(frozen=True)
class HubCopies:
    """The repositories that hold one gpt-oss in both 4-bit forms."""

    mxfp4: str
    bnb_4bit: str


def hub_copies(path: str) -> HubCopies | None:
    """Where the Hub has both forms of a model; None if it is another model or a local folder.

    Source: unsloth/models/mapper.py of Unsloth 2026.10.9. With load_in_4bit, from_pretrained
    replaces the names of OpenAI and Unsloth by the bitsandbytes copy. Without, it replaces OpenAI's
    name by Unsloth's, which holds the MXFP4 weights.

    Args:
        path: Model.path.
    """
    owner, _, name = path.lower().partition("/")
    if owner not in ("openai", "unsloth") or name not in GPT_OSS:
        return None
    return HubCopies(f"unsloth/{name}", f"unsloth/{name}-unsloth-bnb-4bit")


def from_load_in_4bit(four_bit: bool, name: str) -> str:
    """The value that means what `load_in_4bit` of older configs meant for the model of this name.

    For gpt-oss of the Hub it meant the bitsandbytes copy, on which their adapters were trained.
    """
    if not four_bit:
        return "none"
    if hub_copies(name):
        return "bnb-4bit"
    return "auto"


def stored_as(architecture: Mapping[str, Any]) -> str | None:
    """The quantisation that a config.json names, by transformers' name; None for 16 bit."""
    section = architecture.get("quantization_config")
    if not section:
        return None
    # transformers takes a section that names no method for one of bitsandbytes.
    return section.get("quant_method", "bitsandbytes")


def pick(architecture: Mapping[str, Any]) -> tuple[str, str]:
    """What `auto` makes of a checkpoint that exists in one form only, and why.

    Args:
        architecture: its config.json.
    """
    stored = stored_as(architecture)
    if stored == "mxfp4":
        return "mxfp4", "it is stored so"
    if stored == "bitsandbytes":
        return "bnb-4bit", "it is stored so"
    if stored is not None:
        return "bnb-4bit", f"unless the backend keeps {stored}, in which it is stored"
    if architecture.get("model_type") == "gpt_oss":
        return "none", "bitsandbytes cannot quantise the fused experts of a 16-bit gpt-oss"
    return "bnb-4bit", "its 16-bit weights are quantised while loading"


def check_stored(asked: str, name: str, architecture: Mapping[str, Any]) -> None:
    """Refuses a form that this checkpoint cannot be loaded in.

    Args:
        asked: the value of model.quantization, other than auto.
        name: the model's, for the message.
        architecture: its config.json.

    Raises:
        ConfigError: for such a form.
    """
    stored = stored_as(architecture)
    if asked == "mxfp4" and stored != "mxfp4":
        raise ConfigError(
            f"model.quantization: mxfp4, but {name} is not stored in MXFP4; "
            "write auto, or name a model that is"
        )
    if asked != "bnb-4bit":
        return
    if stored == "mxfp4":
        raise ConfigError(
            f"model.quantization: bnb-4bit, but {name} is stored in MXFP4, which bitsandbytes "
            "cannot quantise again; write mxfp4 or auto"
        )
    if stored is None and architecture.get("model_type") == "gpt_oss":
        raise ConfigError(
            f"model.quantization: bnb-4bit, but {name} is a 16-bit gpt-oss, whose fused experts "
            "bitsandbytes cannot quantise; write none, or name a quantised copy"
        )
