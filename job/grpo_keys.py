"""What the `grpo:` section of the config may hold.

That is every field of the installed GRPOConfig, a few keys of our own, and named algorithms.

Nothing here imports torch or TRL. Unsloth must be imported before TRL, and a misspelt key should
cost only a moment. So the source of TRL is read instead.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import MISSING

from job.errors import among

Node = TypeVar("Node", bound=ast.AST)

# Each algorithm sets all of these keys, so that a change from one to another leaves nothing of the
# first behind.
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
# The values are those of the papers and of TRL's documentation; docs/algorithms.md links them.
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

    # One of ALGORITHMS. It sets its keys, unless they are written beside it.
    algorithm: str | None = None
    zero_std_groups: Literal["keep", "skip", "resample"] = MISSING
    max_resampling_tries: int = MISSING
    # Tokens. null: what max_completion_length leaves of model.max_seq_length.
    max_prompt_length: int | None = None
    overlong_prompts: Literal["refuse", "drop"] = MISSING

    def __post_init__(self):
        mistakes = list(self._mistakes())
        if mistakes:
            raise ValueError("\n".join(mistakes))

    def _mistakes(self) -> Iterator[str]:
        if self.algorithm not in (None, *ALGORITHMS):
            yield (f"algorithm: there is no {self.algorithm!r}{among(self.algorithm, ALGORITHMS)}")
        tries = self.max_resampling_tries
        if tries < 1:
            yield (
                f"max_resampling_tries: must be above 0, not {tries}; "
                "to resample nothing, zero_std_groups: keep"
            )
        limit = self.max_prompt_length
        if limit is not None and limit < 1:
            yield f"max_prompt_length: must be above 0, not {limit}"


OWN_KEYS = tuple(field.name for field in fields(Options))
# transformers' names of log levels
LOG_LEVELS = ("passive", "detail", "debug", "info", "warning", "error", "critical")
# Keys whose values GRPOTrainer compares with texts.
ENUMERATIONS = (
    "loss_type",
    "importance_sampling_level",
    "multi_objective_aggregation",
    "scale_rewards",
    "vllm_mode",
    "vllm_importance_sampling_mode",
)
# Key -> a value as text -> its other spelling
SPELLINGS: dict[str, dict[str, Any]] = {
    "scale_rewards": {"True": "group", "False": "none"},
    "report_to": {"none": []},
}


# ---- the layers of the config


def grpo_of(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `grpo:` section of a layer; empty where there is none."""
    section = layer.get("grpo")
    if isinstance(section, dict):
        return section
    return {}


def spell_out(layer: Mapping[str, Any]) -> None:
    """Replace booleans by the words of the enumerations.

    YAML 1.1 reads a bare `no` as false, and older recipes write booleans for scale_rewards.
    """
    section = grpo_of(layer)
    for key, value in section.items():
        if isinstance(value, bool):
            section[key] = word_for(key, value)


def word_for(key: str, value: bool) -> str | bool:
    """What a boolean stands for in an enumeration; the boolean itself elsewhere."""
    if key == "scale_rewards":
        return SPELLINGS[key][str(value)]
    words = enumerations().get(key, ())
    if not value and "no" in words:
        return "no"
    return value


