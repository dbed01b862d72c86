"""YAML and key=value -> one validated, frozen Config, or every mistake at once.

There are three kinds of layers, and later ones win: config.yaml (the defaults), the files named by
--config, the overrides of the command line.
"""

import contextlib
import datetime
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import sandbox
import tasks
from job import grpo_keys, interruption, own_code, watchdog
from job.adapters import adopt_adapter
from job.chat_templates import template_mistake
from job.distributed import world_size
from job.errors import ConfigError, among, nearest, one_line
from job.quantization import from_load_in_4bit
from job.rollout import engine
from job.rules import impossible, in_vain, is_texts
from tasks.data import sources

ROOT = Path(__file__).resolve().parent.parent
TINY_MODEL = ROOT / "tiny_model"
NAMES = r"\s*\w+(?:\s*,\s*\w+)+\s*"  # of modules, where one is expected
NULLS = ("null", "Null", "NULL", "~")
OCTAL = r"[+-]?0[0-7_]*[1-9_][0-7_]*"  # what YAML 1.1 reads to the base 8


@dataclass(frozen=True)
class Model:
    """Arguments of from_pretrained, by Unsloth's names."""

    name: str = MISSING
    backend: Literal["auto", "unsloth", "transformers"] = MISSING
    max_seq_length: int = MISSING
    quantization: Literal["auto", "mxfp4", "bnb-4bit", "none"] = MISSING
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = MISSING
    offload_embedding: Literal["auto", True, False] = MISSING
    prompt_date: str = MISSING
    adapter: str | None = None  # a folder; training starts from it
    reference: Literal["adapter", "base"] = MISSING  # of the KL penalty, if there is an adapter
    chat_template: str | None = None  # a name of job/chat_templates.py, or a file

    def __post_init__(self):
        mistakes = []
        if self.chat_template is not None:
            mistake = template_mistake(self.chat_template)
            if mistake:
                mistakes.append(f"chat_template: {mistake}")
        if looks_local(self.name) and not (local_path(self.name) / "config.json").is_file():
            mistakes.append(
                f"name: {self.name} is not a folder with a model in it (no config.json there)"
            )
        if self.max_seq_length < 1:
            mistakes.append(f"max_seq_length: must be above 0, not {self.max_seq_length}")
        try:
            datetime.date.fromisoformat(self.prompt_date)
        except ValueError:
            mistakes.append(f"prompt_date: must be a day as YYYY-MM-DD, not {self.prompt_date!r}")
        if mistakes:
            raise ValueError("\n".join(mistakes))

    @property
    def path(self) -> str:
        """What from_pretrained gets: a Hub id or an absolute path.

        Unsloth would take a relative path for a Hub id.
        """
        if self.name == "tiny":
            return str(TINY_MODEL)
        local = local_path(self.name)
        if looks_local(self.name) or local.is_dir():
            return str(local.resolve())
        return self.name


@dataclass(frozen=True)
class Lora:
    """Arguments of get_peft_model / LoraConfig, by their names."""

    r: int = MISSING
    lora_alpha: int = MISSING
    lora_dropout: float = MISSING
    bias: Literal["none", "all", "lora_only"] = MISSING
    target_modules: Any = MISSING
    target_parameters: list[str] | None = None
    use_gradient_checkpointing: Literal["unsloth", True, False] = MISSING
    random_state: int = MISSING

    def __post_init__(self):
        mistakes = []
        for key in ("r", "lora_alpha"):
            if getattr(self, key) < 1:
                mistakes.append(f"{key}: must be above 0, not {getattr(self, key)}")
        if not 0 <= self.lora_dropout < 1:
            mistakes.append(
                f"lora_dropout: must be at least 0 and below 1, not {self.lora_dropout}"
            )
        if isinstance(self.target_modules, str) and re.fullmatch(NAMES, self.target_modules):
            names = re.sub(r"\s*,\s*", ", ", self.target_modules.strip())
            mistakes.append(f"target_modules: for several modules write [{names}]")
        if not isinstance(self.target_modules, str) and not is_texts(self.target_modules):
            mistakes.append(
                f"target_modules: must be a name or a list of names, not {self.target_modules!r}"
            )
        if not -(2**63) <= self.random_state < 2**64:
            mistakes.append(f"random_state: must fit into 64 bits, not {self.random_state}")
        if mistakes:
            raise ValueError("\n".join(mistakes))


