"""out_of_memory.py: completions that do not fit on the GPU at once."""

import pytest
import torch

from job.out_of_memory import ADVICE, in_smaller_batches, is_out_of_memory

PROMPTS = [[i] for i in range(7)]


def decoder(most):
    """Decodes at most so many rows; says which in `tried`."""
    tried = []

    def decode(prompts):
        tried.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [[*prompt, 1] for prompt in prompts]

    return decode, tried


@pytest.mark.parametrize(
    ("most", "attempts"), [(7, [7]), (4, [7, 3, 4]), (2, [7, 3, 1, 2, 4, 2, 2])]
)
def test_what_does_not_fit_is_decoded_in_halves(most, attempts):
    decode, tried = decoder(most)
    assert in_smaller_batches(decode, PROMPTS) == [[i, 1] for i in range(7)]
    assert tried == attempts


def test_one_row_that_does_not_fit_is_told():
    with pytest.raises(torch.OutOfMemoryError):
        in_smaller_batches(decoder(0)[0], PROMPTS)


def test_another_error_is_not_tried_again():
    def decode(prompts):
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error") as raised:
        in_smaller_batches(decode, PROMPTS)
    assert not is_out_of_memory(raised.value)


def test_the_advice_is_one_line():
    assert "\n" not in ADVICE.format(step=3)
