"""What Unsloth needs on one GPU, beside weights, adapter and optimizer.

The sizes were read off allocation traces; memory.py says of which versions. Each formula says which
tensors it counts. All sizes are bytes. The class has the same methods as Transformers.
"""

import math

from job.config import Lora
from job.workload import (
    WORKSPACES,
    Checkpoint,
    Parts,
    Storage,
    Workload,
    attention_matrices,
    cache_bytes,
    dense_layer,
    graph_prefill,
    largest,
    last_logits,
    layer_inputs,
    named_modules,
    named_parameters,
    stacked_experts,
    windowed_tokens,
)

# Inductor times kernels with a buffer as large as the L2 cache. Unsloth compiles, so it has this
# buffer. Measured on an H200.
AUTOTUNE_BUFFER = 60 * 2**20
KV_STEP = 512  # tokens by which the KV cache of dense models grows
PAD = 128  # prompts and completions of gpt-oss are padded to a multiple, for flex attention
FUSED_ROWS = 192  # rows an expert from which MXFP4 is unpacked to be multiplied
LOGIT_CHUNKS = 4  # pieces into which the logits of one sequence are cut


class Unsloth:
    """Unsloth, which replaces parts of transformers and TRL."""

    MEASURED_EXPERTS = ("mxfp4", "nf4")

    def __init__(self, work: Workload):
        self.work = work
        self.shape = work.shape
        self.item = work.storage.item

    @staticmethod
    def storage(checkpoint: Checkpoint, item: int) -> Storage:
        """How the weights are held; `item` is the size of an element in the compute dtype."""
        form, stream = checkpoint.form, item
        if form == "nf4" and checkpoint.shape.model_type == "gpt_oss":
            stream = 4  # the residual stream alone is raised to float32
        return Storage(checkpoint, form, item, unquantised=item, stream=stream)

    @staticmethod
    def expert_targets(lora: Lora) -> set[str]:
        """Matrices of fused experts that get an adapter: also those that modules would name."""
        targets = named_parameters(lora)
        for name in named_modules(lora):
            targets.add("gate_up_proj" if name in ("gate_proj", "up_proj") else name)
        return targets

    def loading(self) -> Parts:
        return {"activations": stacked_experts(self.work), "overhead": WORKSPACES // 2}

    def rollout(self) -> Parts:
        work, shape = self.work, self.shape
        if work.graphs:
            return {"activations": graph_prefill(work)}
        logits = last_logits(work)
        cache_at_the_end = self._cache()
        prefill_cache = self._cache_of(len(shape.windows) * work.prompt)
        keys = work.prompt
        if shape.experts:
            # The cache of gpt-oss is made in its full length at once, layer by layer.
            prefill_cache = cache_at_the_end
            keys = work.tokens
        scores = self._attention_scores(work.sequences, work.prompt, keys)
        layer = self._prefill_layer(work.sequences * work.prompt)
        return largest(
            [
                {
                    "kv_cache": prefill_cache,
                    "activations": max(layer, scores),
                    "logits": logits,
                },
                {"kv_cache": cache_at_the_end, "activations": 0, "logits": logits},
            ]
        )

    def scoring(self) -> Parts:
        """As many sequences at once as are trained on at once; trainer.py sees to it.

        The layers' inputs are kept although nothing is trained here. The logits come later, piece
        by piece. Dense models may share the prompt of a group, which needs less than this.
        """
        rows = min(self.work.batch, self.work.sequences)
        tokens = rows * sum(self._padded())
        kept = layer_inputs(self.work, tokens)
        layer = self._layer_forward(tokens)
        piece = math.ceil(self._scored_positions() / LOGIT_CHUNKS)
        first = {"kv_cache": 0, "activations": layer // 2}
        if not (self.shape.experts or self.work.graphs):
            first["kv_cache"] = self._cache()
        return largest(
            [
                first,
                {"activations": kept + layer},
                {"activations": kept, "logits": piece * self.shape.vocab * (self.item + 8)},
            ]
        )

    def backward(self) -> Parts:
        work, shape = self.work, self.shape
        tokens = work.batch * sum(self._padded())
        positions = self._scored_positions()
        # 16-bit logits of every piece, and one piece in float32
        logits = work.batch * positions * shape.vocab * self.item
        logits += math.ceil(positions / LOGIT_CHUNKS) * shape.vocab * 4
        kept = layer_inputs(work, tokens)
        if shape.experts and work.storage.nf4:
            # The layers' inputs are freed layer by layer. By the time the unpacked matrices and all
            # gradients are there, they are gone.
            kept = 0
        return largest(
            [
                {"activations": kept, "logits": logits},
                {"activations": kept + self._layer_backward(tokens)},
            ]
        )

    def autotuning(self, parts: Parts) -> int:
        """Bytes by which the buffer of Inductor's timing goes beyond the `parts` of a moment.

        Kernels are timed in the course of a moment, so the buffer shows only where little else is.
        """
        working = parts.get("activations", 0) + parts.get("logits", 0)
        return max(0, AUTOTUNE_BUFFER - working)

    def _cache_of(self, held_tokens: int) -> int:
        return cache_bytes(self.work, held_tokens, self.item)

    def _cache(self) -> int:
        """Keys and values when the completions are at their longest."""
        work, shape = self.work, self.shape
        if shape.experts:
            return self._cache_of(windowed_tokens(shape, work.tokens))
        # The keys of the prompt stay beside the buffer that decoding fills. It grows in steps.
        steps = math.ceil(max(work.completion, 1) / KV_STEP)
        return self._cache_of(shape.layers * (2 * work.prompt + 1 + KV_STEP * steps))

    def _attention_scores(self, sequences: int, queries: int, keys: int) -> int:
        # 16-bit scores, and a float32 copy and softmax of them
        return attention_matrices(self.work, 2 + 4 + 4, sequences, queries, keys)

    def _padded(self) -> tuple[int, int]:
        """(prompt, completion) tokens as they are trained on."""
        prompt, completion = self.work.prompt, self.work.completion
        if self.shape.model_type == "gpt_oss":
            prompt = math.ceil(prompt / PAD) * PAD
            completion = math.ceil(completion / PAD) * PAD
        return prompt, completion

    def _scored_positions(self) -> int:
        """Positions of a sequence whose logits are computed.

        Prompts are aligned left, so their padding counts too.
        """
        prompt, completion = self._padded()
        return completion + prompt - self.work.prompt + 1

    def _unpacked(self, tokens: int) -> int:
        """The first expert matrix in bfloat16, where it is stored packed.

        MXFP4 is multiplied as it is while an expert has few rows (unsloth_zoo.moe_utils).
        """
        experts_as = self.work.storage.experts_as
        is_fused = experts_as == "mxfp4" and (
            tokens * self.shape.top_k < FUSED_ROWS * self.shape.experts
        )
        if experts_as == "16bit" or is_fused:
            return 0
        return 2 * self.shape.gate_up

    def _layer_forward(self, tokens: int) -> int:
        """What one layer needs beside its input and the weights, without gradients."""
        shape = self.shape
        if not shape.experts:
            return dense_layer(self.work, tokens, rows=3)  # gate, up and their product
        rows, wide, hidden = tokens * shape.top_k, shape.intermediate, shape.hidden
        unpacked = self._unpacked(tokens)
        first = unpacked + rows * (4 * wide + 2 * hidden)
        if self.work.storage.nf4:
            # gate and up in float32: before the bias, with it, and the activation's copy
            return max(first, rows * (24 * wide + 2 * hidden)) + 16 * tokens * hidden
        second = unpacked // 2 + rows * (20 * wide + 4 * hidden)
        return max(first, second) + 5 * tokens * hidden * self.item

    def _prefill_layer(self, tokens: int) -> int:
        """The same while prompts are read."""
        shape = self.shape
        if not shape.experts:
            return self._layer_forward(tokens)
        # In evaluation mode the rows after the first matrix are never the peak.
        rows = shape.top_k * (4 * shape.intermediate + 2 * shape.hidden)
        return self._unpacked(tokens) + tokens * (rows + 8 * shape.hidden)

    def _layer_backward(self, tokens: int) -> int:
        """What one layer needs beside its input while it is trained."""
        shape, storage = self.shape, self.work.storage
        rows, wide, hidden = tokens * shape.top_k, shape.intermediate, shape.hidden
        if shape.experts and storage.experts_as == "mxfp4":
            # The native kernel multiplies packed weights when it trains. Rows of the results come
            # on top.
            return rows * (24 * wide + 6 * hidden) + 5 * tokens * hidden * self.item
        if shape.experts and storage.nf4:
            both_unpacked = 3 * shape.gate_up
            return both_unpacked + rows * (24 * wide + 4 * hidden) + 16 * tokens * hidden
        return self._layer_forward(tokens)
