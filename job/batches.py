"""The arithmetic of batches: how many completions and prompts there are at each level, and what fills them.

A generation batch is all completions that are decoded before anything is trained on them, over all processes:
per_device_train_batch_size x processes x steps_per_generation, which defaults to gradient_accumulation_steps.
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
    """How many completions and prompts there are at each level. Counts are over all processes unless they say
    otherwise."""

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
            f"a generate call: {self._batch(self.generate_call)} a device, up to {completion_tokens} tokens "
            f"each after prompts of up to {prompt_tokens}; {plural(calls, 'call')} an optimizer step",
        ]
        if max_steps > 0:
            completions = math.ceil(max_steps * calls) * self.generate_call * self.world_size
            tokens = completions * (prompt_tokens + completion_tokens)
            lines.append(
                f"all {max_steps} steps: {completions:,} completions, at most {tokens:,} tokens with prompts"
            )
        return lines

    def _batch(self, completions: int) -> str:
        prompts = completions / self.num_generations
        return f"{plural(completions, 'completion')} of {plural(prompts, 'prompt')}"


def plural(count: float, noun: str) -> str:
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"


def batch_plan(grpo: Mapping[str, Any], world_size: int) -> BatchPlan:
    """The plan of a `grpo:` section in which batch_mistakes finds nothing wrong."""
    per_device = grpo.get("per_device_train_batch_size") or BATCH_SIZE
    accumulation = grpo.get("gradient_accumulation_steps") or ACCUMULATION
    generation_batch = grpo.get("generation_batch_size")
    if generation_batch:
        steps_per_generation = generation_batch // (per_device * world_size)
    else:
        steps_per_generation = grpo.get("steps_per_generation") or accumulation
    return BatchPlan(
        world_size,
        per_device,
        accumulation,
        steps_per_generation,
        grpo.get("num_generations") or NUM_GENERATIONS,
        grpo.get("num_iterations") or 1,
    )


def batch_mistakes(get: Get, world_size: int) -> Iterator[str]:
    """What keeps a batch from being filled with whole groups: GRPO compares the completions of one prompt.

    Args:
        get: value of a key of the `grpo:` section, or None. A number that is not above 0 is another rule's.
        world_size: number of processes.
    """
    num_generations = get("num_generations") or NUM_GENERATIONS
    per_device = get("per_device_train_batch_size") or BATCH_SIZE
    accumulation = get("gradient_accumulation_steps") or ACCUMULATION
    if num_generations < 2:
        yield f"grpo.num_generations: must be at least 2 (an advantage compares completions), not {num_generations}"
        return
    if min(per_device, accumulation) < 1:
        return
    if get("generation_batch_size") and get("steps_per_generation"):
        yield "grpo.generation_batch_size: set either this or steps_per_generation, not both"
        return
    yield from generation_mistakes(get, world_size)
    if get("zero_std_groups") == "resample":
        yield from resampling_mistakes(get, world_size)
    if evaluates(get) or get("eval_on_start"):
        yield from evaluation_mistakes(get, world_size)


def generation_mistakes(get: Get, world_size: int) -> Iterator[str]:
    """A generation batch that is not whole groups, with the nearest number that would make it so."""
    num_generations = get("num_generations") or NUM_GENERATIONS
    per_device = get("per_device_train_batch_size") or BATCH_SIZE
    one_step = per_device * world_size
    generation_batch = get("generation_batch_size")
    if generation_batch:
        unit = math.lcm(num_generations, one_step)
        if generation_batch % unit:
            yield (
                f"grpo.generation_batch_size: {generation_batch} is not a multiple of both num_generations "
                f"({num_generations}) and per_device_train_batch_size x processes ({per_device} x {world_size}); "
                f"the nearest that fits is {nearest_multiple(generation_batch, unit)}"
            )
        return
    key, steps = generation_steps(get)
    batch = one_step * steps
    if batch % num_generations:
        least = num_generations // math.gcd(num_generations, one_step)
        smaller = nearest_divisor(num_generations, batch)
        or_fewer = f", or num_generations {smaller}" if smaller else ""
        yield (
            f"grpo.num_generations: groups of {num_generations} do not fill a generation batch of {batch} "
            f"completions (per_device_train_batch_size {per_device} x processes {world_size} x {key} {steps}); "
            f"the nearest that fits is {key} {nearest_multiple(steps, least)}{or_fewer}"
        )


def resampling_mistakes(get: Get, world_size: int) -> Iterator[str]:
    """Groups that two processes share: they cannot be resampled, because each process replaces its own groups."""
    num_generations = get("num_generations") or NUM_GENERATIONS
    per_device = get("per_device_train_batch_size") or BATCH_SIZE
    generation_batch = get("generation_batch_size")
    key, steps = generation_steps(get)
    per_process = (generation_batch or per_device * world_size * steps) // world_size
    if per_process % num_generations == 0:
        return
    if generation_batch:
        unit = math.lcm(num_generations, per_device) * world_size
        fitting = f"generation_batch_size {nearest_multiple(generation_batch, unit)}"
    else:
        least = num_generations // math.gcd(num_generations, per_device)
        fitting = f"{key} {nearest_multiple(steps, least)}"
    yield (
        f"grpo.zero_std_groups: resample needs whole groups on each process, but {per_process} completions a "
        f"process are not a multiple of num_generations ({num_generations}); use skip, or {fitting}"
    )


def evaluation_mistakes(get: Get, world_size: int) -> Iterator[str]:
    """A batch of evaluation that is not whole groups."""
    group = get("num_generations_eval") or get("num_generations") or NUM_GENERATIONS
    per_device = get("per_device_eval_batch_size") or BATCH_SIZE
    if min(group, per_device) < 1:
        return
    if per_device * world_size % group:
        least = group // math.gcd(group, world_size)
        yield (
            f"grpo.per_device_eval_batch_size: {per_device} x {world_size} processes is not a multiple of the "
            f"{group} completions of a prompt; the nearest that fits is {nearest_multiple(per_device, least)}"
        )


def generation_steps(get: Get) -> tuple[str, int]:
    """(key, its value): what says how many backward passes one generate call feeds."""
    if get("steps_per_generation"):
        return "steps_per_generation", get("steps_per_generation")
    return "gradient_accumulation_steps", get("gradient_accumulation_steps") or ACCUMULATION


def evaluates(get: Get) -> bool:
    """Whether the run stops now and then to evaluate."""
    return (get("eval_strategy") or "no") != "no"


def nearest_multiple(number: int, unit: int) -> int:
    """The multiple of `unit`, above 0, that is nearest to `number`."""
    return max(round(number / unit), 1) * unit


def nearest_divisor(number: int, whole: int) -> int | None:
    """The divisor of `whole` from 2 on that is nearest to `number`; None for 1, which has none."""
    divisors = [divisor for divisor in range(2, whole + 1) if whole % divisor == 0]
    return min(divisors, key=lambda divisor: abs(divisor - number), default=None)
