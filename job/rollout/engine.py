"""Which kind of rollout decodes: CUDA graphs in the trainer's own weights, or a library's generate.

auto picks graphs on a GPU from Ampere on, if a first try of this model as a graph succeeds. A key
of grpo.generation_kwargs that sampling.py does not know leaves it to generate.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import MISSING

from job.errors import ConfigError, one_line
from job.out_of_memory import in_smaller_batches
from job.rollout import (
    Base,
    BatchRollout,
    Rollout,
    TokenIds,
    complete_with_transformers,
    stop_ids_of,
)

# Keys of generate that graphs honour, and the values that change nothing
NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "do_sample": True,
}
# Keys that do not bear on which token is drawn
IGNORED = (
    "max_new_tokens",
    "max_length",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "disable_compile",
    "compile_config",
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
    "transformers_version",
    # NaN is drawn without an error in a graph, and the watchdog sees it
    "remove_invalid_values",
)

OLDEST_CAPABILITY = (8, 0)  # Ampere: bfloat16, and asynchronous copies in Triton
MOST_ROWS = 256  # decoded at once; further rows wait, so that the cache does not grow with them
PROMPT_TOKENS = 4096  # of prompts read at once, padding included
SCORE_BYTES = 256 * 2**20  # of attention scores held at once, where a layer has to compute them
SCORE_COPIES = 20  # bytes of one score in all its copies, 16-bit and float32
TRIAL_TOKENS = 3


@dataclass(frozen=True)
class Options:
    """The `rollout:` section of the config."""

    # graph: an error where it cannot be had. generate: transformers' or Unsloth's own
    engine: Literal["auto", "graph", "generate"] = MISSING
    # Whether the loss corrects for the difference between the policy as it decodes and as it trains
    importance_sampling: bool = MISSING


@dataclass(frozen=True)
class Request:
    """What a rollout is needed for.

    Args:
        generation_config: a GenerationConfig, as generate would be given it.
        rows: completions of one call.
        tokens: of the longest sequence, prompt included.
        autocast: dtype in which the trainer runs the model's forward; None: as it is.
    """

    generation_config: Any
    stop_ids: Sequence[int]
    pad_id: int
    rows: int
    tokens: int
    max_new_tokens: int
    autocast: Any = None


def choose(
    model: Any, options: Options, request: Request, obstacle: str | None = None
) -> tuple[Any | None, str]:
    """The rollout, or None where generate is to decode, and a line that says what and why.

    Args:
        model: on its device, with an adapter of PEFT or without.
        obstacle: why this trainer cannot have graphs, if it cannot.

    Raises:
        ConfigError: if `engine: graph` cannot be had.
    """
    if options.engine == "generate":
        return None, "rollout: generate, as rollout.engine says"
    reason = obstacle or why_not(request)
    if reason is None:
        try:
            rollout, what = try_graph(model, request)
            return rollout, f"rollout: CUDA graphs, {what}"
        except Exception as error:  # of any type: the model's code is captured
            reason = f"this model cannot be captured: {type(error).__name__}: {one_line(error)}"
    if options.engine == "graph":
        raise ConfigError(f"rollout.engine: graph cannot be had, because {reason[:500]}")
    return None, f"rollout: generate, because {reason[:500]}"


def make_rollout(
    model: Any, tokenizer: Any, options: Options, *, rows: int, max_new_tokens: int, **sampling: Any
) -> tuple[Rollout, str]:
    """What decodes prompts outside a trainer, and a line that says what and why.

    Args:
        model: in evaluation mode, on its device.
        rows: prompts of one call.
        sampling: as in GenerationConfig: do_sample, temperature, top_k, top_p, ...

    Raises:
        ConfigError: as `choose` does.
    """
    from transformers import GenerationConfig

    request = Request(
        generation_config=GenerationConfig(**sampling),
        stop_ids=sorted(stop_ids_of(model, tokenizer)),
        pad_id=tokenizer.pad_token_id,
        rows=rows,
        tokens=max_new_tokens + 1,  # the buffers grow with the first prompts
        max_new_tokens=max_new_tokens,
    )
    rollout, words = choose(model, options, request)
    if rollout is None:
        rollout = BatchRollout(
            complete_with_transformers(model, tokenizer, max_new_tokens=max_new_tokens, **sampling)
        )
    return rollout, words


def make_base(model: Any, tokenizer: Any, max_seq_length: int, **sampling: Any) -> Base:
    """The frozen base of a model outside a trainer. Arguments as in `make_rollout`."""

    def rollout(max_new_tokens: int) -> Rollout:
        complete = complete_with_transformers(
            model, tokenizer, max_new_tokens=max_new_tokens, **sampling
        )
        return base_rollout(model, complete)

    return Base(rollout, max_seq_length)


def base_rollout(model: Any, complete: Callable[[list[TokenIds]], list[TokenIds]]) -> Rollout:
    """Decodes with the model's `generate`, without its adapter.

    Args:
        complete: decodes with this model.
    """

    def complete_as_base(prompts: list[TokenIds]) -> list[TokenIds]:
        with without_adapter(model):
            return in_smaller_batches(complete, prompts)

    return BatchRollout(complete_as_base)


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base of a model with an adapter of PEFT. A whole model stays as it is."""
    disable = getattr(model, "disable_adapter", None)
    if disable is None:
        yield
        return
    with disable():
        yield


def why_not(request: Request) -> str | None:
    """Why this machine or this kind of sampling cannot have graphs; None if nothing is known."""
    import torch

    from job.rollout.sampling import from_generation_config

    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_CAPABILITY:
        name = torch.cuda.get_device_name()
        return f"{name} is older than Ampere (compute capability {capability[0]}.{capability[1]})"
    _, foreign = from_generation_config(request.generation_config)
    if foreign:
        return f"grpo.generation_kwargs has keys that graphs do not know: {', '.join(foreign)}"
    return None


def make_graph_rollout(model: Any, request: Request, capture: bool) -> tuple[Any, str]:
    """A GraphRollout of this model, and what decodes in words.

    Raises:
        CannotDecode: if neither decoder can read the model.
    """
    from job.rollout.any_model import ModelDecoder
    from job.rollout.gpt_oss import CannotDecode, GptOssDecoder
    from job.rollout.graph import GraphRollout
    from job.rollout.sampling import from_generation_config

    try:
        decoder, what = GptOssDecoder(model), "gpt-oss's weights as they are packed"
    except CannotDecode:
        decoder, what = ModelDecoder(model, request.autocast), "the model's own forward"
    sampling, _ = from_generation_config(request.generation_config)
    rollout = GraphRollout(
        decoder,
        sampling,
        stop_ids=request.stop_ids,
        pad_id=request.pad_id,
        rows=min(request.rows, MOST_ROWS),
        tokens=request.tokens,
        max_new_tokens=request.max_new_tokens,
        capture=capture,
    )
    return rollout, what


def try_graph(model: Any, request: Request) -> tuple[Any, str]:
    """A GraphRollout that has decoded a few tokens.

    Raises:
        Exception: of any type, if the model cannot be captured.
    """
    import torch

    rollout, what = make_graph_rollout(model, request, capture=True)
    # What is drawn later must not depend on whether this process has tried
    with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
        rollout.add([request.pad_id] * 2)
        rollout.step(TRIAL_TOKENS)
    rollout.cancel()
    return rollout, what
