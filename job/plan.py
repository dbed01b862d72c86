"""What a run is going to do, worked out before it costs anything: rows, prompts, batches."""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tasks
from job import grpo_keys, rewards
from job.batches import BatchPlan, batch_plan
from job.chat import Chat
from job.config import Config
from job.distributed import world_size
from job.episodes.episode import Call, Turn
from job.episodes.tool_format import ToolFormat
from job.errors import ConfigError, nearest, one_line
from job.row_stream import RowStream
from job.rows import mixed_rows, prompt_key


@dataclass(frozen=True)
class Plan:
    rows: list[dict[str, Any]]
    eval_rows: list[dict[str, Any]]
    prompt_tokens: int  # of the longest prompt
    completion_tokens: int  # at most
    dropped: int  # rows whose prompts were too long
    batches: BatchPlan
    # All rows to train on, where they are too many to be read at once; `rows` are the first ones
    stream: RowStream | None = None

    def training_set(self) -> Any:
        """The rows to train on, as TRL takes them."""
        from datasets import Dataset  # here, because it is slow to import

        if self.stream is not None:
            return self.stream.dataset()
        return Dataset.from_list(self.rows)

    def lines(self, config: Config) -> list[str]:
        """The plan in words."""
        steps = config.grpo.get("max_steps", -1)
        lines = [
            self._rows_in_words(),
            *self.batches.lines(steps, self.prompt_tokens, self.completion_tokens),
        ]
        if steps < 0:
            lines.append(self._epochs_in_words(config.grpo.get("num_train_epochs", 3.0)))
        if config.grpo_extra.algorithm:
            lines.append(algorithm_in_words(config))
        if config.grpo_extra.zero_std_groups == "resample":
            tries = config.grpo_extra.max_resampling_tries
            lines.append(
                f"resampling may add up to {tries} generate calls to each, "
                f"and so {tries} times the completions again"
            )
        return lines

    def extent(self, config: Config) -> tuple[int, int]:
        """(optimizer steps, completions that are trained on) of the whole run."""
        steps = config.grpo.get("max_steps", -1)
        if steps > 0:
            return steps, self.batches.completions(steps)
        epochs = config.grpo.get("num_train_epochs", 3.0)
        completions = int(epochs * len(self.rows)) * self.batches.num_generations
        learned_from = completions * self.batches.num_iterations
        return max(learned_from // self.batches.optimizer_step, 1), completions

    def _rows_in_words(self) -> str:
        words = f"{len(self.rows)} prompts of up to {self.prompt_tokens} tokens"
        if self.stream is not None:
            words = f"rows are streamed; the first ones: {words}"
        if self.dropped:
            words += f" ({self.dropped} longer ones dropped)"
        if self.eval_rows:
            words += f"; {len(self.eval_rows)} more to evaluate on"
        return words

    def _epochs_in_words(self, epochs: float) -> str:
        completions = int(epochs * len(self.rows)) * self.batches.num_generations
        tokens = completions * (self.prompt_tokens + self.completion_tokens)
        return (
            f"all {epochs:g} epochs: {completions:,} completions, "
            f"at most {tokens:,} tokens with prompts"
        )


def algorithm_in_words(config: Config) -> str:
    """The algorithm with its keys and the values that they have in this config."""
    name = config.grpo_extra.algorithm
    values = dict(config.grpo) | {"zero_std_groups": config.grpo_extra.zero_std_groups}
    keys = [key for key in grpo_keys.ALGORITHMS[name] if key in values]
    return f"algorithm {name}: " + ", ".join(f"{key} {values[key]}" for key in keys)


def make_plan(config: Config, chat: Chat) -> Plan:
    """Makes the rows of all tasks, and measures their prompts.

    Raises:
        ConfigError: if a task refuses its options, if prompts are too long and may not be dropped,
            or if too few rows remain to fill a batch.
    """
    # Make the rows and measure them
    try:
        rows, eval_rows = mixed_rows(config.tasks)
        check_turns(config, chat)
        lengths = chat.prompt_lengths(rows)
        eval_lengths = chat.prompt_lengths(eval_rows)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error

    for options in config.tasks:
        check_json_columns(options)

    # Leave out or refuse the long ones
    limit, why = longest_allowed(config)
    every_length = lengths + eval_lengths
    too_long = sum(length > limit for length in every_length)
    if too_long and config.grpo_extra.overlong_prompts == "refuse":
        remedy = room_for(max(every_length), config)
        if any(length <= limit for length in lengths):
            remedy += ", or drop them with grpo.overlong_prompts: drop"
        raise ConfigError(
            f"{why} leaves {limit} tokens for a prompt, but {too_long} of {len(every_length)} rows "
            f"have more (the longest {max(every_length)}); {remedy}"
        )
    fitting = rows_up_to(limit, rows, lengths)
    eval_fitting = rows_up_to(limit, eval_rows, eval_lengths)

    # See whether enough are left
    batches = batch_plan(config.grpo, world_size())
    check_enough_rows(fitting, batches, too_long)
    if eval_rows and not eval_fitting:
        raise ConfigError(
            f"task.num_eval_rows: {why} leaves none of the {len(eval_rows)} rows to evaluate on"
        )
    longest = max(length for length in every_length if length <= limit)
    rest = config.model.max_seq_length - longest - 1
    completion_tokens = config.grpo.get("max_completion_length") or rest
    stream = None
    if is_streamed(config):
        columns = list(dict.fromkeys(name for row in fitting for name in row))
        held_out = {prompt_key(row) for row in eval_rows}
        longest_later = min(limit, config.model.max_seq_length - completion_tokens - 1)
        stream = RowStream(config.tasks[0], held_out, columns, chat, longest_later)
    return Plan(
        rows=fitting,
        eval_rows=eval_fitting,
        prompt_tokens=longest,
        completion_tokens=completion_tokens,
        dropped=too_long,
        batches=batches,
        stream=stream,
    )


def check_turns(config: Config, chat: Chat) -> None:
    """Raises ValueError if a task wants several turns and the chat template cannot have them."""
    for options in config.tasks:
        if not tasks.takes_turns(options):
            continue
        tool_format = ToolFormat(chat)
        call = Turn(calls=(Call("tool"),))
        tool_format.following(call, [{"role": "tool", "name": "tool", "content": "1"}])
        if hasattr(tasks.load(options.type), "Environment"):
            tool_format.following(Turn("-"), [{"role": "user", "content": "-"}])


def check_json_columns(options: tasks.Options) -> None:
    """Refuse a column of different kinds of values that a reward function reads: it would be given
    JSON texts.

    Raises:
        ConfigError: which names the two.
    """
    json_columns = getattr(tasks.load(options.type), "json_columns", None)
    if json_columns is None:
        return
    for column in json_columns(options):
        for name in tasks.reward_weights(options.type, options.rewards):
            if column in inspect.signature(rewards.resolve(name)).parameters:
                raise ConfigError(
                    f"task.data: column {column}: its values are of different kinds, which no "
                    f"table holds, and the reward function {name} reads it; make them of one kind"
                )


def is_streamed(config: Config) -> bool:
    """Whether the rows are read while they are trained on.

    Raises:
        ConfigError: if they are, and something in the config needs all of them at once.
    """
    if not any(map(tasks.is_streamed, config.tasks)):
        return False
    reasons = []
    if len(config.tasks) > 1:
        reasons.append("task: several tasks are mixed")
    if config.grpo.get("max_steps", -1) <= 0:
        reasons.append("grpo.max_steps: a stream has no known end, so say where the run ends")
    if config.grpo_extra.zero_std_groups == "resample":
        reasons.append("grpo.zero_std_groups: resample draws from all rows")
    if reasons:
        rest = "the rows are streamed (task.streaming: false reads them all)"
        raise ConfigError([f"{reason}; {rest}" for reason in reasons])
    return True


def rows_up_to(
    limit: int, rows: Sequence[dict[str, Any]], lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """The rows whose prompts have no more than `limit` tokens."""
    return [row for row, length in zip(rows, lengths, strict=True) if length <= limit]


def check_enough_rows(rows: Sequence[dict[str, Any]], batches: BatchPlan, too_long: int) -> None:
    """Refuses rows that do not fill one generate call.

    Raises:
        ConfigError: if there are too few.
    """
    prompts = batches.generate_call * batches.world_size // batches.num_generations
    if len(rows) >= prompts:
        return
    dropped = ""
    if too_long:
        dropped = f" (after {too_long} too long ones were dropped)"
    raise ConfigError(
        f"task.num_rows: {len(rows)} rows{dropped} are fewer than the {prompts} prompts that are "
        "completed at once; set task.num_rows higher (rows are repeated), or take a smaller batch"
    )


def longest_allowed(config: Config) -> tuple[int, str]:
    """How many tokens a prompt may have, and which keys say so, in words."""
    total = config.model.max_seq_length
    own_limit = config.grpo_extra.max_prompt_length
    if own_limit:
        return own_limit, f"grpo.max_prompt_length {own_limit}"
    completion = config.grpo.get("max_completion_length")
    if completion:
        why = f"model.max_seq_length {total} less grpo.max_completion_length {completion}"
        return total - completion - 1, why
    return total - 2, f"model.max_seq_length {total}"


def room_for(prompt: int, config: Config) -> str:
    """What to set so that a prompt of this many tokens is allowed, in words."""
    needed = prompt + 1 + (config.grpo.get("max_completion_length") or 1)
    remedies = []
    if config.grpo_extra.max_prompt_length:
        remedies.append(f"grpo.max_prompt_length to {prompt} or more")
    if needed > config.model.max_seq_length:
        remedies.append(f"model.max_seq_length to {needed} or more")
    return f"set {' and '.join(remedies)}"


def first_of_each_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of each task with each reasoning effort."""
    first: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        first.setdefault((tasks.type_of(row), row["reasoning_effort"]), row)
    return list(first.values())


def shown(row: dict[str, Any], chat: Chat) -> str:
    """A row's prompt as the model is given it, indented."""
    text = chat.render_row(row)
    return f"prompt of {tasks.type_of(row)}:\n" + "\n".join(
        f"  | {line}" for line in text.split("\n")
    )


# ---- what only the libraries know


def rehearse(arguments: Any) -> None:
    """Make of one weight what the trainer will make of all: optimizer, schedule, loader, and so on.

    The libraries refuse some values only when they use them. This refuses them before any weights
    are fetched.

    Args:
        arguments: a GRPOConfig.

    Raises:
        ConfigError: with the keys in question and what the library says.
    """
    import torch

    weight = torch.nn.Linear(1, 1)
    # GaLore and APOLLO look for modules of the real model.
    if not arguments.optim_target_modules:
        rehearse_optimizer(arguments, weight)
    rehearse_loader(arguments)
    with naming("torch_compile, torch_compile_backend, torch_compile_mode"):
        if arguments.torch_compile:
            torch.compile(
                weight, backend=arguments.torch_compile_backend, mode=arguments.torch_compile_mode
            )
    rehearse_generation(arguments)


def rehearse_optimizer(arguments: Any, weight: Any) -> None:
    from transformers import Trainer, get_scheduler

    with naming("optim, optim_args"):
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, weight)
        trained = options.pop("model", None)  # LOMO takes the model
        if trained is None:
            trained = weight.parameters()
        optimizer = optimizer_class(trained, **options)
    with naming("lr_scheduler_type, lr_scheduler_kwargs"):
        steps = arguments.max_steps if arguments.max_steps > 0 else 1000
        warmup, options = arguments.get_warmup_steps(steps), arguments.lr_scheduler_kwargs
        get_scheduler(arguments.lr_scheduler_type, optimizer, warmup, steps, options)


def rehearse_loader(arguments: Any) -> None:
    from torch.utils.data import DataLoader

    with naming("dataloader_..."):
        DataLoader(
            [0],
            num_workers=arguments.dataloader_num_workers,
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            multiprocessing_context=arguments.dataloader_multiprocessing_context,
        )
    with naming("accelerator_config"):
        if arguments.accelerator_config.dispatch_batches:
            raise ValueError(
                "dispatch_batches: it hands tensors to the other processes, and rows are not "
                "tensors; leave it out"
            )


def rehearse_generation(arguments: Any) -> None:
    from transformers import GenerationConfig

    with naming("cache_implementation"):
        settings = GenerationConfig(cache_implementation=arguments.cache_implementation)
    if arguments.use_vllm or not arguments.generation_kwargs:
        return  # vLLM has keys of its own: presence_penalty, stop, ...
    with naming("generation_kwargs"):
        unknown = settings.update(**arguments.generation_kwargs)
        for key in unknown:
            raise ValueError(f"no such key {key}{nearest(key, vars(settings))}")


@contextlib.contextmanager
def naming(keys: str) -> Iterator[None]:
    """Puts the keys in question in front of whatever a library says of their values."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"grpo.{keys}: {one_line(error)}") from error