@dataclass(frozen=True)
class SandboxOptions(sandbox.Limits):
    """The `sandbox:` section: the limits of one program, and how many run under what protection."""

    workers: int | None = None  # programs run at once; null: one for each CPU core
    require: list[str] = MISSING  # layers of protection without which nothing is run
    grade_timeout_s: float | None = None  # wall clock of grading one completion

    def __post_init__(self):
        sandbox.Limits.__post_init__(self)
        if self.grade_timeout_s is not None and not 0 < self.grade_timeout_s < math.inf:
            raise ValueError(
                f"grade_timeout_s: must be above 0 and finite, not {self.grade_timeout_s}"
            )
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: must be above 0, not {self.workers}")
        for layer in self.require:
            if layer not in sandbox.LAYERS:
                raise ValueError(f"require: no layer {layer!r}{among(layer, sandbox.LAYERS)}")


@dataclass(frozen=True)
class EvaluateOptions:
    """The `evaluate:` section: when a run evaluates its held-out rows, and how much that may cost.

    Which rows are held out stays with the task.
    """

    before: bool = MISSING
    after: bool = MISSING
    every: int | None = None  # optimizer steps
    rows: int | None = None  # at most; null: all that are held out
    completions: int = MISSING  # of each row
    share: float = MISSING  # of all completions that the run decodes, at most

    def __post_init__(self):
        mistakes = []
        for key in ("every", "rows", "completions"):
            value = getattr(self, key)
            if value is not None and value < 1:
                mistakes.append(f"{key}: must be above 0, not {value}")
        if not 0 < self.share < 1:
            mistakes.append(f"share: must be above 0 and below 1, not {self.share}")
        if mistakes:
            raise ValueError("\n".join(mistakes))


@dataclass(frozen=True)
class Config:
    """Everything that a run is told."""

    model: Model
    lora: Lora
    # Keyword arguments of GRPOConfig. A key that was left null is absent: the library's default.
    grpo: Mapping[str, Any]
    # The keys of the `grpo:` section that are not GRPOConfig's
    grpo_extra: grpo_keys.Options
    rollout: engine.Options
    # One task, or several that are mixed
    tasks: tuple[tasks.Options, ...]
    sandbox: SandboxOptions
    watchdog: watchdog.Options
    evaluate: EvaluateOptions
    train: interruption.Options
    # What is worth knowing about the keys that were written, in words
    notices: tuple[str, ...] = ()


# Section -> its dataclass, all but the tasks
SECTIONS: dict[str, Callable[[], type]] = {
    "model": lambda: Model,
    "lora": lambda: Lora,
    "grpo": grpo_keys.schema,
    "rollout": lambda: engine.Options,
    "sandbox": lambda: SandboxOptions,
    "watchdog": lambda: watchdog.Options,
    "evaluate": lambda: EvaluateOptions,
    "train": lambda: interruption.Options,
}

# Keys of older recipes and libraries: where each went (None: nothing is left to set), and why.
LEGACY = {
    "model.model_name": ("model.name", ""),
    "model.lora_rank": ("lora.r", ""),
    "model.lora_alpha": ("lora.lora_alpha", ""),
    "lora.rank": ("lora.r", ""),
    "lora.lora_rank": ("lora.r", ""),
    "lora.alpha": ("lora.lora_alpha", ""),
    "lora.dropout": ("lora.lora_dropout", ""),
    "grpo.warmup_ratio": ("grpo.warmup_steps", "a number below 1 is a share of all steps"),
    "grpo.save_safetensors": (None, "always on"),
    "grpo.logging_dir": (None, "TensorBoard files go to <output_dir>/runs"),
    "grpo.overwrite_output_dir": (None, "transformers no longer has it"),
    "grpo.max_seq_length": ("model.max_seq_length", ""),
}
LEGACY_TASKS = {"code_generation": "matmul"}

