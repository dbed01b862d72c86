"""What a run is going to do, worked out before it costs anything: rows, prompts, batches, memory."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from job import grpo_keys
from job.batches import BatchPlan, batch_plan
from job.chat import Chat
from job.config import Config
from job.distributed import world_size
from job.errors import ConfigError, nearest, one_line
from job.rows import mixed_rows


@dataclass(frozen=True)
class Plan:
    rows: list[dict[str, Any]]
    eval_rows: list[dict[str, Any]]
    prompt_tokens: int  # of the longest prompt
    completion_tokens: int  # at most
    dropped: int  # rows whose prompts were too long
    batches: BatchPlan

    def lines(self, config: Config) -> list[str]:
        dropped = f" ({self.dropped} longer ones dropped)" if self.dropped else ""
        rows = f"{len(self.rows)} prompts of up to {self.prompt_tokens} tokens{dropped}"
        held_out = f"; {len(self.eval_rows)} more to evaluate on" if self.eval_rows else ""
        steps = config.grpo.get("max_steps", -1)
        lines = [
            rows + held_out,
            *self.batches.lines(steps, self.prompt_tokens, self.completion_tokens),
        ]
        if steps < 0:
            epochs = config.grpo.get("num_train_epochs", 3.0)
            completions = int(epochs * len(self.rows)) * self.batches.num_generations
            tokens = completions * (self.prompt_tokens + self.completion_tokens)
            lines.append(
                f"all {epochs:g} epochs: {completions:,} completions, at most {tokens:,} tokens with prompts"
            )
        if config.grpo_extra.algorithm:
            keys = grpo_keys.ALGORITHMS[config.grpo_extra.algorithm]
            values = dict(config.grpo) | {"zero_std_groups": config.grpo_extra.zero_std_groups}
            named = ", ".join(f"{key} {values[key]}" for key in keys if key in values)
            lines.append(f"algorithm {config.grpo_extra.algorithm}: {named}")
        if config.grpo_extra.zero_std_groups == "resample":
            tries = config.grpo_extra.max_resampling_tries
            lines.append(
                f"resampling may add up to {tries} generate calls to each, and so {tries} times the completions again"
            )
        return lines


def make_plan(config: Config, chat: Chat) -> Plan:
    """
    Raises:
        ConfigError: if prompts are too long and not to be dropped, or too few rows remain to fill a batch.
    """
    try:
        rows, eval_rows = mixed_rows(config.tasks)
        lengths = [
            len(chat.prompt_ids(row["prompt"], row["reasoning_effort"])) for row in rows + eval_rows
        ]
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
    limit, why = longest_allowed(config)
    too_long = sum(length > limit for length in lengths)
    if too_long and config.grpo_extra.overlong_prompts == "refuse":
        raise ConfigError(
            f"{why} leaves {limit} tokens for a prompt, but {too_long} of {len(lengths)} rows have more (the longest "
            f"{max(lengths)}); change that, or drop them with grpo.overlong_prompts: drop"
        )
    fitting = [row for row, length in zip(rows, lengths, strict=False) if length <= limit]
    eval_fitting = [
        row for row, length in zip(eval_rows, lengths[len(rows) :], strict=True) if length <= limit
    ]
    batches = batch_plan(config.grpo, world_size())
    prompts = batches.generate_call * batches.world_size // batches.num_generations
    if len(fitting) < prompts:
        dropped = f" (after {too_long} too long ones were dropped)" if too_long else ""
        raise ConfigError(
            f"task.num_rows: {len(fitting)} rows{dropped} are fewer than the {prompts} prompts that are completed at "
            "once; take more rows, or a smaller batch"
        )
    if eval_rows and not eval_fitting:
        raise ConfigError(
            f"task.num_eval_rows: {why} leaves none of the {len(eval_rows)} rows to evaluate on"
        )
    longest = max(length for length in lengths if length <= limit)
    room = config.model.max_seq_length - longest - 1
    return Plan(
        fitting,
        eval_fitting,
        longest,
        config.grpo.get("max_completion_length") or room,
        too_long,
        batches,
    )


def longest_allowed(config: Config) -> tuple[int, str]:
    """Tokens that a prompt may have, and which keys say so, in words."""
    total, completion = config.model.max_seq_length, config.grpo.get("max_completion_length")
    if config.grpo_extra.max_prompt_length:
        return (
            config.grpo_extra.max_prompt_length,
            f"grpo.max_prompt_length {config.grpo_extra.max_prompt_length}",
        )
    if completion:
        return (
            total - completion - 1,
            f"model.max_seq_length {total} less grpo.max_completion_length {completion}",
        )
    return total - 2, f"model.max_seq_length {total}"


def first_of_each_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of each task with each reasoning effort."""
    return list({(row["task"], row["reasoning_effort"]): row for row in reversed(rows)}.values())[
        ::-1
    ]


def shown(row: dict[str, Any], chat: Chat) -> str:
    """A row's prompt as the model is given it, indented."""
    text = chat.render(row["prompt"], row["reasoning_effort"])
    return f"prompt of {row['task']}:\n" + "\n".join(f"  | {line}" for line in text.split("\n"))


def rehearse(arguments: Any) -> None:
    """Make of one weight what the trainer will make of all: optimizer, schedule, data loader and the like. So what the
    libraries refuse only when they use a value is refused before any weights are fetched.

    Args:
        arguments: a GRPOConfig.

    Raises:
        ConfigError: with the keys in question and what the library says.
    """
    import torch
    from torch.utils.data import DataLoader
    from transformers import GenerationConfig, Trainer, get_scheduler

    weight = torch.nn.Linear(1, 1)
    if not arguments.optim_target_modules:  # GaLore and APOLLO look for modules of the real model
        with naming("optim, optim_args"):
            optimizer, options = Trainer.get_optimizer_cls_and_kwargs(arguments, weight)
            optimizer = optimizer(
                options.pop("model", None) or weight.parameters(), **options
            )  # LOMO takes the model
        with naming("lr_scheduler_type, lr_scheduler_kwargs"):
            steps = arguments.max_steps if arguments.max_steps > 0 else 1000
            warmup, options = arguments.get_warmup_steps(steps), arguments.lr_scheduler_kwargs
            get_scheduler(arguments.lr_scheduler_type, optimizer, warmup, steps, options)
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
                "dispatch_batches: rows are no tensors, and cannot be handed around; leave it out"
            )
    with naming("torch_compile, torch_compile_backend, torch_compile_mode"):
        if arguments.torch_compile:
            torch.compile(
                weight, backend=arguments.torch_compile_backend, mode=arguments.torch_compile_mode
            )
    with naming("cache_implementation"):
        settings = GenerationConfig(cache_implementation=arguments.cache_implementation)
    with naming("generation_kwargs"):  # vLLM has keys of its own: presence_penalty, stop, ...
        ours = {} if arguments.use_vllm else arguments.generation_kwargs or {}
        for key in settings.update(**ours):  # what it does not know
            raise ValueError(f"no such key {key}{nearest(key, vars(settings))}")


@contextlib.contextmanager
def naming(keys: str) -> Iterator[None]:
    """Puts the keys that it is about in front of whatever a library says of their values."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"grpo.{keys}: {one_line(error)}") from error
