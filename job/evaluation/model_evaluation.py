"""Evaluates models by name, outside a run: which rows they are asked, and where the results go."""

import contextlib
import gc
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import tasks
from job.batches import batch_plan
from job.chat import Chat
from job.config import ROOT, Config, load_config, note
from job.episodes.loop import play_batch
from job.episodes.tools import schemas_of_rows
from job.errors import ConfigError, one_line
from job.evaluation import evaluation
from job.evaluation.evaluation import EvaluationFolder, Problem, Record, Sampler
from job.grading_pool import GradingPool
from job.model import ModelSource, find_model, load_for_inference, load_tokenizer
from job.own_code import chosen_task
from job.rollout import engine, generate
from job.rows import Row, fill_columns, has_fresh_inputs, mixed_rows, prompt_key
from tasks.data import columns, sources
from tasks.data.mistakes import Mistakes, RowMistake

BASE = "base"
KEYS_OF_ROWS = ("type", "num_rows", "num_eval_rows", "weight", "check", "rewards", "curriculum")
NO_DATA = Path(__file__).parent / "no_data.yaml"  # its task replaces those of a config
DEFAULT_OUTPUT = "gpt-oss-grpo/evaluations"


@dataclass(frozen=True)
class Request:
    """What the command line asks for. None leaves a value to the config."""

    task: str | None = None
    data: str | None = None  # a JSONL file with rows of one's own
    rows: int | None = None
    completions: int = 4
    temperature: float | None = None
    max_new_tokens: int | None = None
    batch: int | None = None
    output: str | None = None
    config_files: Sequence[str] = ()
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Finished:
    """One evaluation with its result and every completion."""

    name: str
    folder: Path
    result: dict[str, Any]
    records: list[Record]


def evaluate_models(names: Sequence[str], request: Request) -> list[Finished]:
    """Evaluate one or two models on the same problems.

    Args:
        names: as find_model takes them. `base` is the model that the other one was trained on, and
            the folder of a finished evaluation stands for that evaluation.

    Raises:
        ConfigError: if a model, a row or a setting is wrong.
        OutputError: if a folder cannot be written.
    """
    if request.data:
        if not Path(request.data).is_file():
            raise ConfigError(f"--data: there is no file {request.data}")
        # The config looks for relative paths in the repository
        request = replace(request, data=str(Path(request.data).absolute()))
    sources = find_models(names)
    asked = rows_to_evaluate(sources, request)
    # Folders are checked for all models before the first one is loaded
    planned = [
        plan_model(source, asked, request, len(names) > 1) if source else None for source in sources
    ]
    finished = []
    for name, plan in zip(names, planned, strict=True):
        if plan is None:
            folder = Path(name)
            result = EvaluationFolder(folder).finished()
        else:
            folder, result = plan.folder.path, evaluate_model(plan, asked, request)
        records = evaluation.read_completions(folder)
        finished.append(Finished(name, folder, result, records))
    return finished


def configs_of(names: Sequence[str], request: Request) -> list[Config]:
    """The configs that models are evaluated with, for what has to be downloaded first."""
    sources = [source for source in find_models(names) if source]
    return [with_task(source, request) for source in sources]


def find_models(names: Sequence[str]) -> list[ModelSource | None]:
    """The sources of models by name; None for a finished evaluation."""
    sources: dict[str, ModelSource | None] = {}
    for name in names:
        if (Path(name) / evaluation.COMPLETIONS).is_file():
            sources[name] = None
            if not EvaluationFolder(Path(name)).finished():
                raise ConfigError(f"{name}/{evaluation.RESULT}: missing or damaged")
        elif name != BASE:
            sources[name] = find_model(name)
    if BASE in names:
        adapters = [source for source in sources.values() if source and source.is_adapter]
        if not adapters:
            raise ConfigError("base: of which model? Name an adapter or a run beside it")
        sources[BASE] = replace(adapters[0], name=BASE, base_only=True)
    return [sources[name] for name in names]


# ---- Which rows


@dataclass(frozen=True)
class Asked:
    """What every model is asked."""

    rows: list[Row]
    judging: Config | None  # whose tasks judge the completions; None if nothing is evaluated
    has_fresh_inputs: bool  # see rows.has_fresh_inputs