# Keys that differ between a run and its continuation
OF_EACH_RUN = ("grpo.resume_from_checkpoint", "grpo.output_dir")


def load_config(
    paths: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """Read config.yaml, then each file of `paths`, then `overrides` ("section.key=value").

    Raises:
        ConfigError: with every mistake found, each with its full key and what was expected.
    """
    mistakes: list[str] = []

    # What is written, layer by layer
    layers = read_layers(paths, overrides, mistakes)
    notices: list[str] = []
    for layer in layers:
        notices += rename_legacy(layer)
        grpo_keys.spell_out(layer)
    notices += replace_load_in_4bit(layers, mistakes)
    notices += adopt_adapter(layers, mistakes)
    layers, overruled = grpo_keys.with_algorithm(layers)
    notices += overruled

    # Which keys there are: each task brings its own
    notices += budgets_of_sandbox(layers[1:])
    task_keys = settle_tasks(layers, mistakes)
    for name, keys in task_keys.items():
        notices += budgets_of_task(name, keys)
    tree = make_tree(task_keys)

    # Each value into its typed key, later layers over earlier ones
    for layer in [*layers, task_keys]:
        fill(tree, layer, mistakes)
    mistakes += missing_keys(tree)

    # What cannot run
    mistakes += impossible(tree, list(task_keys), world_size())
    sections = freeze_all(tree, task_keys, mistakes)
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))

    grpo, grpo_extra = sections.pop("grpo")
    notices += in_vain(grpo)
    mixture = tuple(sections.pop(name) for name in task_keys)
    return Config(
        **sections,
        tasks=mixture,
        grpo=MappingProxyType(grpo),
        grpo_extra=grpo_extra,
        notices=tuple(notices),
    )


# ---- What is written


def read_layers(
    paths: str | os.PathLike | Sequence[str | os.PathLike] | None,
    overrides: Sequence[str],
    mistakes: list[str],
) -> list[dict[str, Any]]:
    """The content of config.yaml, of each file and of the command line, in this order."""
    if paths is None:
        paths = []
    elif isinstance(paths, str | os.PathLike):
        paths = [paths]
    layers = [read_yaml(ROOT / "config.yaml", mistakes)]
    for path in paths:
        layers.append(read_yaml(Path(path), mistakes))
    for layer in layers:
        name_tasks(layer)
    layers.append(parse_overrides(overrides, mistakes))
    return layers


def name_tasks(layer: dict[str, Any]) -> None:
    """Replace the path of a task's file by the name of the task, in place. One that cannot be used
    stays; `task_mistakes` says why."""
    several = layer.get("task")
    if not isinstance(several, list):
        several = [several]
    for task in several:
        if isinstance(task, dict) and isinstance(task.get("type"), str):
            with contextlib.suppress(ValueError):
                task["type"] = own_code.task_name(task["type"])


