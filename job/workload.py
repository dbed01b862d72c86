"""What the memory estimate knows of a run, and the sizes that both backends share.

Checkpoint says what is loaded, Storage how its weights are held, and Workload how much is decoded
and trained at once. All sizes are
bytes on one GPU, unless a comment says otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.config import Lora
from job.model_shape import Shape, read_shape
from job.rollout.engine import MOST_ROWS, PROMPT_TOKENS, SCORE_BYTES, SCORE_COPIES

# bitsandbytes' NF4 with double quantisation: half a byte for a weight, a byte of scale for 64
# weights, a float for 256 scales.
NF4 = 0.5 + (1 + 4 / 256) / 64
MXFP4 = 0.5 + 1 / 32  # half a byte for a weight, and a byte of scale for 32 weights
# Two cuBLAS workspaces: one for the handle of the forward thread, one for that of the backward
# thread. PyTorch's default is 32 MiB each on Hopper and 8 MiB elsewhere (documentation of
# CUBLAS_WORKSPACE_CONFIG). Seen on the H200.
WORKSPACES = 64 * 2**20

Parts = dict[str, int]  # what the bytes are for -> how many


@dataclass(frozen=True)
class Checkpoint:
    """What is loaded, and how its weights are asked for."""

    shape: Shape
    quantised: str | None  # the method that its config.json names
    load_in_4bit: bool

    @property
    def form(self) -> str:
        """How a backend is asked to hold the weights: 16bit, mxfp4 or nf4."""
        if self.quantised == "mxfp4":
            return "mxfp4"
        if self.quantised == "bitsandbytes":
            return "nf4"
        # A 16-bit gpt-oss stays as it is, because its fused experts could not be quantised.
        if self.load_in_4bit and self.shape.model_type != "gpt_oss":
            return "nf4"
        return "16bit"


@dataclass(frozen=True)
class Storage:
    """How a backend holds the weights of a checkpoint on the GPU."""

    checkpoint: Checkpoint
    experts_as: str  # 16bit, mxfp4, nf4
    item: int  # bytes of an element in the compute dtype
    unquantised: int  # bytes of a weight that quantisation leaves alone
    stream: int  # bytes of an element of the residual stream while training

    @property
    def nf4(self) -> bool:
        """Whether linear layers and experts are both in NF4."""
        return self.experts_as == "nf4"

    def weight_bytes(self, offloaded: int, stored_bytes: int | None) -> int:
        """Bytes of all weights on the GPU.

        Args:
            offloaded: weights of the embedding that are kept in main memory.
            stored_bytes: size of the files, if it is known.
        """
        if stored_bytes and self._weighs_as_stored():
            return stored_bytes - self.item * offloaded
        shape = self.checkpoint.shape
        per_weight = {"16bit": self.item, "mxfp4": MXFP4, "nf4": NF4}
        per_linear = NF4 if self.nf4 else self.item
        weights = self.unquantised * (shape.embedding - offloaded + shape.head + shape.other)
        weights += int(per_linear * shape.linear_weights)
        weights += int(per_weight[self.experts_as] * shape.expert_weights)
        return weights

    def _weighs_as_stored(self) -> bool:
        """Whether the size of the files is a better number than a count of the weights."""
        if self.checkpoint.quantised in ("mxfp4", "bitsandbytes") and self.experts_as != "16bit":
            return True  # some checkpoints leave single layers in 16 bit
        return not self.checkpoint.shape.known and not self.nf4


@dataclass(frozen=True)
class Workload:
    """What sizes depend on. All counts are for one GPU."""

    shape: Shape
    storage: Storage
    checkpointing: bool  # activations are computed again in the backward pass
    adapted: Mapping[str, int]  # LoRA-adapted linear layer -> rank
    adapted_experts: Mapping[str, tuple[int, int]]  # adapted matrix of each expert -> (in, out)
    sequences: int  # decoded at once
    batch: int  # sequences in one backward pass
    prompt: int  # tokens
    completion: int  # tokens
    prompts: int = 1  # different ones among the sequences
    graphs: bool = False  # decoded by CUDA graphs; see job/rollout

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


# ---- what the config names


def read_checkpoint(architecture: Mapping[str, Any], load_in_4bit: bool) -> Checkpoint:
    """The checkpoint of a parsed config.json.

    Raises:
        ValueError: if a number that is needed is missing.
    """
    section = architecture.get("quantization_config") or {}
    return Checkpoint(read_shape(architecture), section.get("quant_method"), load_in_4bit)


def named_modules(lora: Lora) -> list[str]:
    """The adapted modules as a list; the config may name one by itself."""
    if not lora.target_modules:
        return []
    if isinstance(lora.target_modules, str):
        return [lora.target_modules]
    return list(lora.target_modules)


def named_parameters(lora: Lora) -> set[str]:
    """Last part of each name in target_parameters."""
    if not lora.target_parameters:
        return set()
    return {name.split(".")[-1] for name in lora.target_parameters}


# ---- sizes that both backends share


def largest(choices: Sequence[Parts]) -> Parts:
    """The choice that needs the most in total."""
    return max(choices, key=lambda parts: sum(parts.values()))


def stacked_experts(work: Workload) -> int:
    """A layer's experts, which loading stacks where they are stored one by one."""
    if work.storage.experts_as == "16bit":
        return work.storage.item * work.shape.gate_up
    return 0


