"""The arithmetic of batches: how many completions and prompts there are at each level.

A generation batch is all completions that are decoded before anything is trained on them, over all
processes. Its size is per_device_train_batch_size x steps_per_generation. The latter defaults to
gradient_accumulation_steps.

The keys say what one process would do. Several processes share the same batches, so that a run
learns the same on any number of GPUs: each takes an equal part of the optimizer step and of the
generation batch.
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

    def of_one_process(self, grpo: Mapping[str, Any]) -> dict[str, int]:
        """The keys of the `grpo:` section as one of several processes must be given them."""
        if self.world_size == 1:
            return {}
        own = {
            "per_device_train_batch_size": self.per_device_batch,
            "gradient_accumulation_steps": self.accumulation,
        }
        if grpo.get("steps_per_generation"):
            own["steps_per_generation"] = self.steps_per_generation
        return own

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

    @property
    def optimizer_step(self) -> int:
        """Completions that one optimizer step learns from, over all processes."""
        return self.per_device * self.accumulation

    @property
    def generation(self) -> int:
        """Completions that are decoded before anything is trained on them, over all processes."""
        return self.generation_batch or self.per_device * self.steps


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
    """The plan of a `grpo:` section in which batch_mistakes finds nothing wrong.

    Each process has the largest backward pass, up to per_device_train_batch_size, that divides its
    part of the optimizer step and of the generation batch.
    """
    keys = read_batch_keys(grpo.get)
    optimizer_step = keys.optimizer_step // world_size
    generation = keys.generation // world_size
    common = math.gcd(optimizer_step, generation)
    per_device = largest_divisor(common, keys.per_device)
    return BatchPlan(
        world_size=world_size,
        per_device_batch=per_device,
        accumulation=optimizer_step // per_device,
        steps_per_generation=generation // per_device,
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
    mistakes = [*group_mistakes(keys), *process_mistakes(keys, world_size)]
    yield from mistakes[:1]  # what remedies the first may remedy the second
    if not mistakes and get("zero_std_groups") == "resample":
        yield from resampling_mistakes(keys, world_size)
    if evaluates(get) or get("eval_on_start"):
        yield from evaluation_mistakes(get, world_size)


def group_mistakes(keys: BatchKeys) -> Iterator[str]:
    """A generation batch that is not whole groups, with the nearest number that mends it."""
    if keys.generation_batch:
        unit = math.lcm(keys.num_generations, keys.per_device)
        if keys.generation_batch % unit:
            nearest = nearest_multiple(keys.generation_batch, unit)
            yield (
                f"grpo.generation_batch_size: {keys.generation_batch} is not a multiple of both "
                f"num_generations ({keys.num_generations}) and per_device_train_batch_size "
                f"({keys.per_device}); the nearest that fits is {nearest}"
            )
        return
    if keys.generation % keys.num_generations == 0:
        return
    nearest = nearest_steps(keys, keys.num_generations)
    smaller = nearest_divisor(keys.num_generations, keys.generation)
    or_smaller = ""
    if smaller:
        or_smaller = f", or num_generations {smaller}"
    yield (
        f"grpo.num_generations: groups of {keys.num_generations} do not fill a generation batch of "
        f"{keys.generation} completions (per_device_train_batch_size {keys.per_device} x "
        f"{keys.steps_key} {keys.steps}); the nearest that fits is {keys.steps_key} "
        f"{nearest}{or_smaller}"
    )


def process_mistakes(keys: BatchKeys, world_size: int) -> Iterator[str]:
    """Batches that several processes cannot share equally, with the nearest that they can."""
    fewer = largest_divisor(math.gcd(keys.optimizer_step, keys.generation), world_size)
    remedy = f"or take {fewer} process{'es' * (fewer > 1)}"
    if keys.optimizer_step % world_size:
        unit = world_size
        if keys.steps_key == "gradient_accumulation_steps" and not keys.generation_batch:
            unit = math.lcm(world_size, keys.num_generations)
        nearest = nearest_multiple(keys.accumulation, unit // math.gcd(unit, keys.per_device))
        yield (
            f"grpo.gradient_accumulation_steps: {world_size} processes cannot share the "
            f"{keys.optimizer_step} completions of an optimizer step equally; the nearest that "
            f"fits is gradient_accumulation_steps {nearest}, {remedy}"
        )
    if keys.generation % world_size:
        key, nearest = fitting_generation(keys, math.lcm(world_size, keys.num_generations))
        yield (
            f"grpo.{key}: {world_size} processes cannot share a generation batch of "
            f"{keys.generation} completions equally; the nearest that fits is {key} {nearest}, "
            f"{remedy}"
        )


def resampling_mistakes(keys: BatchKeys, world_size: int) -> Iterator[str]:
    """Groups that two processes share.

    They cannot be resampled, because each process replaces its own groups.
    """
    unit = keys.num_generations * world_size
    if keys.generation % unit == 0:
        return
    key, nearest = fitting_generation(keys, unit)
    yield (
        "grpo.zero_std_groups: resample needs whole groups on each process, but "
        f"{keys.generation / world_size:g} completions a process are not a multiple of "
        f"num_generations ({keys.num_generations}); use skip, or {key} {nearest}"
    )


def fitting_generation(keys: BatchKeys, unit: int) -> tuple[str, int]:
    """The key of the generation batch, and its nearest value that makes a multiple of `unit`."""
    if keys.generation_batch:
        whole = math.lcm(unit, keys.per_device)
        return "generation_batch_size", nearest_multiple(keys.generation_batch, whole)
    return keys.steps_key, nearest_steps(keys, unit)


def nearest_steps(keys: BatchKeys, unit: int) -> int:
    """The nearest number of backward passes whose completions are a multiple of `unit`."""
    return nearest_multiple(keys.steps, unit // math.gcd(unit, keys.per_device))


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


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is not above `limit`."""
    return next(divisor for divisor in range(limit, 0, -1) if number % divisor == 0)


def nearest_divisor(number: int, whole: int) -> int | None:
    """The divisor of `whole`, from 2 on, that is nearest to `number`. None if `whole` is 1."""
    divisors = [divisor for divisor in range(2, whole + 1) if whole % divisor == 0]
    return min(divisors, key=lambda divisor: abs(divisor - number), default=None)