def read_yaml(path: Path, mistakes: list[str]) -> dict[str, Any]:
    """The sections of a YAML file; empty where something is wrong with the file."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        mistakes.append(f"{path}: no such file")
        return {}
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"{path}: cannot be read: {error}")
        return {}
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        hint = ""
        if re.search(r"(?m)^ *\t", path.read_text(encoding="utf-8")):
            hint = "; YAML indents with spaces, not with tabs"
        mistakes.append(f"{path}: not valid YAML: {one_line(error)}{hint}")
        return {}
    if not isinstance(content, dict):
        mistakes.append(
            f"{path}: must hold sections (model:, lora:, grpo:, task:, evaluate:, ...), "
            f"not a {type(content).__name__}"
        )
        return {}
    return content


def parse_overrides(overrides: Sequence[str], mistakes: list[str]) -> dict[str, Any]:
    """The sections that overrides of the form section.key=value make up."""
    layer: dict[str, Any] = {}
    # The type first: it says which keys the task has, and so how their values are read
    for text in sorted(overrides, key=lambda text: not text.startswith("task.type=")):
        try:
            section, key, value = parse_override(text)
        except ValueError as error:
            mistakes.append(f"override {text!r}: {error}")
            continue
        layer.setdefault(section, {})[key] = value
        if (section, key) == ("task", "type"):
            name_tasks(layer)
    return layer


def parse_override(text: str) -> tuple[str, str, Any]:
    """(section, key, value) of an override.

    Raises:
        ValueError: with what is wrong, in words.
    """
    parts = re.fullmatch(r"([^.=]+)\.([^=]+)=(.*)", text, re.DOTALL)
    if parts is None:
        raise ValueError("write it as section.key=value without spaces, e.g. grpo.max_steps=1")
    section, key, written = parts.groups()
    if not written.strip():
        raise ValueError(f"the value is empty; for none, write {section}.{key}=null")
    try:
        parsed = OmegaConf.from_dotlist([f"value={written}"])
        value = OmegaConf.to_container(parsed, resolve=False)["value"]
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"the value is not valid YAML: {one_line(error)}") from error
    # A text is meant as it is written: `yes`, `007` and `#tag` are not true, 7 and null.
    if not isinstance(value, str) and written.strip() not in NULLS and is_text(section, key):
        return section, key, written.strip()
    if re.fullmatch(OCTAL, written.strip()):
        decimal = written.strip().replace("_", "").lstrip("+-0")
        raise ValueError(f"YAML reads {written} as the octal number {value}; write {decimal}")
    # YAML reads `say: this` as a mapping. Only what is written with brackets is meant as one.
    if isinstance(value, dict | list) and not written.lstrip().startswith(("{", "[")):
        value = written
    return section, key, value


def is_text(section: str, key: str) -> bool:
    """Whether every section of this name takes a text, or null, for this key.

    Keys that take one of a few words do not count: grpo_keys.spell_out reads booleans for them.
    """
    if section == "grpo" and key in grpo_keys.enumerations():
        return False
    if section == "task":
        sound = [name for name in tasks.names() if not any(tasks.contract_mistakes(name))]
        schemas = [tasks.load(name).Options for name in sound]
    else:
        schemas = [SECTIONS[section]()] if section in SECTIONS else []
    kinds = [get_type_hints(schema).get(key) for schema in schemas]
    known = [kind for kind in kinds if kind is not None]
    return bool(known) and all(kind in (str, str | None) for kind in known)


def rename_legacy(layer: dict[str, Any]) -> Iterator[str]:
    """Replace keys of older recipes in place. Yields a notice for each."""
    for old, (new, why) in LEGACY.items():
        section, key = old.split(".")
        content = layer.get(section)
        if not isinstance(content, dict) or key not in content:
            continue
        value = content.pop(key)
        notice = f"{old} is ignored"
        if new:
            move_to(layer, new, value)
            notice = f"{old} is now {new}"
        if why:
            notice += f" ({why})"
        yield notice

    several = layer.get("task")
    if not isinstance(several, list):
        several = [several]
    for task in several:
        if not isinstance(task, dict):
            continue
        old_type = str(task.get("type"))
        if old_type in LEGACY_TASKS:
            task["type"] = LEGACY_TASKS[old_type]
            yield f"task.type: {old_type} is now {task['type']}"


def move_to(layer: dict[str, Any], path: str, value: Any) -> None:
    """Write a value to "section.key", unless the layer has that key already."""
    section, key = path.split(".")
    if not layer.get(section):
        layer[section] = {}
    if isinstance(layer[section], dict):
        layer[section].setdefault(key, value)


def replace_load_in_4bit(layers: Sequence[dict[str, Any]], mistakes: list[str]) -> list[str]:
    """Replace `load_in_4bit` of older configs by `quantization`, in place. Returns the notices."""
    sections = [layer["model"] for layer in layers if isinstance(layer.get("model"), dict)]
    name = ""
    for section in sections:
        name = str(section.get("name", name))
    notices = []
    for section in sections:
        if "load_in_4bit" not in section:
            continue
        four_bit = section.pop("load_in_4bit")
        if not isinstance(four_bit, bool):
            mistakes.append(f"model.load_in_4bit: must be true or false, not {four_bit!r}")
            continue
        old = f"model.load_in_4bit: {str(four_bit).lower()}"
        if "quantization" not in section:
            section["quantization"] = from_load_in_4bit(four_bit, name)
            notices.append(f"{old} is now model.quantization: {section['quantization']}")
            continue
        new = f"model.quantization: {section['quantization']}"
        if four_bit == (section["quantization"] == "none"):
            mistakes.append(f"{old} contradicts {new}; write model.quantization alone")
        else:
            notices.append(f"{old} is ignored beside {new}")
    return notices


# ---- Which keys there are


def budgets_of_sandbox(layers: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Turn old sandbox limits into CPU budgets, in place. Yield a notice for each.

    Older configurations know only wall clock limits. Where the user's layers set such a limit
    without its CPU budget, the number becomes the CPU budget, and the wall clock limit becomes
    WALL_FACTOR times that.
    """
    sections = [layer["sandbox"] for layer in layers if isinstance(layer.get("sandbox"), dict)]
    for wall, cpu in sandbox.CPU_BUDGETS.items():
        if not any(cpu in section for section in sections):
            for section in sections:
                if is_positive(section.get(wall)):
                    section[cpu] = section[wall]
                    section[wall] = sandbox.WALL_FACTOR * section[cpu]
                    yield budget_notice("sandbox", wall, cpu, section[cpu])


