"""The arithmetic of batches."""

import re

from hypothesis import given
from hypothesis import strategies as st

from job.batches import BatchPlan, batch_mistakes, batch_plan, nearest_divisor, nearest_multiple

KEYS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_generations",
    "steps_per_generation",
    "generation_batch_size",
)
small = st.integers(1, 12)
optional = st.none() | st.integers(1, 40)


@given(
    batch=small,
    accumulation=small,
    generations=st.integers(2, 12),
    steps=optional,
    whole=optional,
    world_size=st.sampled_from([1, 2, 4, 8]),
)
def test_what_is_refused_is_what_trl_refuses_and_the_remedies_work(
    batch, accumulation, generations, steps, whole, world_size
):
    section = dict(zip(KEYS, (batch, accumulation, generations, steps, whole), strict=True))

    def trl_accepts(values, processes):
        """The conditions of GRPOConfig.__post_init__."""
        one = values[KEYS[0]] * processes
        if values.get(KEYS[4]) and values.get(KEYS[3]):
            return False
        generated = values.get(KEYS[4]) or one * (values.get(KEYS[3]) or values[KEYS[1]])
        return generated % one == 0 and generated % values["num_generations"] == 0

    def fits(values):
        """Whether one process can do it, and several can share it equally."""
        if not trl_accepts(values, 1):
            return False
        step = values[KEYS[0]] * values[KEYS[1]]
        generated = values[KEYS[4]] or values[KEYS[0]] * (values[KEYS[3]] or values[KEYS[1]])
        return step % world_size == 0 and generated % world_size == 0

    mistakes = list(batch_mistakes(section.get, world_size))
    assert bool(mistakes) == (not fits(section))
    if mistakes:
        check_remedy(section, mistakes[0])
        return
    plan = batch_plan(section, world_size)
    own = plan.of_one_process(section) or section
    assert trl_accepts(section | own, world_size)
    assert own[KEYS[0]] <= batch  # the memory of a GPU
    # Whatever the number of processes
    alone = batch_plan(section, 1)
    assert plan.optimizer_step == alone.optimizer_step == batch * accumulation
    assert plan.generate_call * world_size == alone.generate_call
    assert plan.generate_call * world_size % generations == 0
    assert plan.completions(7) == alone.completions(7)


def check_remedy(section, mistake):
    """Each value that the message names, written instead, mends it for one process."""
    remedies = re.findall(r"(\w+) (\d+)(?=,|$)", mistake.split("nearest that fits is ")[-1])
    for key, value in remedies:
        if key in section:
            mended = list(batch_mistakes((section | {key: int(value)}).get, 1))
            assert not mended, (mistake, mended)


@given(batch=small, accumulation=small, processes=st.integers(2, 9))
def test_a_batch_that_processes_cannot_share_names_the_nearest(batch, accumulation, processes):
    section = {
        "per_device_train_batch_size": 2 * batch,
        "gradient_accumulation_steps": accumulation,
        "num_generations": 2,
    }
    mistakes = list(batch_mistakes(section.get, processes))
    assert len(mistakes) == (2 * batch * accumulation % processes > 0)
    for mistake in mistakes:
        steps, fewer = re.search(
            r"accumulation_steps (\d+), or take (\d+) process", mistake
        ).groups()
        more = section | {"gradient_accumulation_steps": int(steps)}
        assert not list(batch_mistakes(more.get, processes))
        assert int(fewer) < processes and not list(batch_mistakes(section.get, int(fewer)))


def test_the_plan_in_words():
    plan = BatchPlan(2, 1, 8, 16, 8, 1)
    lines = plan.lines(10, 100, 50)
    assert "16 completions of 2 prompts, 8 each; each of 2 devices takes 8 completions" in lines[0]
    assert "takes 8 completions of 1 prompt, 1 a b" in lines[0]
    assert "16 completions of 2 prompts a device, up to 50 tokens each after prompts" in lines[1]
    assert "each after prompts of up to 100; 0.5 call" in lines[1]
    assert "160 completions, at most 24,000 tokens" in lines[2]
    assert len(plan.lines(-1, 100, 50)) == 2
    # 3 steps begin a second batch, which a 4th would use up
    reused = BatchPlan(1, 8, 1, 1, 8, 2).lines(3, 100, 50)
    assert "0.5 calls" in reused[1]
    assert "all 3 steps: 16 completions, at most 2,400 tokens" in reused[2]


@given(st.integers(1, 500), st.integers(1, 50))
def test_the_nearest_multiple_and_divisor(number, unit):
    multiple = nearest_multiple(number, unit)
    assert multiple % unit == 0 and multiple >= unit
    assert all(
        abs(number - multiple) <= abs(number - other) for other in range(unit, number + unit, unit)
    )
    divisor = nearest_divisor(unit, number)
    assert divisor is None if number == 1 else number % divisor == 0 and divisor >= 2
