"""What transformers, TRL and PEFT need on one GPU, beside weights, adapter and optimizer.

The sizes were read off allocation traces; memory.py says of which versions. Each formula says which
tensors it counts. All sizes are bytes.
"""

from job.config import Lora
from job.workload import (
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
    named_parameters,
    stacked_experts,
    windowed_tokens,
)


class Transformers:
    """Plain transformers, with TRL and PEFT."""

    MEASURED_EXPERTS = ("16bit",)  # ways to hold experts that were compared with a real run

    def __init__(self, work: Workload):
        self.work = work
        self.shape = work.shape
        self.item = work.storage.item
        # PEFT adds the weights of adapted experts to their LoRA product whenever they are used.
        per_expert = sum(inputs * outputs for inputs, outputs in work.adapted_experts.values())
        self.merged = self.shape.experts * per_expert  # weights of one layer

    @staticmethod
    def storage(checkpoint: Checkpoint, item: int) -> Storage:
        """How the weights are held; `item` is the size of an element in the compute dtype."""
        experts_as = checkpoint.form
        if experts_as == "mxfp4":
            experts_as = "16bit"  # MXFP4 is unpacked
        unquantised = item
        if experts_as == "nf4" and not checkpoint.quantised:
            # prepare_model_for_kbit_training raises what is left in 16 bit to float32.
            unquantised = 4
        return Storage(checkpoint, experts_as, item, unquantised, stream=unquantised)

    @staticmethod
    def expert_targets(lora: Lora) -> set[str]:
        """Matrices of fused experts that get an adapter. PEFT finds no Linear layers in them."""
        return named_parameters(lora)

    def loading(self) -> Parts:
        if self.work.storage.checkpoint.form == "mxfp4":
            # transformers.integrations.mxfp4 looks 4-bit codes up in a table, one matrix at a time.
            # Bytes a weight: the index as int32 (2, it serves two weights in turn), its int64 copy
            # (4), the values found (1), codes, scales.
            unpacking = int(self.shape.gate_up * (2 + 4 + 1 + 0.5 + 4 / 32))
            return {"activations": unpacking, "overhead": 0}
        beside = stacked_experts(self.work)
        if self.work.storage.nf4:
            # The embedding is held twice while it is cast.
            beside = max(beside, self.item * self.shape.embedding)
        return {"activations": beside, "overhead": 0}

    def rollout(self) -> Parts:
        work, shape = self.work, self.shape
        if work.graphs:
            return {"activations": graph_prefill(work)}
        logits = last_logits(work)
        prefill = {
            "kv_cache": self._cache(len(shape.windows) * work.prompt),
            "activations": max(
                self._layer_forward(work.sequences * work.prompt),
                self._attention_scores(work.sequences, work.prompt),
            ),
            "logits": logits,
        }
        decode = {
            "kv_cache": self._cache(windowed_tokens(shape, work.tokens)),
            "activations": 0,
            "logits": logits,
        }
        if shape.experts:
            # generate() switches to batched_mm, which copies the matrices of every chosen expert
            # for every sequence.
            copies = work.sequences * shape.top_k * 3 * shape.hidden * shape.intermediate
            decode["activations"] = (copies + 2 * self.merged) * self.item
        return largest([prefill, decode])

    def scoring(self) -> Parts:
        """`per_device_train_batch_size` sequences at a time, whatever is free."""
        work = self.work
        # Accelerate hands the logits on in float32 while the 16-bit ones still exist.
        per_logit = 4
        if self.item < 4:
            per_logit += self.item
        logits = work.batch * self._scored_positions() * self.shape.vocab
        previous = 0
        if work.sequences > work.batch:
            # TRL's loop still holds the logits of the last batch.
            previous = 4 * logits
        layer = self._layer_forward(work.batch * work.tokens)
        layer += self._attention_scores(work.batch, work.tokens)
        return largest(
            [
                {"logits": logits * per_logit + previous},
                {"logits": previous, "activations": layer},
            ]
        )

    def backward(self) -> Parts:
        work, shape = self.work, self.shape
        tokens = work.batch * work.tokens
        # Autograd keeps float32 logits, and their gradient is as large. The 16-bit logits with
        # their float32 copy are less.
        logits = work.batch * self._scored_positions() * shape.vocab * 8
        head = 0
        if work.storage.stream > self.item:
            # Autocast makes a 16-bit copy of a head that k-bit training holds in float32.
            head = shape.vocab * shape.hidden * 2

        # The logits are gone before the last layer goes back. With checkpointing they are gone
        # before that layer is computed again.
        one_layer = self._layer_saved(tokens)
        if work.checkpointing:
            with_logits = head + layer_inputs(work, tokens)
            kept = with_logits + one_layer
        else:
            with_logits = head + shape.layers * one_layer
            kept = with_logits
        return largest(
            [
                {"activations": with_logits, "logits": logits},
                {"activations": kept + self._layer_gradients(tokens)},
            ]
        )

    def autotuning(self, parts: Parts) -> int:
        """Nothing is compiled."""
        return 0

    def _cache(self, held_tokens: int) -> int:
        # While decoding, k-bit models run in float32 outside of autocast.
        return cache_bytes(self.work, held_tokens, self.work.storage.stream)

    def _attention_scores(self, sequences: int, tokens: int) -> int:
        # scores, scores with the sink, and the softmax
        return attention_matrices(self.work, 3 * self.item, sequences, tokens, tokens)

    def _scored_positions(self) -> int:
        """Positions of a sequence whose logits are computed."""
        return self.work.completion + 1

    def _layer_forward(self, tokens: int) -> int:
        """What one layer needs beside its input and the weights, without gradients."""
        shape = self.shape
        if shape.experts:
            rows = tokens * shape.top_k
            experts = rows * (7 * shape.intermediate + 2 * shape.hidden) + 2 * self.merged
            return (experts + 5 * tokens * shape.hidden) * self.item
        # Gate, up and their product. An adapter of gate_proj and up_proj adds its own output, which
        # is float32 outside autocast.
        rows = 6 if "gate_proj" in self.work.adapted else 3
        return dense_layer(self.work, tokens, rows)

    def _layer_saved(self, tokens: int) -> int:
        """What autograd keeps of one layer in mixed precision, its frozen weights aside."""
        shape, item = self.shape, self.item
        saved = shape.family.norms * shape.hidden * 4  # what goes into a norm, in float32
        for name, rank in self.work.adapted.items():
            inputs, _, _ = shape.linears[name]
            saved += item * (inputs + 2 * rank)  # each adapter casts its input for itself
        saved += item * (2 * shape.query + 2 * shape.key)  # query, key, value, attention's result
        if shape.family.qk_norm:
            saved += 4 * (shape.query + shape.key)

        if shape.experts:
            # gpt-oss clamps gate and up and multiplies them out, and autograd keeps each step.
            wide = 7 if shape.model_type == "gpt_oss" else 4
            saved += item * shape.top_k * (wide * shape.intermediate + 2 * shape.hidden)
        else:
            saved += item * 3 * shape.dense_intermediate  # gate, its activation, up

        probabilities = 0
        if shape.model_type == "gpt_oss":
            # softmax, and the keys and values repeated for every query head
            probabilities = item * self.work.batch * shape.heads * self.work.tokens**2
            saved += item * 2 * shape.query
        return tokens * saved + probabilities + item * self.merged

    def _layer_gradients(self, tokens: int) -> int:
        """Gradients at the widest place of a layer.

        That is the attention scores and their softmax, or gate, up and their product.
        """
        shape, work = self.shape, self.work
        scores = 0
        if shape.model_type == "gpt_oss":
            scores = work.batch * shape.heads * work.tokens**2
        wide = shape.dense_intermediate
        if shape.experts:
            wide = shape.top_k * shape.intermediate
        return self.item * (max(2 * scores, 3 * tokens * wide) + self.merged)