def with_algorithm(layers: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The layers with the keys of the named algorithm, and a notice for each key that overrides it.

    If several layers name an algorithm, the last one counts. Its keys become a layer of their own,
    just before the one that names it. So what is written beside the name, or later, wins.
    """
    naming = last_naming(layers)
    if naming is None:
        return list(layers), []
    name = grpo_of(layers[naming])["algorithm"]
    if name not in list(ALGORITHMS):
        return list(layers), []  # the schema or Options refuses it

    earlier, later = layers[:naming], layers[naming:]
    written: dict[str, Any] = {}
    for layer in later:
        written |= grpo_of(layer)
    algorithm_layer = {"grpo": dict(ALGORITHMS[name])}
    return [*earlier, algorithm_layer, *later], overriding(written, name)


def last_naming(layers: Sequence[dict[str, Any]]) -> int | None:
    """Index of the last layer that names an algorithm."""
    last = None
    for i, layer in enumerate(layers):
        if "algorithm" in grpo_of(layer):
            last = i
    return last


def overriding(written: Mapping[str, Any], name: str) -> list[str]:
    """A notice for each key that has another value than the algorithm would set."""
    notices = []
    for key, would_be in ALGORITHMS[name].items():
        value = written.get(key, would_be)
        if value is None:
            _, value = config_fields().get(key, ("", None))  # null is TRL's default
        if value != would_be:
            notices.append(
                f"grpo.{key}: {value} wins over {would_be}, which grpo.algorithm: {name} would set"
            )
    return notices


# ---- what a library made of the settings


def changes(settings: Mapping[str, Any], arguments: Any) -> list[str]:
    """What a GRPOConfig that was made from `settings` has otherwise, in words.

    Unsloth's GRPOConfig replaces some values, and has other defaults than TRL.
    """
    found = replaced_values(settings, arguments)
    defaults = changed_defaults(settings, arguments)
    if defaults:
        found.append(f"defaults that are not TRL's: {', '.join(defaults)}")
    return found


def replaced_values(settings: Mapping[str, Any], arguments: Any) -> list[str]:
    """Keys of `settings` whose values were replaced, each with both values."""
    found = []
    for key, value in settings.items():
        actual = plain_value(arguments, key)
        if not same_value(key, value, actual):
            found.append(f"grpo.{key}: {value!r} was changed to {actual!r} by the library")
    return found


def plain_value(arguments: Any, key: str) -> Any:
    """The value of a key; of a member of an enumeration, what it stands for."""
    value = getattr(arguments, key)
    return getattr(value, "value", value)


def same_value(key: str, value: Any, actual: Any) -> bool:
    """Whether two values mean the same: one may be spelled otherwise, or be a list of one."""
    if value is None:
        return True  # null leaves the value to the library
    other_spelling = SPELLINGS.get(key, {}).get(str(value), value)
    return actual in (value, [value], other_spelling)


def changed_defaults(settings: Mapping[str, Any], arguments: Any) -> list[str]:
    """Keys that `settings` leaves out and that are not as TRL has them, each with both values."""
    skipped = {*settings, "do_eval"}  # do_eval follows eval_strategy
    found = []
    for key, (_, default) in config_fields().items():
        if key in skipped:
            continue
        actual = plain_value(arguments, key)
        if not same_default(default, actual):
            found.append(f"{key} {actual!r} (not {default!r})")
    return found


def same_default(default: Any, actual: Any) -> bool:
    """Whether a value is TRL's default. What is empty in two ways counts as the same."""
    if default is None:
        return True  # TRL's source gives no plain value
    if not default:
        return not actual
    return actual == default


# ---- what the installed libraries accept, read from their source


@functools.cache
def enumerations() -> dict[str, frozenset[str]]:
    """The values that the installed libraries accept, by key.

    They are the members of the enumerations of TrainingArguments, and the texts that GRPOTrainer
    compares a setting with.
    """
    allowed: dict[str, frozenset[str]] = {}
    members = enumeration_members()
    for key, (annotation, _) in config_fields().items():
        for part in annotation.split(" | "):
            if part in members:
                allowed[key] = members[part]
    allowed |= compared_texts()
    allowed["log_level"] = allowed["log_level_replica"] = frozenset(LOG_LEVELS)
    # GRPOTrainer compares with one of these only.
    allowed["vllm_mode"] = allowed.get("vllm_mode", frozenset()) | {"server", "colocate"}
    return allowed


def enumeration_members() -> dict[str, frozenset[str]]:
    """Values of the members of each enumeration of TrainingArguments, by its name."""
    members = {}
    for file in ("training_args.py", "trainer_utils.py"):
        for name, node in classes_of("transformers", file).items():
            if any(ast.unparse(base).endswith("Enum") for base in node.bases):
                values = [item.value for item in of_type(ast.Assign, node.body)]
                members[name] = constants(values)
    return members


def compared_texts() -> dict[str, frozenset[str]]:
    """The texts that GRPOTrainer compares each of ENUMERATIONS with."""
    texts: dict[str, frozenset[str]] = {}
    tree = parsed("trl", "trainer/grpo_trainer.py")
    for node in of_type(ast.Compare, ast.walk(tree)):
        key = getattr(node.left, "attr", None)  # of `self.key == "text"`
        if key in ENUMERATIONS:
            known = texts.get(key, frozenset())
            texts[key] = known | constants(ast.walk(node.comparators[0]))
    return texts


@functools.cache
def config_fields() -> dict[str, tuple[str, Any]]:
    """(annotation, default or None) of each field of the installed GRPOConfig."""
    found: dict[str, tuple[str, Any]] = {}
    for package, file, class_name in (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/grpo_config.py", "GRPOConfig"),
    ):
        found |= annotated_fields(classes_of(package, file)[class_name])
    return found


def annotated_fields(node: ast.ClassDef) -> dict[str, tuple[str, Any]]:
    """(annotation, default or None) of each field that the body of a dataclass declares."""
    found = {}
    for item in of_type(ast.AnnAssign, node.body):
        found[item.target.id] = (ast.unparse(item.annotation), default_of(item.value))
    return found


def default_of(value: ast.expr | None) -> Any:
    """The default of a dataclass field where it is a plain value, else None."""
    if isinstance(value, ast.Call):  # field(default=...)
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        value = keywords.get("default")
    if value is None:
        return None
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


def classes_of(package: str, file: str) -> dict[str, ast.ClassDef]:
    """The classes of a file of an installed package, by name."""
    return {node.name: node for node in of_type(ast.ClassDef, parsed(package, file).body)}


def constants(nodes: Iterable[ast.AST]) -> frozenset[Any]:
    """The values of those nodes that are constants."""
    return frozenset(node.value for node in of_type(ast.Constant, nodes))


def of_type(kind: type[Node], nodes: Iterable[ast.AST]) -> list[Node]:
    """The nodes of one type."""
    return [node for node in nodes if isinstance(node, kind)]


@functools.cache
def parsed(package: str, file: str) -> ast.Module:
    source = Path(importlib.util.find_spec(package).origin).parent / file
    return ast.parse(source.read_text(encoding="utf-8"))


def schema() -> type:
    """GRPOConfig and Options as one dataclass. Every value of GRPOConfig may also be null."""
    simple = {"int": int | None, "float": float | None, "bool": bool | None, "str": str | None}
    declared = []
    for name, (annotation, _) in config_fields().items():
        kind = simple.get(annotation.removesuffix(" | None"), Any)
        if name == "fsdp":
            # It is annotated as text. transformers calls text deprecated and asks for true.
            kind = Any
        declared.append((name, kind, MISSING))
    return make_dataclass("Grpo", declared, bases=(Options,), frozen=True)