def windowed_tokens(shape: Shape, tokens: int) -> int:
    """Tokens that all layers together keep of a sequence of `tokens`."""
    held = 0
    for window in shape.windows:
        if window is None:
            held += tokens
        else:
            held += min(tokens, window)
    return held


def cache_bytes(work: Workload, held_tokens: int, item: int) -> int:
    """Keys and values of all decoded sequences, when all layers together keep `held_tokens`."""
    return 2 * work.sequences * held_tokens * work.shape.key * item


def graph_buffers(work: Workload) -> Parts:
    """What a graph rollout holds from its first step to the end of the run."""
    rows = min(work.sequences, MOST_ROWS)
    held = windowed_tokens(work.shape, work.tokens)
    return {
        "kv_cache": 2 * rows * held * work.shape.key * work.storage.item,
        # In the graphs' own pool: logits, their float32 copy, the noise, and their sum
        "graphs": rows * work.shape.vocab * (work.storage.item + 3 * 4),
        # The stream of the first steps and that of the capture have workspaces of their own.
        "overhead": WORKSPACES,
    }


def graph_prefill(work: Workload) -> int:
    """What a layer of a graph rollout needs while prompts are read, each different one once."""
    shape, item = work.shape, work.storage.item
    tokens = min(work.prompts * work.prompt, max(PROMPT_TOKENS, work.prompt))
    wide = 2 * shape.top_k * shape.intermediate if shape.experts else 3 * shape.dense_intermediate
    a_token = wide + 3 * (shape.query + 2 * shape.key) + (4 + shape.top_k) * shape.hidden
    scores = attention_matrices(work, SCORE_COPIES, 1, work.prompt, work.prompt)
    return tokens * a_token * item + min(scores, SCORE_BYTES)


def last_logits(work: Workload) -> int:
    """Logits of one token of each sequence: as computed, in float32, and their softmax."""
    return work.sequences * work.shape.vocab * (work.storage.item + 4 + 4)


def attention_matrices(
    work: Workload, per_score: int, sequences: int, queries: int, keys: int
) -> int:
    """Attention matrices of one layer.

    Only gpt-oss has them: its attention sinks leave it without fused attention in transformers.
    """
    if work.shape.model_type != "gpt_oss":
        return 0
    return per_score * sequences * work.shape.heads * queries * keys


def dense_layer(work: Workload, tokens: int, rows: int) -> int:
    """What a dense layer needs beside its input and the weights, without gradients.

    Args:
        rows: vectors of the MLP's width for each token.
    """
    shape, item = work.shape, work.storage.item
    wide = max(shape.dense_intermediate, 1)
    needed = tokens * (rows * wide + 5 * shape.hidden) * item
    if work.storage.nf4:
        needed += 2 * shape.hidden * wide  # one weight, unpacked for the matrix product
    return needed


def layer_inputs(work: Workload, tokens: int) -> int:
    """Inputs of all layers, which checkpointing keeps."""
    return work.shape.layers * tokens * work.shape.hidden * work.storage.stream
