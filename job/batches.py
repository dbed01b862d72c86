"""The arithmetic of batches: how many completions and prompts there are at each level.

A generation batch is all completions that are decoded before anything is trained on them, over all
processes. Its size is per_device_train_batch_size x processes x steps_per_generation. The last of
these defaults to gradient_accumulation_steps.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# What TRL takes where the config is silent
BATCH_SIZE = 8
ACCUMULATION = 1
NUM_GENERATIONS = 8

Get = Callable[[str], Any]  # value of a key of the `grpo:` section, or None


@dataclass(frozen=True)
class BatchPlan:
    """How many completions and prompts there are at each level.

    Counts are over all processes unless they say otherwise.
    """

    world_size: int
    per_device_batch: int  # sequences in one backward pass of one process
    accumulation: int  # backward passes per optimizer step
    steps_per_generation: int  # backward passes that one generate call feeds
    num_generations: int  # completions of one prompt
    num_iterations: int  # times that each generated batch is trained on

    @property
    def generate_call(self) -> int:
        """Completions that one process decodes at once."""
        return self.per_device_batch * self.steps_per_generation

    @property
    def optimizer_step(self) -> int:
        """Completions that one optimizer step learns from."""
        return self.per_device_batch * self.accumulation * self.world_size

    def completions(self, steps: int) -> int:
        """Completions that `steps` optimizer steps need."""
        calls = self.accumulation / (self.steps_per_generation * self.num_iterations)
        return math.ceil(steps * calls) * self.generate_call * self.world_size

    def lines(self, max_steps: int, prompt_tokens: int, completion_tokens: int) -> list[str]:
        """The plan in words.

        Args:
            max_steps: optimizer steps; -1 where epochs count instead.
            prompt_tokens: of the longest prompt.
            completion_tokens: of the longest possible completion.
        """
        share = ""
        if self.world_size > 1:
            per_device = self.optimizer_step // self.world_size
            share = f"each of {self.world_size} devices takes {self._batch(per_device)}, "
        calls = self.accumulation / (self.steps_per_generation * self.num_iterations)
        lines = [
            f"an optimizer step: {self._batch(self.optimizer_step)}, {self.num_generations} each; "
            f"{share}{self.per_device_batch} a backward pass",
            f"a generate call: {self._batch(self.generate_call)} a device, "
            f"up to {completion_tokens} tokens each after prompts of up to {prompt_tokens}; "
            f"{plural(calls, 'call')} an optimizer step",
        ]
        if max_steps > 0:
            completions = self.completions(max_steps)
            tokens = completions * (prompt_tokens + completion_tokens)
            lines.append(
                f"all {max_steps} steps: {completions:,} completions, "
                f"at most {tokens:,} tokens with prompts"
            )
        return lines

    def _batch(self, completions: int) -> str:
        prompts = completions / self.num_generations
        return f"{plural(completions, 'completion')} of {plural(prompts, 'prompt')}"


def plural(count: float, noun: str) -> str:
    ending = "" if count == 1 else "s"
    return f"{count:g} {noun}{ending}"


@dataclass(frozen=True)
class BatchKeys:
    """The keys of a `grpo:` section that batches follow from, with TRL's defaults."""

    num_generations: int
    per_device: int
    accumulation: int
    generation_batch: int | None  # None: it follows from the steps
    steps_key: str  # which key says how many backward passes one generate call feeds
    steps: int  # its value

    def steps_per_generation(self, world_size: int) -> int:
        """Backward passes that one generate call feeds."""
        if self.generation_batch:
            return self.generation_batch // (self.per_device * world_size)
        return self.steps


def read_batch_keys(get: Get) -> BatchKeys:
    accumulation = get("gradient_accumulation_steps") or ACCUMULATION
    steps_key, steps = "gradient_accumulation_steps", accumulation
    if get("steps_per_generation"):
        steps_key, steps = "steps_per_generation", get("steps_per_generation")
    return BatchKeys(
        num_generations=get("num_generations") or NUM_GENERATIONS,
        per_device=get("per_device_train_batch_size") or BATCH_SIZE,
        accumulation=accumulation,
        generation_batch=get("generation_batch_size"),
        steps_key=steps_key,
        steps=steps,
    )


def batch_plan(grpo: Mapping[str, Any], world_size: int) -> BatchPlan:
    """The plan of a `grpo:` section in which batch_mistakes finds nothing wrong."""
    keys = read_batch_keys(grpo.get)
    return BatchPlan(
        world_size=world_size,
        per_device_batch=keys.per_device,
        accumulation=keys.accumulation,
        steps_per_generation=keys.steps_per_generation(world_size),
        num_generations=keys.num_generations,
        num_iterations=grpo.get("num_iterations") or 1,
    )


