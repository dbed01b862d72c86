"""YAML + key=value -> one validated, frozen Config, or every mistake at once.

Layers, later ones win: config.yaml (the defaults), the files named by --config, the overrides of the command line.
"""

import datetime
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import sandbox
import tasks
from job import grpo_keys, watchdog
from job.distributed import world_size
from job.errors import ConfigError, nearest, one_line
from job.rules import impossible, in_vain, is_texts

ROOT = Path(__file__).resolve().parent.parent
TINY_MODEL = ROOT / "tiny_model"


@dataclass(frozen=True)
class Model:
    """Arguments of from_pretrained, by Unsloth's names."""

    name: str = MISSING
    backend: Literal["auto", "unsloth", "transformers"] = MISSING
    max_seq_length: int = MISSING
    load_in_4bit: bool = MISSING
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = MISSING
    offload_embedding: Literal["auto", True, False] = MISSING
    prompt_date: str = MISSING

    def __post_init__(self):
        mistakes = []
        if (
            looks_local(self.name)
            and not Path(os.path.expanduser(self.name), "config.json").is_file()
        ):
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
        """What from_pretrained gets: a Hub id, or an absolute path (Unsloth takes a relative one for a Hub id)."""
        if self.name == "tiny":
            return str(TINY_MODEL)
        local = Path(os.path.expanduser(self.name))
        return str(local.resolve()) if looks_local(self.name) or local.is_dir() else self.name


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
    workers: int | None = None  # programs run at once; null: one a CPU core
    require: list[str] = MISSING  # layers without which nothing is run
    grade_timeout_s: float | None = None  # wall clock of grading one completion

    def __post_init__(self):
        sandbox.Limits.__post_init__(self)
        if self.grade_timeout_s is not None and not 0 < self.grade_timeout_s < math.inf:
            raise ValueError(
                f"grade_timeout_s: must be above 0 and finite, not {self.grade_timeout_s}"
            )
        if self.workers is not None and self.workers < 1:
            raise ValueError("workers: must be above 0")
        for layer in self.require:
            if layer not in sandbox.LAYERS:
                raise ValueError(
                    f"require: no layer {layer!r}{nearest(layer, sandbox.LAYERS)}; there are {sandbox.LAYERS}"
                )


@dataclass(frozen=True)
class Config:
    model: Model
    lora: Lora
    grpo: Mapping[
        str, Any
    ]  # keyword arguments of GRPOConfig; a key left null is the library's default
    grpo_extra: grpo_keys.Options  # the keys of the grpo: section that are not GRPOConfig's
    tasks: tuple[tasks.Options, ...]  # one, or several that are mixed
    sandbox: SandboxOptions
    watchdog: watchdog.Options
    notices: tuple[str, ...] = ()  # legacy keys that were mapped or dropped, in words


# Keys that the seed documents or older libraries use: (new place, or None where nothing is left to set, why).
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
    "grpo.overwrite_output_dir": (None, "gone from transformers"),
    "grpo.max_seq_length": ("model.max_seq_length", ""),
}
LEGACY_TASKS = {"code_generation": "matmul"}