def budgets_of_task(name: str, keys: dict[str, Any]) -> Iterator[str]:
    """Do the same with the keys of one task, if its type has CPU budgets. Yield the notices.

    A limit in a stage of the curriculum stays a wall clock limit, because the CPU budgets are the
    same in all stages.
    """
    for wall, cpu in getattr(tasks.load(keys["type"]), "CPU_BUDGETS", {}).items():
        if is_positive(keys.get(wall)) and cpu not in keys:
            keys[cpu] = keys[wall]
            keys[wall] = sandbox.WALL_FACTOR * keys[cpu]
            yield budget_notice(name, wall, cpu, keys[cpu])
        stages = keys.get("curriculum")
        for i, stage in enumerate(stages if isinstance(stages, list) else []):
            if isinstance(stage, dict) and wall in stage:
                yield (
                    f"{name}.curriculum[{i}].{wall} is wall clock; "
                    f"the CPU budget is {name}.{cpu} in every stage"
                )


def is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def budget_notice(section: str, wall: str, cpu: str, seconds: float) -> str:
    """Say that a wall clock limit without a CPU budget was taken for the CPU budget."""
    return (
        f"{section}.{wall}={seconds:g} alone is taken for the CPU budget {section}.{cpu}; "
        f"the wall clock limit becomes {sandbox.WALL_FACTOR * seconds:g} s, "
        f"{sandbox.WALL_FACTOR:g} times that"
    )


