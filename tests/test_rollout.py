"""Rollouts: token ids in, token ids out, rows in any number."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from job.config import TINY_MODEL
from job.rollout import BatchRollout, complete_with_transformers, generate, until_stop

PROMPTS = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6)


def backwards(prompts):
    return [prompt[::-1] for prompt in prompts]


@given(PROMPTS)
def test_each_prompt_gets_its_own_completion_in_order(prompts):
    rollout = BatchRollout(backwards)
    assert generate(rollout, prompts) == backwards(prompts)
    assert rollout.unfinished == 0 and rollout.step() == []


@given(PROMPTS, PROMPTS)
def test_rows_may_be_added_after_a_step(first, second):
    rollout = BatchRollout(backwards)
    rows = [rollout.add(prompt) for prompt in first]
    finished = rollout.step()
    rows += [rollout.add(prompt) for prompt in second]
    assert rollout.unfinished == len(second)
    finished += rollout.step()
    assert {item.row: item.completion_ids for item in finished} == dict(
        zip(rows, backwards(first + second), strict=True)
    )


def test_a_library_that_loses_a_completion_is_noticed():
    with pytest.raises(ValueError):
        generate(BatchRollout(lambda prompts: []), [[1]])


def test_a_completion_ends_with_its_stop_token():
    assert until_stop([5, 6, 2, 2, 0], {2, 3}) == [5, 6, 2]
    assert until_stop([5, 6], {2}) == [5, 6]


def test_prompts_of_different_lengths_are_decoded_as_if_alone():
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32).eval()
    prompts = [
        tokenizer(text)["input_ids"]
        for text in ("Create a new function", "Hello", "def matmul(A, B):")
    ]
    complete = complete_with_transformers(model, tokenizer, max_new_tokens=12, do_sample=False)
    together = generate(BatchRollout(complete), prompts)
    assert together == [generate(BatchRollout(complete), [prompt])[0] for prompt in prompts]
    assert all(1 <= len(completion) <= 12 for completion in together)


def test_a_row_that_stays_is_read_again_with_all_that_was_said():
    asked = []

    def complete(prompts):
        asked.extend(prompts)
        return [[7, 8, 9] for _ in prompts]

    rollout = BatchRollout(complete)
    row, other = rollout.add([1], 2, stays=True), rollout.add([2])
    assert [item.completion_ids for item in rollout.step()] == [[7, 8], [7, 8, 9]]
    assert rollout.unfinished == 0
    rollout.extend(row, [4, 5], 1)
    assert [(item.row, item.completion_ids) for item in rollout.step()] == [(row, [7])]
    assert asked == [[1], [2], [1, 7, 8, 4, 5]]
    rollout.drop(row)
    with pytest.raises(KeyError):
        rollout.extend(other, [1], 1)
