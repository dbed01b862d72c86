"""The model card: README.md beside what a run has trained, with the metadata that the Hub reads."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tasks
from job.config import Config
from job.errors import OutputError, one_line
from job.model import hub_id
from tasks.data import sources

EVALUATION = "evaluation.json"  # in the run's folder
# Keys of the config that a reader of the card wants
TRAINING_KEYS = (
    "algorithm",
    "loss_type",
    "beta",
    "learning_rate",
    "lr_scheduler_type",
    "max_steps",
    "num_generations",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "temperature",
    "max_completion_length",
    "seed",
)
LORA_KEYS = ("r", "lora_alpha", "target_modules", "target_parameters")

LOAD_ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("PATH_OR_ID")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")"""
LOAD_UNSLOTH = """from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained("PATH_OR_ID", load_in_4bit=True)"""
LOAD_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_ID", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")"""
LOAD_GGUF = "llama-cli --model FILE.gguf"


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Attributes:
        config: of the run; None if it is not known.
        base: Hub id of the base, or its folder.
        base_folder: where its files are, if they are on this machine.
        format: lora, merged_16bit, mxfp4 or gguf.
        evaluation: the content of evaluation.json in the run's folder; empty: there is none.
        notes: what else must be known, a sentence each.
    """

    config: Config | None
    base: str
    base_folder: Path | None
    format: str
    evaluation: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def base_shown(self) -> str:
        """The base as a reader knows it: no path of the machine that trained it."""
        return hub_id(self.base) or Path(self.base).name


def save(folder: Path, facts: Facts) -> None:
    """Write README.md.

    Raises:
        OutputError: if it cannot be written.
    """
    try:
        (folder / "README.md").write_text(render(facts), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot write the model card: {one_line(error)}") from error


def render(facts: Facts) -> str:
    """The whole text of the card, metadata first."""
    from huggingface_hub import ModelCard

    body = "\n\n".join(sections(facts))
    card = ModelCard(f"---\n{metadata(facts).to_yaml()}\n---\n\n{body}\n")
    return str(card)


def metadata(facts: Facts) -> Any:
    """huggingface_hub.ModelCardData: what the Hub sorts and links models by."""
    from huggingface_hub import ModelCardData

    library, tags = "transformers", ["grpo", "trl", "reinforcement-learning"]
    if facts.format == "lora":
        library, tags = "peft", [*tags, "lora"]
    if facts.format == "gguf":
        library, tags = None, [*tags, "gguf"]
    datasets = []
    if facts.config is not None:
        tags += [options.type for options in facts.config.tasks]
        datasets = [name for _, name in data_sources(facts.config) if hub_dataset(name)]
    return ModelCardData(
        base_model=hub_id(facts.base),
        library_name=library,
        pipeline_tag="text-generation",
        license=license_of(facts.base_folder),
        datasets=datasets or None,
        tags=tags,
    )


def license_of(base_folder: Path | None) -> str | None:
    """The licence that the base's own model card names, if it is on this machine."""
    from huggingface_hub import ModelCard

    if base_folder is None or not (base_folder / "README.md").is_file():
        return None
    try:
        text = (base_folder / "README.md").read_text(encoding="utf-8")
        if not text.startswith("---"):  # no metadata, of which huggingface_hub would warn
            return None
        return ModelCard(text, ignore_metadata_errors=True).data.license
    except (OSError, ValueError):
        return None


def data_sources(config: Config) -> Iterator[tuple[str, str | None]]:
    """(task, its file or dataset; None if it makes its prompts itself)."""
    for options in config.tasks:
        yield options.type, getattr(options, "data", None)


def hub_dataset(name: str | None) -> bool:
    """Whether this is the id of a dataset on the Hub, as tasks/data would take it."""
    return bool(name) and sources.is_hub_id(name) and hub_id(name) is not None


# ---- the text


def sections(facts: Facts) -> Iterator[str]:
    """The parts of the card, in order."""
    names = "a task"
    if facts.config is not None:
        names = ", ".join(f"`{options.type}`" for options in facts.config.tasks)
    yield f"# {facts.base_shown}, trained on {names}"
    what = "The whole model"
    if facts.format == "lora":
        what = "A LoRA adapter"
    yield (
        f"{what}: {facts.base_shown} after reinforcement learning (GRPO) on {names}. Answers were "
        "run or checked by a program, and what they turned out to be was the reward."
        f"{continued_from(facts.config)}"
    )
    yield "\n\n".join(result(facts.evaluation))
    if facts.notes:
        yield "\n".join(f"- {note}" for note in facts.notes)
    yield f"## How to load it\n\n{how_to_load(facts)}"
    if facts.config is not None:
        yield f"## Training\n\n{training_table(facts.config)}"
        yield f"## Data\n\n{data_text(facts.config)}"
    yield f"## Limits\n\n{limits(facts)}"


def continued_from(config: Config | None) -> str:
    """A sentence on the adapter that training began with; empty if there was none."""
    if config is None or config.model.adapter is None:
        return ""
    # No path of the machine that trained it
    adapter = Path(config.model.adapter)
    shown = "/".join([part for part in adapter.parts if part != adapter.anchor][-2:])
    return (
        f" Training continued from the adapter `{shown}`: what came before it is not told here, "
        "and a comparison of before and after begins with that adapter."
    )


def result(evaluation: dict[str, Any]) -> Iterator[str]:
    """Before and after, or that it was not measured."""
    comparison = evaluation.get("comparison")
    if not comparison:
        yield "**Result:** not evaluated on held-out problems before and after."
        return
    yield f"**Result:** {comparison['sentence']}"
    first, last = evaluation["evaluations"][0], evaluation["evaluations"][-1]
    if problems_of(first) != problems_of(last):
        return  # the sentence is about those that both have, and the tables are not
    head = ["held-out problems", f"step {first['step']}", f"step {last['step']}"]
    yield markdown_table(head, result_rows(first, last))


def problems_of(result: dict[str, Any]) -> Any:
    """Which problems an evaluation has, as its settings say."""
    return result.get("settings", {}).get("problems")


def result_rows(first: dict[str, Any], last: dict[str, Any]) -> list[list[str]]:
    """The figures of two evaluations with their 95 % intervals, in percent."""
    rows = []
    for name in first["pass_at"]:
        if name in last["pass_at"]:
            both = (first["pass_at"][name], last["pass_at"][name])
            rows.append([f"pass@{name}", *map(in_percent, both)])
    rows.append(["cheating", in_percent(first["cheating"]), in_percent(last["cheating"])])
    return rows


def in_percent(estimate: dict[str, float]) -> str:
    if None in (estimate["value"], estimate["low"]):
        return "-"
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]"