def settle_tasks(layers: list[dict[str, Any]], mistakes: list[str]) -> dict[str, dict[str, Any]]:
    """The keys of each task, by its name in messages. Takes `task` out of the layers.

    The name is "task", or "task[0]", "task[1]", ... for a list of tasks. A task with a mistake is
    left out.
    """
    merged = merge_tasks(layers, mistakes)
    named = {"task": merged}
    if isinstance(merged, list):
        named = {f"task[{i}]": keys for i, keys in enumerate(merged)}
    types = []
    for keys in named.values():
        if isinstance(keys, dict):
            types.append(keys.get("type"))
    known = {}
    for name, keys in named.items():
        found = task_mistakes(name, keys, types)
        mistakes += found
        if not found:
            known[name] = keys
    return known


def merge_tasks(layers: list[dict[str, Any]], mistakes: list[str]) -> Any:
    """The keys of the one task, or a list with those of several. Takes `task` out of the layers.

    A list replaces what came before it. A layer that changes the type keeps, of the layers before
    it, only the keys that every task has. It does not keep the curriculum, whose stages hold keys
    of the old type, and num_eval_rows, which counts prompts of the old type. It keeps num_rows only
    where the user wrote it: the number in config.yaml is for its own task, and a type may have
    another default.
    """
    shared = OmegaConf.structured(tasks.Options).keys() - {"curriculum", "num_eval_rows"}
    merged: Any = {}
    is_default = False  # whether num_rows is that of config.yaml
    for layer in layers:
        task = layer.pop("task", None) or {}
        if isinstance(task, list):
            merged = task
        elif not isinstance(task, dict):
            mistakes.append(f"task: must hold keys and values, or a list of such, not {task!r}")
        elif isinstance(merged, list):
            for key in task:
                mistakes.append(f"task.{key}: there are several tasks; change it in their list")
        else:
            old_type = merged.get("type")
            if task.get("type", old_type) != old_type:
                merged = {key: value for key, value in merged.items() if key in shared}
                if is_default:
                    merged.pop("num_rows", None)
            merged = merged | task
            is_default = layer is layers[0] or (is_default and "num_rows" not in task)
    return merged


def task_mistakes(name: str, keys: Any, types: Sequence[Any]) -> list[str]:
    """What is wrong with the type of a task.

    Args:
        types: of all tasks in the config.
    """
    if not isinstance(keys, dict):
        return [f"{name}: must hold keys and values, as in `type: matmul`, not {keys!r}"]
    task_type = keys.get("type")
    try:
        own_code.task_name(str(task_type))
    except ValueError as error:
        return [f"{name}.type: {error}"]
    if task_type not in tasks.names():
        return [f"{name}.type: no task {task_type!r}{among(str(task_type), tasks.names())}"]
    if types.count(task_type) > 1:
        return [f"{name}.type: {task_type} is in the list more than once"]
    return [f"{name}.type: {mistake}" for mistake in tasks.contract_mistakes(task_type)]