def rows_to_evaluate(sources: Sequence[ModelSource | None], request: Request) -> Asked:
    """The rows that every model is asked, and how they are judged."""
    models = [source for source in sources if source]
    if not models:
        return Asked([], None, False)
    # The run that trained one of the models says what the task is
    trained = [source for source in models if source.run_config]
    source = (trained or models)[-1]
    config = with_task(source, request)
    if request.data:
        rows = rows_of_file(request.data, config.tasks[0])
        is_fresh = has_fresh_inputs(rows, config.tasks[0])
        config = replace(config, tasks=config.tasks[:1])
    else:
        rows, is_fresh = held_out_rows(config, request.rows)
    chosen = evaluation.spread(rows, request.rows)
    for other in trained:
        warn_of_trained_rows(chosen, other)
    return Asked(chosen, config, is_fresh)


def with_task(source: ModelSource, request: Request) -> Config:
    """The config of a source, with the one task that the command line names, if it does.

    Rows of a file are judged by the task `jsonl` unless another one is named.
    """
    paths, other_overrides = request.config_files, without_task(request.overrides)
    wanted = request.task
    if request.data and wanted is None:
        wanted = "jsonl"
    if wanted is None:
        return source.config(paths, request.overrides)
    wanted = chosen_task(wanted)

    # One of the config's own tasks
    is_own_file = bool(request.data) and wanted == "jsonl"
    config = config_of_model(source, request)
    if not is_own_file:
        own_types = [options.type for options in source.config(paths, other_overrides).tasks]
        if wanted in own_types:
            config = source.config(paths, request.overrides)
            own = [options for options in config.tasks if options.type == wanted]
            return replace(config, tasks=tuple(own))

    # Another one, with its own rewards
    keys = [f"task.type={wanted}", "task.rewards=null"]
    if is_own_file:
        keys.append(f"task.data={json.dumps(request.data)}")
    return replace(config, tasks=load_config(paths, [*keys, *request.overrides]).tasks)


def without_task(overrides: Sequence[str]) -> list[str]:
    """The overrides that do not belong to the task."""
    return [text for text in overrides if not text.startswith("task.")]


def rows_of_file(data: str, options: tasks.Options) -> list[Row]:
    """All rows of a file, for a task. The columns may hold anything that the task reads.

    Raises:
        ConfigError: with each kind of mistake in its lines.
    """
    rows, mistakes = [], Mistakes()
    try:
        placed = list(sources.find(data, None, None, streaming=False).rows("train"))
        layout = columns.settle([row for _, row in placed], columns.Wishes(), data)
    except ValueError as error:
        raise ConfigError(f"--data: {str(error).removeprefix('data: ')}") from error
    for place, row in placed:
        try:
            rows.append(tasks.labelled(columns.read_row(row, layout), options))
        except RowMistake as mistake:
            mistakes.add(place, mistake)
    if mistakes:
        raise ConfigError([f"--data: {line}" for line in mistakes.lines()])
    if not rows:
        raise ConfigError(f"--data: {data} holds no row")
    return rows


def held_out_rows(config: Config, count: int | None) -> tuple[list[Row], bool]:
    """The rows that the tasks of a config hold out, and whether their inputs are fresh.

    A task with one prompt for all rows needs none: its inputs are fresh for each completion.

    Raises:
        ConfigError: if there are none.
    """
    try:
        rows, held_out = mixed_rows(config.tasks, trains=False)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
    if has_fresh_inputs(rows + held_out, config.tasks[0]):
        return rows[:1] * (count or len(held_out) or config.evaluate.rows or len(rows)), True
    if held_out:
        return held_out, False
    names = ", ".join(options.type for options in config.tasks)
    raise ConfigError(
        f"task: {names} holds no rows out; set task.num_eval_rows, task.eval_share or "
        "task.eval_problems, whichever it has, or name a file with --data"
    )