def how_to_load(facts: Facts) -> str:
    language, code = "python", LOAD_MODEL
    if facts.format == "lora":
        code = LOAD_ADAPTER
        if facts.base.endswith("-unsloth-bnb-4bit"):  # a layout that only Unsloth can load
            code = LOAD_UNSLOTH
    if facts.format == "gguf":
        language, code = "bash", LOAD_GGUF
    return f"```{language}\n{code}\n```"


def training_table(config: Config) -> str:
    """Algorithm and hyper-parameters."""
    rows = [["rewards", ", ".join(reward_names(config))]]
    values = {"algorithm": config.grpo_extra.algorithm, **config.grpo}
    for key in TRAINING_KEYS:
        if values.get(key) is not None:
            rows.append([f"grpo.{key}", values[key]])
    for key in LORA_KEYS:
        value = getattr(config.lora, key)
        if isinstance(value, list):
            value = ", ".join(value)
        if value is not None:
            rows.append([f"lora.{key}", value])
    rows.append(["model.max_seq_length", config.model.max_seq_length])
    rows.append(["model.quantization", config.model.quantization])
    return markdown_table(["key", "value"], rows)


def reward_names(config: Config) -> list[str]:
    """Every reward function of the run, once, in the order of the tasks."""
    found: dict[str, None] = {}
    for options in config.tasks:
        rewards = options.rewards
        if rewards is None:
            rewards = tasks.load(options.type).REWARDS
        found |= dict.fromkeys(rewards)
    return list(found)


def data_text(config: Config) -> str:
    lines = []
    for name, source in data_sources(config):
        if source is None:
            lines.append(f"- `{name}`: prompts that the task makes itself")
        elif hub_dataset(source):
            lines.append(f"- `{name}`: the dataset {source}")
        else:
            lines.append(f"- `{name}`: the file {Path(source).name}")
    return "\n".join(lines)


def limits(facts: Facts) -> str:
    lines = [
        "- The rewards saw only what the task checks. What the model says elsewhere was not "
        "trained on, and not measured.",
        "- Programs that it writes are not safe to run without a sandbox.",
        "- The limits of the base hold as before.",
    ]
    if facts.config is not None and facts.config.model.name == "tiny":
        lines.insert(
            0,
            "- The base has memorised a few dozen programs. Training makes it prefer the good "
            "ones, which shows that the pipeline works. It cannot invent any.",
        )
    return "\n".join(lines)


def markdown_table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def read_evaluation(run: Path) -> dict[str, Any]:
    """What an evaluation has left in the run's folder; empty if there was none."""
    try:
        found = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return found
