"""What a run does when the GPU's memory does not suffice."""

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

ADVICE = (
    "step {step}: the GPU is out of memory. Lower, in this order: "
    "grpo.per_device_train_batch_size (raise grpo.gradient_accumulation_steps by as much, and "
    "nothing else changes), grpo.max_completion_length, grpo.num_generations. "
    "--dry-run estimates what is needed"
)


def is_out_of_memory(error: BaseException) -> bool:
    import torch  # late: what the start of a job imports should not wait for it

    return isinstance(error, torch.OutOfMemoryError)


def in_smaller_batches(
    decode: Callable[[list[list[int]]], list[Any]], prompts: list[list[int]]
) -> list[Any]:
    """Decode prompts together or, where the memory does not suffice, in two halves, and so on.

    The completions are samples of the same policy either way, because no row depends on another.
    Only the random numbers that each row gets are others.

    Raises:
        torch.OutOfMemoryError: if it does not suffice for one prompt.
    """
    try:
        return decode(prompts)
    except Exception as error:
        if not is_out_of_memory(error) or len(prompts) == 1:
            raise
    # Here, because the error holds on to what the failed attempt had in memory
    import torch

    torch.cuda.empty_cache()
    half = len(prompts) // 2
    tqdm.write(
        f"the GPU's memory does not suffice to decode {len(prompts)} completions at once: "
        f"trying {len(prompts) - half}"
    )
    first = in_smaller_batches(decode, prompts[:half])
    return first + in_smaller_batches(decode, prompts[half:])
