"""Evaluates models by name, outside a run: which rows they are asked, and where the results go."""

import contextlib
import gc
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from job.rollout import engine, generate
from job.rows import Row, fill_columns, has_fresh_inputs, mixed_rows, prompt_key
from tasks.data import columns, sources
from tasks.data.mistakes import Mistakes, RowMistake

BASE = "base"
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
    rows, config = rows_to_evaluate(sources, request)
    finished = []
    for name, source in zip(names, sources, strict=True):
        if source is None:
            folder = Path(name)
            result = EvaluationFolder(folder).finished()
        else:
            folder, result = evaluate_model(source, rows, config, request, len(names) > 1)
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


def rows_to_evaluate(
    sources: Sequence[ModelSource | None], request: Request
) -> tuple[list[Row], Config | None]:
    """The rows that every model is asked, and the config whose tasks judge them.

    The config is None if there is nothing to evaluate.
    """
    models = [source for source in sources if source]
    if not models:
        return [], None
    # The run that trained one of the models says what the task is
    trained = [source for source in models if source.run_config]
    source = (trained or models)[-1]
    config = with_task(source, request)
    if request.data:
        rows = rows_of_file(request.data, config.tasks[0])
        config = replace(config, tasks=config.tasks[:1])
    else:
        rows = held_out_rows(config, request.rows)
    chosen = evaluation.spread(rows, request.rows)
    for other in trained:
        warn_of_trained_rows(chosen, other)
    return chosen, config


def with_task(source: ModelSource, request: Request) -> Config:
    """The config of a source, with the one task that the command line names, if it does.

    Rows of a file are judged by the task `jsonl` unless another one is named.
    """
    paths = request.config_files
    wanted = request.task
    if request.data and wanted is None:
        wanted = "jsonl"
    if wanted is None:
        return source.config(paths, request.overrides)
    if wanted not in tasks.names():
        raise ConfigError(f"--task: no task {wanted!r}; there are {tasks.names()}")

    # One of the config's own tasks
    is_own_file = bool(request.data) and wanted == "jsonl"
    config = source.config(paths, without_task(request.overrides))
    if wanted in [options.type for options in config.tasks] and not is_own_file:
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


def held_out_rows(config: Config, count: int | None) -> list[Row]:
    """The rows that the tasks of a config hold out.

    A task with one prompt for all rows needs none: its inputs are fresh for each completion.

    Raises:
        ConfigError: if there are none.
    """
    try:
        rows, held_out = mixed_rows(config.tasks, trains=False)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
    if has_fresh_inputs(rows + held_out, config.tasks[0]):
        return rows[:1] * (count or len(held_out) or config.evaluate.rows or len(rows))
    if held_out:
        return held_out
    names = ", ".join(options.type for options in config.tasks)
    raise ConfigError(
        f"task: {names} holds no rows out; set task.num_eval_rows, task.eval_share or "
        "task.eval_problems, whichever it has, or name a file with --data"
    )


def warn_of_trained_rows(rows: Sequence[Row], source: ModelSource) -> None:
    """Say how many of these prompts a run has trained on."""
    with contextlib.suppress(ConfigError, ValueError):  # its data may be gone
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


def evaluate_model(
    source: ModelSource, rows: Sequence[Row], judging: Config, request: Request, is_one_of_two: bool
) -> tuple[Path, dict[str, Any]]:
    """Evaluate one model, unless that has been done. Returns its folder and the result.

    Args:
        judging: the config whose tasks judge the completions.
    """
    config = config_of_model(source, request)
    chat = make_chat(config, judging.tasks)
    problems = problems_that_fit(rows, chat, config, request)
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
    folder = EvaluationFolder(output_folder(source, judging, request, is_one_of_two))
    folder.check(settings)
    finished = folder.finished()
    if finished:
        print(f"{folder.path} holds this evaluation already; remove it to repeat it")
        return folder.path, finished

    # Load it, and ask
    sampler, words = load_sampler(source, config, request, max_tokens, sampling, chat)
    folder.begin(settings)
    print(words)
    total = len(problems) * request.completions
    with (
        GradingPool.of(judging.sandbox) as pool,
        evaluation.show_progress(total, source.name) as bar,
    ):
        result = evaluation.evaluate(
            problems,
            request.completions,
            sampler,
            chat,
            evaluation.make_grader(judging.tasks, pool),
            folder,
            progress=bar.update,
        )
    del sampler
    release_memory()
    return folder.path, result


def load_sampler(
    source: ModelSource,
    config: Config,
    request: Request,
    max_tokens: int,
    sampling: dict[str, Any],
    chat: Chat,
) -> tuple[Sampler, str]:
    """A sampler that holds the model, and how it decodes in words."""
    model, tokenizer = load_for_inference(source, config)
    batch = request.batch or batch_plan(config.grpo, 1).generate_call
    rollout, words = engine.make_rollout(
        model, tokenizer, config.rollout, rows=batch, max_new_tokens=max_tokens, **sampling
    )
    sampler = Sampler(
        complete=lambda prompts: generate(rollout, prompts),
        batch=batch,
        max_tokens=max_tokens,
        play=lambda rows, grader: play_batch(rollout, rows, chat, grader, max_tokens),
    )
    return sampler, words


def config_of_model(source: ModelSource, request: Request) -> Config:
    """The config that a model is loaded with. Overrides of the task do not belong to it."""
    return source.config(request.config_files, without_task(request.overrides))


def make_chat(config: Config, mixture: Sequence[tasks.Options]) -> Chat:
    """The chat template of a model, for rows of these tasks."""
    return Chat(
        load_tokenizer(config.model),
        config.model.prompt_date,
        config.grpo.get("chat_template_kwargs"),
        schemas_of_rows(mixture),
    )


def problems_that_fit(
    rows: Sequence[Row], chat: Chat, config: Config, request: Request
) -> list[Problem]:
    """The problems, if their prompts leave room for completions.

    Raises:
        ConfigError: if a prompt is too long, or the chat template refuses one.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    try:
        problems = evaluation.make_problems(fill_columns(rows, columns), chat)
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
    """Where an evaluation goes: by default a folder of its own for each model and task."""
    model = source.name
    if source.base_only:
        model = f"base-of-{source.folder}"
    task = "+".join(options.type for options in judging.tasks)
    name = re.sub(r"[^\w.+-]+", "-", f"{model}-{task}").strip("-.")
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