def make_tree(task_keys: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An OmegaConf node for each section, which knows the type of each key."""
    schema = {name: section() for name, section in SECTIONS.items()}
    for name, keys in task_keys.items():
        schema[name] = tasks.load(keys["type"]).Options
    tree = {}
    for name, section in schema.items():
        tree[name] = OmegaConf.structured(section)
        # OmegaConf makes what comes from a frozen dataclass read-only
        OmegaConf.set_readonly(tree[name], False)
    return tree


def sections_with(key: Any, tree: Mapping[str, Any]) -> list[str]:
    """Names of the sections that have this key."""
    # `key in node` would be False for a key that has no value yet
    return [name for name, node in tree.items() if key in list(node)]


# ---- Each value into its key


def fill(tree: dict[str, Any], layer: Mapping[str, Any], mistakes: list[str]) -> None:
    """Put each value of a layer into its typed key."""
    for section, content in layer.items():
        if section not in tree:
            mistakes.append(no_such_section(section, tree))
        elif isinstance(content, dict):
            for key, value in content.items():
                if key is True:  # YAML 1.1 reads the key `on` as true
                    key = "on"
                set_key(tree, section, str(key), value, mistakes)
        elif content is not None:
            mistakes.append(
                f"{section}: must hold keys and values, as in `key: value`, not {content!r}"
            )


def no_such_section(section: Any, tree: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys([*tree, "task"]))
    outdented = sections_with(section, tree)
    if outdented:
        hint = f"; as a key of {outdented[0]}, indent it below `{outdented[0]}:`"
        return f"{section}: no such section{hint}; there are {names}"
    return f"{section}: no such section{among(str(section), names)}"


def set_key(tree: dict[str, Any], section: str, key: str, value: Any, mistakes: list[str]) -> None:
    having = sections_with(key, tree)
    if section not in having:
        hint = nearest(key, list(tree[section]), f"{section}.")
        if having:
            hint = f"; did you mean {having[0]}.{key}?"
        if section.partition("[")[0] == "task":
            hint = hint_of_tasks(OmegaConf.get_type(tree[section]), key) or hint
        mistakes.append(f"{section}.{key}: no such key{hint}")
        return
    try:
        if value == MISSING:
            raise ValueError("??? is no value")
        # OmegaConf would find out only later that a text with ${...} is not what the key takes.
        OmegaConf.update(tree[section], key, literal(value, "{"), merge=False)
        OmegaConf.update(tree[section], key, literal(value), merge=False)
    except (OmegaConfBaseException, ValueError) as error:
        mistake = f"{section}.{key}: {str(error).splitlines()[0]}"
        if "${" in str(value):
            mistake = (
                f"{section}.{key}: {value!r} is taken as it is written, ${{...}} is not replaced; "
                f'write the value, or let the shell do it: {section}.{key}="$NAME"'
            )
        mistakes.append(mistake)


def hint_of_tasks(schema: type, key: str) -> str:
    """The end of a message about a key that a task does not have: what the task itself says of it,
    or the tasks that have it. Empty if there is nothing to say."""
    hints = getattr(sys.modules[schema.__module__], "KEY_HINTS", {})
    if key in hints:
        return f"; {hints[key]}"
    own = schema.__module__.rpartition(".")[2]
    having = []
    for name in tasks.names():
        if name == own or any(tasks.contract_mistakes(name)):
            continue
        if key in tasks.load(name).Options.__dataclass_fields__:
            having.append(name)
    if not having:
        return ""
    return f" in {own}, but in {' and '.join(having)}: set task.type"


def literal(value: Any, opening: str = r"\\${") -> Any:
    """`value` with OmegaConf's ${...} switched off, because prompts and code are full of it.

    Args:
        opening: what takes the place of `${`. The backslash makes it a plain text.
    """
    if isinstance(value, dict):
        return {key: literal(item, opening) for key, item in value.items()}
    if isinstance(value, list):
        return [literal(item, opening) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", rf"\1\1{opening}", value)
    return value


def missing_keys(tree: Mapping[str, Any]) -> Iterator[str]:
    """A mistake for each key that has neither a value nor a default."""
    for section, node in tree.items():
        missing = OmegaConf.missing_keys(node)
        if section == "grpo":
            missing &= set(grpo_keys.OWN_KEYS)  # GRPOConfig has defaults for its own
        for key in sorted(missing):
            yield f"{section}.{key}: missing, and it has no default"


def freeze_all(
    tree: Mapping[str, Any], task_keys: Mapping[str, Any], mistakes: list[str]
) -> dict[str, Any]:
    """Each section as `freeze` returns it. Tasks are also checked for what all tasks share."""
    sections = {}
    for name, node in tree.items():
        sections[name] = freeze(name, node, mistakes)
    for name in task_keys:
        if sections[name] is not None:
            for mistake in tasks.shared_mistakes(sections[name]):
                mistakes.append(f"{name}.{mistake}")
    return sections


def freeze(name: str, node: Any, mistakes: list[str]) -> Any:
    """The section as its frozen dataclass. `grpo` becomes a pair; see `split_grpo`.

    The result is None where something is wrong with the section. What its `__post_init__` refuses
    is added to `mistakes`.
    """
    if any(mistake.startswith(f"{name}.") for mistake in mistakes):
        return None
    try:
        if name == "grpo":
            return split_grpo(OmegaConf.to_container(node))
        return OmegaConf.to_object(node)
    except ValueError as error:
        for line in str(error).split("\n"):
            key = line.partition(":")[0]
            separator = ": "
            if key in list(node):
                separator = "."
            mistakes.append(f"{name}{separator}{line}")
        return None


def split_grpo(values: dict[str, Any]) -> tuple[dict[str, Any], grpo_keys.Options]:
    """(what GRPOConfig gets, our own keys) of the `grpo:` section."""
    own, given = {}, {}
    for key, value in values.items():
        if key in grpo_keys.OWN_KEYS:
            own[key] = value
        elif value not in (None, MISSING):
            given[key] = value
    return given, grpo_keys.Options(**own)


# ---- A config that was loaded


def note(text: str) -> None:
    """Tell the user something that is worth knowing and stops nothing."""
    print(f"note: {text}", file=sys.stderr)


def resolved(config: Config) -> Any:
    """The config as one OmegaConf tree. Written as YAML, it loads back as the same Config."""
    sections = {}
    for name in ("model", "lora", "rollout", "sandbox", "watchdog", "evaluate", "train"):
        sections[name] = asdict(getattr(config, name))
    # A key that was set to null is written as null. Otherwise config.yaml or the algorithm would
    # set it again.
    nulls = dict.fromkeys([*OmegaConf.load(ROOT / "config.yaml").grpo, *grpo_keys.COMMON])
    sections["grpo"] = nulls | dict(config.grpo) | asdict(config.grpo_extra)
    mixture = [asdict(options) for options in config.tasks]
    for keys in mixture:  # all may be read from another folder next time
        keys["type"] = own_code.task_as_written(keys["type"])
        if keys.get("data"):
            keys["data"] = sources.from_anywhere(keys["data"])
        if keys.get("rewards"):
            keys["rewards"] = own_code.rewards_as_written(keys["rewards"])
    sections["task"] = mixture
    if len(mixture) == 1:
        sections["task"] = mixture[0]
    return OmegaConf.create(sections)


def save(config: Config, path: str | os.PathLike) -> None:
    """Write the resolved config as YAML."""
    OmegaConf.save(resolved(config), path)


def changed_since(config: Config, path: str | os.PathLike) -> list[str]:
    """What differs from the config saved at `path`, in words. Empty if that cannot be read."""
    before = flat(read_saved(path))
    if not before:
        return []
    now = flat(OmegaConf.to_container(resolved(config)))
    changes = []
    if before.get("model.quantization") == "auto":
        # load_in_4bit of an older version, which did not say in which form the weights were loaded
        before["model.quantization"] = now["model.quantization"]
    for key in dict.fromkeys([*now, *before]):
        if key not in OF_EACH_RUN and now.get(key) != before.get(key):
            changes.append(f"{key}: {now.get(key)}, was {before.get(key)}")
    return changes


def read_saved(path: str | os.PathLike) -> dict[Any, Any]:
    """A config that a run has saved, perhaps of an older version. Empty if it cannot be read."""
    try:
        saved = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException, ValueError):
        return {}
    if not isinstance(saved, dict):
        return {}
    replace_load_in_4bit([saved], [])
    return saved


def flat(tree: dict[Any, Any], path: str = "") -> dict[str, Any]:
    """{"section.key": value} of nested mappings. Lists are values."""
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{path}{key}.")
        else:
            pairs[f"{path}{key}"] = value
    return pairs


def looks_local(name: str) -> bool:
    """Whether a model's name is written as a path."""
    return name.startswith(("/", "./", "../", "~"))


def local_path(name: str) -> Path:
    return Path(os.path.expanduser(name))