def warn_of_trained_rows(rows: Sequence[Row], source: ModelSource) -> None:
    """Say how many of these prompts a run has trained on."""
    with contextlib.suppress(ConfigError, ValueError):  # its data may be gone
        # What reading its data says was said when it was trained
        with contextlib.redirect_stderr(io.StringIO()):
            mixture = load_config(source.run_config).tasks
            trained_on = mixed_rows(mixture)[0]
        seen = {prompt_key(row) for row in trained_on}
        if has_fresh_inputs(trained_on, mixture[0]):
            return
        known = sum(prompt_key(row) in seen for row in rows)
        if any(map(tasks.is_streamed, mixture)):
            note(f"{source.name} was trained on a stream; only its first rows are compared")
        if known:
            note(f"{source.name} was trained on {known} of these {len(rows)} prompts")


# ---- One model


@dataclass(frozen=True)
class ModelPlan:
    """How one model is evaluated, known before it is loaded."""

    source: ModelSource
    config: Config
    chat: Chat
    problems: list[Problem]
    sampling: dict[str, Any]
    max_tokens: int
    settings: dict[str, Any]
    folder: EvaluationFolder


def plan_model(
    source: ModelSource, asked: Asked, request: Request, is_one_of_two: bool
) -> ModelPlan:
    """Plan the evaluation of a model.

    Raises:
        ConfigError: if a prompt is too long, or the folder holds another evaluation.
    """
    judging = asked.judging
    config = config_of_model(source, request)
    chat = make_chat(config, judging.tasks)
    problems = problems_that_fit(asked, chat, config, request)
    sampling = sampling_of(config, request)
    max_tokens = tokens_for_completions(problems, config, request)
    settings = {
        "model": str(source.folder or config.model.name),
        "weights": fingerprint(source),
        "tasks": [options.type for options in judging.tasks],
        "completions": request.completions,
        "max_tokens": max_tokens,
        "sampling": sampling,
        "rewards": [
            tasks.reward_weights(options.type, options.rewards) for options in judging.tasks
        ],
        "problems": evaluation.digest(problems),
    }
    if source.base_only:
        settings |= {"model": config.model.name, "weights": None}
    in_turns = [keys for keys in map(keys_of_turns, judging.tasks) if keys]
    if in_turns:
        settings["task"] = in_turns
    folder = EvaluationFolder(output_folder(source, judging, request, is_one_of_two))
    folder.check(settings)
    return ModelPlan(source, config, chat, problems, sampling, max_tokens, settings, folder)


def keys_of_turns(options: tasks.Options) -> dict[str, str]:
    """The keys of a task that say how completions of several turns go on, an opponent for instance,
    where they are not at their defaults. Prompts and rewards are known without them."""
    if not tasks.takes_turns(options):
        return {}
    found = {}
    for key in fields(options):
        default = key.default
        if default is MISSING:
            default = key.default_factory()
        value = getattr(options, key.name)
        if key.name not in KEYS_OF_ROWS and value != default:
            found[key.name] = str(value)
    return found


def evaluate_model(plan: ModelPlan, asked: Asked, request: Request) -> dict[str, Any]:
    """Evaluate one model, unless that has been done. Returns the result."""
    folder = plan.folder
    finished = folder.finished()
    if finished:
        print(f"{folder.path} holds this evaluation already; remove it to repeat it")
        return finished

    # Load it, and ask
    sampler, words = load_sampler(plan, request)
    folder.begin(plan.settings)
    print(words)
    total = len(plan.problems) * request.completions
    with (
        GradingPool.of(asked.judging.sandbox) as pool,
        evaluation.show_progress(total, plan.source.name) as bar,
    ):
        result = evaluation.evaluate(
            plan.problems,
            request.completions,
            sampler,
            plan.chat,
            evaluation.make_grader(asked.judging.tasks, pool),
            folder,
            progress=bar.update,
        )
    del sampler
    release_memory()
    return result