def load_config(
    paths: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """Read config.yaml, the files of `paths` over it in turn, and `overrides` ("section.key=value") over all.

    Raises:
        ConfigError: with every mistake found, each with its full key and what was expected.
    """
    mistakes: list[str] = []

    # What is written, layer by layer
    layers = read_layers(paths, overrides, mistakes)
    notices = [notice for layer in layers for notice in rename_legacy(layer)]
    for layer in layers:
        grpo_keys.spell_out(layer)
    layers, overruled = grpo_keys.with_algorithm(layers)
    notices += overruled

    # Which keys there are: the tasks bring their own
    task_keys = settle_tasks(layers, mistakes)
    layers.append(task_keys)
    tree = make_tree(task_keys)

    # Each value into its typed key, later layers over earlier ones
    for layer in layers:
        for section, key, value in entries(layer, tree, mistakes):
            set_key(tree[section], section, key, value, tree, mistakes)
    mistakes += missing_keys(tree)

    # What cannot run
    mistakes += impossible(tree, list(task_keys), world_size())
    sections = {name: freeze(name, node, mistakes) for name, node in tree.items()}
    for name in task_keys:
        if sections[name] is not None:
            shared = tasks.shared_mistakes(sections[name])
            mistakes += [f"{name}.{mistake}" for mistake in shared]
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


def read_layers(
    paths: str | os.PathLike | Sequence[str | os.PathLike] | None,
    overrides: Sequence[str],
    mistakes: list[str],
) -> list[dict[str, Any]]:
    """The content of config.yaml, of each file and of the command line, in this order."""
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    files = [ROOT / "config.yaml", *(Path(path) for path in paths or [])]
    layers = [read_yaml(path, mistakes) for path in files]
    return [*layers, parse_overrides(overrides, mistakes)]


def make_tree(task_keys: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An OmegaConf node for each section, which knows the type of each key."""
    schema = {"model": Model, "lora": Lora, "grpo": grpo_keys.schema()}
    schema |= {"sandbox": SandboxOptions, "watchdog": watchdog.Options}
    for name, keys in task_keys.items():
        schema[name] = tasks.load(keys["type"]).Options
    tree = {name: OmegaConf.structured(section) for name, section in schema.items()}
    for node in tree.values():
        OmegaConf.set_readonly(node, False)  # OmegaConf freezes what comes from a frozen dataclass
    return tree


def missing_keys(tree: Mapping[str, Any]) -> Iterator[str]:
    for section, node in tree.items():
        missing = OmegaConf.missing_keys(node)
        if section == "grpo":
            missing &= set(grpo_keys.OWN_KEYS)  # TRL has defaults for its own
        for key in sorted(missing):
            yield f"{section}.{key}: missing, and it has no default"


def freeze(name: str, node: Any, mistakes: list[str]) -> Any:
    """The section as its frozen dataclass; of `grpo`, (what GRPOConfig gets, our own keys). None where something is
    wrong with it, which is added to `mistakes`: what its `__post_init__` refuses, one line a mistake."""
    if any(mistake.startswith(f"{name}.") for mistake in mistakes):
        return None
    try:
        if name != "grpo":
            return OmegaConf.to_object(node)
        values = OmegaConf.to_container(node)
        own = grpo_keys.Options(**{key: values.pop(key) for key in grpo_keys.OWN_KEYS})
        return {key: value for key, value in values.items() if value not in (None, MISSING)}, own
    except ValueError as error:
        for line in str(error).split("\n"):
            key = re.match(r"\w+", line)
            separator = (
                "." if key and key[0] in node.keys() and line.startswith(f"{key[0]}:") else ": "
            )
            mistakes.append(f"{name}{separator}{line}")
        return None


def note(text: str) -> None:
    """Tell the user something that is worth knowing and stops nothing."""
    print(f"note: {text}", file=sys.stderr)


def resolved(config: Config) -> Any:
    """The config as one OmegaConf tree. Written as YAML, `load_config` reads the same Config from it."""
    sections = {
        name: asdict(getattr(config, name)) for name in ("model", "lora", "sandbox", "watchdog")
    }
    mixture = [asdict(options) for options in config.tasks]
    # A key that was set to null must not come back as the default of config.yaml, or as what the algorithm sets.
    nulls = dict.fromkeys([*OmegaConf.load(ROOT / "config.yaml").grpo, *grpo_keys.COMMON])
    sections["grpo"] = nulls | dict(config.grpo) | asdict(config.grpo_extra)
    sections["task"] = mixture if len(mixture) > 1 else mixture[0]
    return OmegaConf.create(sections)


def save(config: Config, path: str | os.PathLike) -> None:
    """Write the resolved config as YAML."""
    OmegaConf.save(resolved(config), path)


def changed_since(config: Config, path: str | os.PathLike) -> list[str]:
    """What differs from the config that was saved at `path`, in words; nothing if that cannot be read."""
    try:
        saved = OmegaConf.load(path)
    except (OSError, YAMLError, OmegaConfBaseException, ValueError):
        return []
    before, now = (flat(OmegaConf.to_container(tree)) for tree in (saved, resolved(config)))
    of_each_run = ("grpo.resume_from_checkpoint", "grpo.output_dir")
    keys = [key for key in dict.fromkeys([*now, *before]) if key not in of_each_run]
    return [
        f"{key}: {now.get(key)}, was {before.get(key)}"
        for key in keys
        if now.get(key) != before.get(key)
    ]


def flat(tree: dict[Any, Any], path: str = "") -> dict[str, Any]:
    """{"section.key": value} of nested mappings; lists are values."""
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        pairs |= (
            flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
        )
    return pairs


def read_yaml(path: Path, mistakes: list[str]) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        mistakes.append(f"{path}: no such file")
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"{path}: cannot be read: {error}")
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        tabs = re.search(r"(?m)^ *\t", path.read_text(encoding="utf-8"))
        hint = "; YAML indents with spaces, not with tabs" if tabs else ""
        mistakes.append(f"{path}: not valid YAML: {one_line(error)}{hint}")
    else:
        if isinstance(content, dict):
            return content
        mistakes.append(
            f"{path}: must hold sections (model:, lora:, grpo:, task:, sandbox:, watchdog:), "
            f"not a {type(content).__name__}"
        )
    return {}


def parse_overrides(overrides: Sequence[str], mistakes: list[str]) -> dict[str, Any]:
    layer: dict[str, Any] = {}
    for text in overrides:
        dotted, equals, value = text.partition("=")
        section, dot, key = dotted.partition(".")
        if not (equals and dot and section and key):
            mistakes.append(
                f"override {text!r}: write it as section.key=value without spaces, e.g. grpo.max_steps=1"
            )
            continue
        if not value.strip():
            mistakes.append(f"override {text!r}: the value is empty; for none, write {dotted}=null")
            continue
        try:
            parsed = OmegaConf.to_container(
                OmegaConf.from_dotlist([f"value={value}"]), resolve=False
            )["value"]
        except (YAMLError, OmegaConfBaseException, ValueError) as error:
            mistakes.append(f"override {text!r}: the value is not valid YAML: {one_line(error)}")
            continue
        # a: b inside a word is text, not a mapping; {a: b} is one
        is_text = isinstance(parsed, dict | list) and not value.lstrip().startswith(("{", "["))
        layer.setdefault(section, {})[key] = value if is_text else parsed
    return layer


def rename_legacy(layer: dict[str, Any]) -> Iterator[str]:
    """Map the seeds' keys in place; yield a notice for each."""
    for old, (new, why) in LEGACY.items():
        section, key = old.split(".")
        if isinstance(layer.get(section), dict) and key in layer[section]:
            value = layer[section].pop(key)
            if new:
                new_section, new_key = new.split(".")
                layer[new_section] = layer.get(new_section) or {}
                if isinstance(layer[new_section], dict):
                    layer[new_section].setdefault(new_key, value)
            yield (
                f"{old} is now {new}" * bool(new)
                + f"{old} is ignored" * (not new)
                + f" ({why})" * bool(why)
            )
    several = layer.get("task")
    for task in several if isinstance(several, list) else [several]:
        if isinstance(task, dict) and str(task.get("type")) in LEGACY_TASKS:
            yield f"task.type: {task['type']} is now {LEGACY_TASKS[task['type']]}"
            task["type"] = LEGACY_TASKS[task["type"]]


def settle_tasks(layers: list[dict[str, Any]], mistakes: list[str]) -> dict[str, dict[str, Any]]:
    """The keys of each task by its name in messages: "task", or "task[0]", "task[1]", ... for a list of them.

    Takes `task` out of the layers. A layer that changes the type keeps only those keys of the layers before it that
    every task has, and no curriculum, whose stages hold the task's own; a list replaces what came before it.
    """
    shared = OmegaConf.structured(tasks.Options).keys() - {"curriculum"}
    settled: Any = {}
    for layer in layers:
        task = layer.pop("task", None) or {}
        if isinstance(task, list):
            settled = task
        elif not isinstance(task, dict):
            mistakes.append(f"task: must hold keys and values, or a list of such, not {task!r}")
        elif isinstance(settled, list):
            mistakes += [
                f"task.{key}: there are several tasks; change it in their list" for key in task
            ]
        else:
            if task.get("type", settled.get("type")) != settled.get("type"):
                settled = {key: value for key, value in settled.items() if key in shared}
            settled = settled | task
    named = (
        {f"task[{i}]": keys for i, keys in enumerate(settled)}
        if isinstance(settled, list)
        else {"task": settled}
    )
    types = [keys.get("type") for keys in named.values() if isinstance(keys, dict)]
    known = {}
    for name, keys in named.items():
        if not isinstance(keys, dict):
            mistakes.append(
                f"{name}: must hold keys and values, as in `type: matmul`, not {keys!r}"
            )
        elif keys.get("type") not in tasks.names():
            close = nearest(str(keys.get("type")), tasks.names())
            mistakes.append(
                f"{name}.type: no task {keys.get('type')!r}{close}; there are {tasks.names()}"
            )
        elif types.count(keys["type"]) > 1:
            mistakes.append(f"{name}.type: {keys['type']} stands in the list more than once")
        elif broken := list(tasks.contract_mistakes(keys["type"])):
            mistakes += [f"{name}.type: {mistake}" for mistake in broken]
        else:
            known[name] = keys
    return known


def entries(
    layer: dict[str, Any], tree: dict[str, Any], mistakes: list[str]
) -> Iterator[tuple[str, str, Any]]:
    for section, content in layer.items():
        if section not in tree:
            names = list(dict.fromkeys([*tree, "task"]))
            outdented = [name for name, node in tree.items() if section in node.keys()]
            hint = (
                f"; as a key of {outdented[0]}, indent it below `{outdented[0]}:`"
                if outdented
                else ""
            )
            mistakes.append(
                f"{section}: no such section{hint or nearest(str(section), names)}; there are {names}"
            )
        elif isinstance(content, dict):
            # YAML 1.1 reads the key `on` as true
            yield from (
                (section, "on" if key is True else str(key), value)
                for key, value in content.items()
            )
        elif content is not None:
            mistakes.append(
                f"{section}: must hold keys and values, as in `key: value`, not {content!r}"
            )


def set_key(
    node: Any, section: str, key: str, value: Any, tree: dict[str, Any], mistakes: list[str]
) -> None:
    if key not in node.keys():  # `in node` is False for a key without a value yet
        elsewhere = [f"{name}.{key}" for name, other in tree.items() if key in other.keys()]
        hint = (
            f"; did you mean {elsewhere[0]}?"
            if elsewhere
            else nearest(key, list(node), f"{section}.")
        )
        mistakes.append(f"{section}.{key}: no such key{hint}")
        return
    try:
        if value == MISSING:
            raise ValueError("??? is no value")
        OmegaConf.update(node, key, literal(value), merge=False)
    except (OmegaConfBaseException, ValueError) as error:
        mistakes.append(f"{section}.{key}: {str(error).splitlines()[0]}")


def literal(value: Any) -> Any:
    """`value` with OmegaConf's ${...} switched off: prompts and code are full of it."""
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [literal(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def looks_local(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~"))
