"""What the `grpo:` section of the config may hold: every field of the installed GRPOConfig, a few keys of our own, and
named algorithms.

Nothing here imports torch or TRL, whose source is read instead: Unsloth must be imported before TRL, and a misspelt key
should cost a moment.
"""

import ast
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from job.errors import nearest

# Each algorithm sets all of these keys, so that a change from one to another leaves nothing of the first behind.
COMMON = {
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "scale_rewards": "group",
    "multi_objective_aggregation": "sum_then_normalize",
    "beta": 0.0,
    "epsilon": 0.2,
    "epsilon_high": None,
    "mask_truncated_completions": False,
    "zero_std_groups": "keep",
}
# By the papers and TRL's documentation of them; docs/algorithms.md has the table with their links.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": COMMON | {"beta": 0.04},
    "dr_grpo": COMMON | {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": COMMON
    | {
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "mask_truncated_completions": True,
        "zero_std_groups": "resample",
    },
    "gspo": COMMON
    | {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "bnpo": COMMON | {"loss_type": "bnpo"},
    "cispo": COMMON | {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": COMMON | {"loss_type": "sapo"},
    "luspo": COMMON
    | {
        "loss_type": "luspo",
        "importance_sampling_level": "sequence",
        "epsilon": 2e-3,
        "epsilon_high": 2.5e-3,
    },
    "vespo": COMMON | {"loss_type": "vespo"},
    "gdpo": COMMON | {"multi_objective_aggregation": "normalize_then_sum"},
}


@dataclass(frozen=True)
class Options:
    """The keys of the `grpo:` section that are not TRL's."""

    algorithm: str | None = (
        None  # one of ALGORITHMS: sets its keys, unless they are written beside it
    )
    zero_std_groups: Literal["keep", "skip", "resample"] = MISSING
    max_resampling_tries: int = MISSING
    max_prompt_length: int | None = (
        None  # tokens; null: what max_completion_length leaves of model.max_seq_length
    )
    overlong_prompts: Literal["refuse", "drop"] = MISSING

    def __post_init__(self):
        mistakes = []
        if self.algorithm is not None and self.algorithm not in ALGORITHMS:
            hint = nearest(self.algorithm, ALGORITHMS)
            mistakes.append(
                f"algorithm: there is no {self.algorithm!r}{hint}; there are {list(ALGORITHMS)}"
            )
        tries = self.max_resampling_tries
        if tries < 1:
            mistakes.append(
                f"max_resampling_tries: must be above 0, not {tries}; to resample nothing, zero_std_groups: keep"
            )
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            mistakes.append(f"max_prompt_length: must be above 0, not {self.max_prompt_length}")
        if mistakes:
            raise ValueError("\n".join(mistakes))


LOG_LEVELS = (
    "passive",
    "detail",
    "debug",
    "info",
    "warning",
    "error",
    "critical",
)  # of transformers
OWN_KEYS = tuple(field.name for field in fields(Options))

ENUMERATIONS = ("loss_type", "importance_sampling_level", "multi_objective_aggregation", "scale_rewards",
                "vllm_mode", "vllm_importance_sampling_mode")  # fmt: skip


def spell_out(layer: Mapping[str, Any]) -> None:
    """Put the words of the enumerations in place of the booleans that YAML 1.1 reads from a bare `no` and that older
    recipes write for scale_rewards."""
    section = grpo_of(layer)
    for key, value in section.items():
        if key == "scale_rewards" and isinstance(value, bool):
            section[key] = "group" if value else "none"
        elif value is False and "no" in enumerations().get(key, ()):
            section[key] = "no"


def with_algorithm(layers: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The layers of the config with the keys of the algorithm that is named last put in just before the layer that
    names it, so that what is written beside it or later wins; and a notice for each key that does."""
    naming = [i for i, layer in enumerate(layers) if "algorithm" in grpo_of(layer)]
    name = grpo_of(layers[naming[-1]])["algorithm"] if naming else None
    if not isinstance(name, str) or name not in ALGORITHMS:
        return list(layers), []
    keys = ALGORITHMS[name]
    written: dict[str, Any] = {}
    for layer in layers[naming[-1] :]:
        written |= {key: value for key, value in grpo_of(layer).items() if key in keys}
    notices = [
        f"grpo.{key}: {value} wins over {keys[key]}, which grpo.algorithm: {name} would set"
        for key, value in (
            (key, config_fields()[key][1] if value is None else value)
            for key, value in written.items()
        )
        if value != keys[key]
    ]
    return [*layers[: naming[-1]], {"grpo": dict(keys)}, *layers[naming[-1] :]], notices


def grpo_of(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    section = layer.get("grpo")
    return section if isinstance(section, dict) else {}


def changes(settings: Mapping[str, Any], arguments: Any) -> list[str]:
    """What a GRPOConfig made from `settings` has otherwise, in words: values that were replaced, and defaults that are
    not TRL's. Unsloth's GRPOConfig does both."""

    def plain(value: Any) -> Any:
        return getattr(value, "value", value)  # of an enumeration

    same = {
        "scale_rewards": {"True": "group", "False": "none"},
        "report_to": {"none": []},
    }  # two spellings of one thing
    replaced = [
        f"grpo.{key}: {value!r} was changed to {plain(getattr(arguments, key))!r} by the library"
        for key, value in settings.items()
        if value is not None
        and plain(getattr(arguments, key))
        not in (value, [value], same.get(key, {}).get(str(value), value))
    ]
    defaults = [
        f"{key} {plain(getattr(arguments, key))!r} (not {default!r})"
        for key, (_, default) in config_fields().items()
        if key not in settings
        and key != "do_eval"  # follows eval_strategy
        and default is not None
        and (plain(getattr(arguments, key)) or None) != (default or None)
    ]
    return replaced + ([f"defaults that are not TRL's: {', '.join(defaults)}"] if defaults else [])


@functools.cache
def enumerations() -> dict[str, frozenset[str]]:
    """What the installed libraries accept, by key: the members of the enumerations of TrainingArguments, and the texts
    that GRPOTrainer compares a setting with."""
    enums = {
        node.name: frozenset(
            item.value.value
            for item in node.body
            if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
        )
        for package, file in (
            ("transformers", "training_args.py"),
            ("transformers", "trainer_utils.py"),
        )
        for node in parsed(package, file).body
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("Enum") for base in node.bases)
    }
    allowed = {
        name: enums[part]
        for name, (annotation, _) in config_fields().items()
        for part in annotation.split(" | ")
        if part in enums
    }
    for node in ast.walk(parsed("trl", "trainer/grpo_trainer.py")):
        if (
            isinstance(node, ast.Compare)
            and isinstance(node.left, ast.Attribute)
            and node.left.attr in ENUMERATIONS
        ):
            texts = {
                item.value
                for item in ast.walk(node.comparators[0])
                if isinstance(item, ast.Constant)
            }
            allowed[node.left.attr] = allowed.get(node.left.attr, frozenset()) | texts
    allowed["log_level"] = allowed["log_level_replica"] = frozenset(LOG_LEVELS)
    allowed["vllm_mode"] = allowed.get("vllm_mode", frozenset()) | {
        "server",
        "colocate",
    }  # only one is compared with
    return allowed


@functools.cache
def config_fields() -> dict[str, tuple[str, Any]]:
    """(annotation, default or None) of each field of the installed GRPOConfig."""
    found: dict[str, tuple[str, Any]] = {}
    for package, file, class_name in (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/grpo_config.py", "GRPOConfig"),
    ):
        for node in parsed(package, file).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                annotated = (item for item in node.body if isinstance(item, ast.AnnAssign))
                found |= {
                    item.target.id: (ast.unparse(item.annotation), default_of(item.value))
                    for item in annotated
                }
    return found


def default_of(value: ast.expr | None) -> Any:
    """The default of a dataclass field, where it is a plain value, else None."""
    if isinstance(value, ast.Call):
        value = next(
            (keyword.value for keyword in value.keywords if keyword.arg == "default"), None
        )
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


@functools.cache
def parsed(package: str, file: str) -> ast.Module:
    source = Path(importlib.util.find_spec(package).origin).parent / file
    return ast.parse(source.read_text(encoding="utf-8"))


def schema() -> type:
    """GRPOConfig and Options as one dataclass whose every value of GRPOConfig may also be null."""
    simple = {"int": int | None, "float": float | None, "bool": bool | None, "str": str | None}
    plain = {
        name: annotation.removesuffix(" | None")
        for name, (annotation, _) in config_fields().items()
    }
    plain["fsdp"] = (
        "bool | str"  # annotated as text, which transformers calls deprecated: true is what it asks for
    )
    return make_dataclass(
        "Grpo",
        [(name, simple.get(annotation, Any), MISSING) for name, annotation in plain.items()],
        bases=(Options,),
        frozen=True,
    )