def load_sampler(plan: ModelPlan, request: Request) -> tuple[Sampler, str]:
    """A sampler that holds the model, and how it decodes in words."""
    config, max_tokens = plan.config, plan.max_tokens
    model, tokenizer = load_for_inference(plan.source, config)
    batch = request.batch or batch_plan(config.grpo, 1).generate_call
    rollout, words = engine.make_rollout(
        model, tokenizer, config.rollout, rows=batch, max_new_tokens=max_tokens, **plan.sampling
    )
    base = engine.make_base(model, tokenizer, config.model.max_seq_length, **plan.sampling)
    sampler = Sampler(
        complete=lambda prompts: generate(rollout, prompts),
        batch=batch,
        max_tokens=max_tokens,
        play=lambda rows, grader: play_batch(
            rollout, rows, plan.chat, grader, max_tokens, base=base
        ),
    )
    return sampler, words


def config_of_model(source: ModelSource, request: Request) -> Config:
    """The config that a model is loaded with. The task does not belong to it: its data may be
    gone."""
    return source.config([*request.config_files, NO_DATA], without_task(request.overrides))


def make_chat(config: Config, mixture: Sequence[tasks.Options]) -> Chat:
    """The chat template of a model, for rows of these tasks."""
    return Chat(
        load_tokenizer(config.model),
        config.model.prompt_date,
        config.grpo.get("chat_template_kwargs"),
        schemas_of_rows(mixture),
    )


def problems_that_fit(asked: Asked, chat: Chat, config: Config, request: Request) -> list[Problem]:
    """The problems, if their prompts leave room for completions.

    Raises:
        ConfigError: if a prompt is too long, or the chat template refuses one.
    """
    columns = dict.fromkeys(name for row in asked.rows for name in row)
    rows = fill_columns(asked.rows, columns)
    try:
        problems = evaluation.make_problems(rows, chat, asked.has_fresh_inputs)
    except ValueError as error:
        raise ConfigError(f"task: {one_line(error)}") from error
    limit = config.model.max_seq_length - (request.max_new_tokens or 1) - 1
    longest = max(len(problem.prompt_ids) for problem in problems)
    if longest > limit:
        raise ConfigError(
            f"model.max_seq_length: {config.model.max_seq_length} leaves {limit} tokens for a "
            f"prompt, and the longest has {longest}; set model.max_seq_length higher"
        )
    return problems


def tokens_for_completions(problems: Sequence[Problem], config: Config, request: Request) -> int:
    """The most tokens of a completion."""
    longest = max(len(problem.prompt_ids) for problem in problems)
    rest = config.model.max_seq_length - longest - 1
    return request.max_new_tokens or min(config.grpo.get("max_completion_length") or rest, rest)


def sampling_of(config: Config, request: Request) -> dict[str, Any]:
    """Arguments of `generate`. They replace whatever the model's own files recommend."""
    temperature = request.temperature
    if temperature is None:
        temperature = config.grpo.get("temperature", 1.0)
    return sampling_at(temperature, config)


def sampling_at(temperature: float, config: Config) -> dict[str, Any]:
    """Arguments of `generate` at a temperature; 0 takes the likeliest token each time."""
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_p": config.grpo.get("top_p", 1.0),
        "top_k": config.grpo.get("top_k", 0),
        "min_p": config.grpo.get("min_p"),
        "repetition_penalty": config.grpo.get("repetition_penalty", 1.0),
    }


def fingerprint(source: ModelSource) -> str | None:
    """What changes when the weights in a folder do; None for a model on the Hub."""
    if source.folder is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(source.folder.glob("*.safetensors")):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def output_folder(
    source: ModelSource, judging: Config, request: Request, is_one_of_two: bool
) -> Path:
    """Where an evaluation goes: by default a folder of its own for each model, task, file of rows
    and number of rows."""
    model = source.name
    if source.base_only:
        model = f"base-of-{source.folder}"
    task = "+".join(options.type for options in judging.tasks)
    parts = [model, task]
    if request.data:
        parts.append(Path(request.data).stem)
    if request.rows:
        parts.append(f"{request.rows}-rows")
    name = re.sub(r"[^\w.+-]+", "-", "-".join(parts)).strip("-.")
    if request.output is None:
        return ROOT / DEFAULT_OUTPUT / name
    folder = Path(request.output)
    return folder / name if is_one_of_two else folder


def release_memory() -> None:
    """Give back what a model that is gone has held, before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