def batch_mistakes(get: Get, world_size: int) -> Iterator[str]:
    """What keeps a batch from being filled with whole groups.

    GRPO compares the completions of one prompt, so a group must not be divided.

    Args:
        get: value of a key of the `grpo:` section, or None. Another rule refuses a number that is
            not above 0.
        world_size: number of processes.
    """
    keys = read_batch_keys(get)
    if keys.num_generations < 2:
        yield (
            "grpo.num_generations: must be at least 2 (an advantage compares completions), "
            f"not {keys.num_generations}"
        )
        return
    if min(keys.per_device, keys.accumulation) < 1:
        return
    if keys.generation_batch and get("steps_per_generation"):
        yield "grpo.generation_batch_size: set either this or steps_per_generation, not both"
        return
    if keys.generation_batch:
        yield from generation_batch_mistakes(keys, world_size)
    else:
        yield from generation_steps_mistakes(keys, world_size)
    if get("zero_std_groups") == "resample":
        yield from resampling_mistakes(keys, world_size)
    if evaluates(get) or get("eval_on_start"):
        yield from evaluation_mistakes(get, world_size)


def generation_batch_mistakes(keys: BatchKeys, world_size: int) -> Iterator[str]:
    """A generation_batch_size that is not whole groups, with the nearest that is."""
    unit = math.lcm(keys.num_generations, keys.per_device * world_size)
    if keys.generation_batch % unit:
        nearest = nearest_multiple(keys.generation_batch, unit)
        yield (
            f"grpo.generation_batch_size: {keys.generation_batch} is not a multiple of both "
            f"num_generations ({keys.num_generations}) and per_device_train_batch_size x processes "
            f"({keys.per_device} x {world_size}); the nearest that fits is {nearest}"
        )


def generation_steps_mistakes(keys: BatchKeys, world_size: int) -> Iterator[str]:
    """A generation batch that is not whole groups, with the nearest number that mends it."""
    one_step = keys.per_device * world_size
    batch = one_step * keys.steps
    if batch % keys.num_generations == 0:
        return
    least = keys.num_generations // math.gcd(keys.num_generations, one_step)
    nearest = nearest_multiple(keys.steps, least)
    smaller = nearest_divisor(keys.num_generations, batch)
    or_smaller = ""
    if smaller:
        or_smaller = f", or num_generations {smaller}"
    yield (
        f"grpo.num_generations: groups of {keys.num_generations} do not fill a generation batch of "
        f"{batch} completions (per_device_train_batch_size {keys.per_device} x processes "
        f"{world_size} x {keys.steps_key} {keys.steps}); the nearest that fits is {keys.steps_key} "
        f"{nearest}{or_smaller}"
    )


def resampling_mistakes(keys: BatchKeys, world_size: int) -> Iterator[str]:
    """Groups that two processes share.

    They cannot be resampled, because each process replaces its own groups.
    """
    per_process = keys.per_device * keys.steps
    if keys.generation_batch:
        per_process = keys.generation_batch // world_size
    if per_process % keys.num_generations == 0:
        return
    if keys.generation_batch:
        unit = math.lcm(keys.num_generations, keys.per_device) * world_size
        fitting = f"generation_batch_size {nearest_multiple(keys.generation_batch, unit)}"
    else:
        least = keys.num_generations // math.gcd(keys.num_generations, keys.per_device)
        fitting = f"{keys.steps_key} {nearest_multiple(keys.steps, least)}"
    yield (
        f"grpo.zero_std_groups: resample needs whole groups on each process, but {per_process} "
        f"completions a process are not a multiple of num_generations ({keys.num_generations}); "
        f"use skip, or {fitting}"
    )


def evaluation_mistakes(get: Get, world_size: int) -> Iterator[str]:
    """A batch of evaluation that is not whole groups."""
    group = get("num_generations_eval") or get("num_generations") or NUM_GENERATIONS
    per_device = get("per_device_eval_batch_size") or BATCH_SIZE
    if min(group, per_device) < 1:
        return
    if per_device * world_size % group:
        least = group // math.gcd(group, world_size)
        nearest = nearest_multiple(per_device, least)
        yield (
            f"grpo.per_device_eval_batch_size: {per_device} x {world_size} processes is not a "
            f"multiple of the {group} completions of a prompt; the nearest that fits is {nearest}"
        )


def evaluates(get: Get) -> bool:
    """Whether the run stops now and then to evaluate."""
    strategy = get("eval_strategy")
    return bool(strategy) and strategy != "no"


def nearest_multiple(number: int, unit: int) -> int:
    """The multiple of `unit`, above 0, that is nearest to `number`."""
    return max(round(number / unit), 1) * unit


def nearest_divisor(number: int, whole: int) -> int | None:
    """The divisor of `whole`, from 2 on, that is nearest to `number`. None if `whole` is 1."""
    divisors = [divisor for divisor in range(2, whole + 1) if whole % divisor == 0]
    return min(divisors, key=lambda divisor: abs(divisor - number), default=None)
