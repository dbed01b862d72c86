"""How much GPU memory a run needs, before anything is loaded: arithmetic on config.json and the settings.

What is counted is PyTorch's peak of allocated bytes on one GPU. The driver shows more: the CUDA context and what the
allocator keeps for reuse; the verdict leaves room for the first, and PyTorch gives the second back before it fails.

Four moments can be the peak, and `estimate` gives all of them:
    load       the checkpoint is unpacked (transformers turns MXFP4 into bfloat16)
    rollout    completions are decoded: KV cache, and for mixtures of experts the weights that decoding copies
    scoring    log-probabilities of the reference model, for beta > 0
    backward   one batch forwards and backwards: checkpointed or kept activations, logits

The sizes below were read off allocation traces (torch.cuda.memory._record_memory_history) of transformers 5.17, TRL
1.14.2 and Unsloth 2026.10.6 on one H200; each formula says which tensors it counts. Other versions may differ.
No torch here: a dry run should not wait for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from job.batches import batch_plan
from job.config import Lora

GIB = 2**30
PARTS = "weights adapter optimizer gradients kv_cache logits activations overhead".split()
# Two cuBLAS workspaces, of the forward thread's and the backward thread's handle: 32 MiB each on Hopper, which is
# PyTorch's default there, 8 MiB elsewhere (documentation of CUBLAS_WORKSPACE_CONFIG). Seen on the H200.
WORKSPACES = 64 * 2**20
# Inductor times kernels with a buffer as large as the L2 cache; Unsloth compiles, so it is there. Measured on an H200.
AUTOTUNE_BUFFER = 60 * 2**20
# What the driver counted on an H200 beyond PyTorch's own reserve, rounded up: CUDA context and kernels.
CONTEXT = GIB
TOLERANCE = 0.15  # the error that tests/test_memory.py allows against measured peaks
# bitsandbytes' NF4 with double quantisation: half a byte, a byte of scale for 64 weights, a float for 256 of those
NF4 = 0.5 + (1 + 4 / 256) / 64
MXFP4 = 0.5 + 1 / 32  # half a byte, and a byte of scale for 32 weights
UNSLOTH_KV_STEP = 512  # tokens that Unsloth's KV cache of dense models grows by
UNSLOTH_PAD = (
    128  # gpt-oss prompts and completions are padded to a multiple of this for flex attention
)
LOGIT_CHUNKS = 4  # pieces into which Unsloth cuts the logits of one sequence

Parts = dict[str, int]


@dataclass(frozen=True)
class Family:
    """What config.json leaves to the code of an architecture; defaults are those of transformers 5.17."""

    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    tied: bool = False  # the output head is the input embedding
    norms: int = 2  # vectors of hidden_size in a layer
    qk_norm: bool = False
    qkv_bias: bool | None = (
        None  # None: attention_bias of config.json, which then holds for o_proj as well
    )
    window_every: int = 0  # of so many layers all but the last have a sliding window; 1: all have


FAMILIES = {
    "llama": Family(),
    "mistral": Family(qkv_bias=False, window_every=1),
    "mixtral": Family(qkv_bias=False, window_every=1),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_dim=128, qk_norm=True),
    "qwen3_moe": Family(qk_norm=True),
    "gemma": Family(head_dim=256, tied=True),
    "gemma2": Family(head_dim=256, tied=True, norms=4, window_every=2),
    "gemma3_text": Family(head_dim=256, tied=True, norms=4, qk_norm=True, window_every=6),
    "gpt_oss": Family(head_dim=64, window_every=2),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. Parameters are counted in groups because each group is stored in its own way."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of one expert, where there are experts
    experts: int  # 0: dense
    top_k: int
    vocab: int
    windows: tuple[int | None, ...]  # tokens that a layer attends to; None: all
    linears: Mapping[str, tuple[int, int, int]]  # name -> (in, out, how many in the whole model)
    embedding: int
    head: int  # 0 if tied
    expert_weights: int  # parameters of the fused expert matrices, without their biases
    other: int  # norms, biases, routers, sinks
    known: bool

    @property
    def linear_weights(self) -> int:
        return sum(inputs * outputs * count for inputs, outputs, count in self.linears.values())

    @property
    def parameters(self) -> int:
        return self.embedding + self.head + self.linear_weights + self.expert_weights + self.other

    @property
    def gate_up(self) -> int:
        """Weights of the first expert matrix of one layer; the second is half of it."""
        return self.experts * self.hidden * 2 * self.intermediate


def read(config: Mapping[str, Any]) -> Shape:
    """The shape in a parsed config.json; exact for FAMILIES, else what a Llama of these numbers would be.

    Raises:
        ValueError: if a number that no decoder can do without is missing.
    """
    config = {**config, **config.get("text_config", {})}
    get = config.get
    model_type = get("model_type", "")
    family = FAMILIES.get(model_type, Family(tied=bool(get("tie_word_embeddings", False))))
    missing = [
        k
        for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        if not get(k)
    ]
    if missing:
        raise ValueError(f"config.json has no {', '.join(missing)}")
    hidden, layers, heads, vocab = (
        config[key]
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    )
    kv_heads = get("num_key_value_heads") or heads
    head_dim = get("head_dim") or family.head_dim or hidden // heads
    experts = get("num_local_experts") or get("num_experts") or 0
    dense_intermediate = get("intermediate_size") or 4 * hidden
    intermediate = (experts and get("moe_intermediate_size")) or dense_intermediate
    step, dense_layers = get("decoder_sparse_step") or 1, get("mlp_only_layers") or []
    sparse = sum(
        experts > 0 and i not in dense_layers and (i + 1) % step == 0 for i in range(layers)
    )

    o_bias = bool(get("attention_bias", model_type == "gpt_oss")) and family.qkv_bias is None
    qkv_bias = o_bias if family.qkv_bias is None else family.qkv_bias
    query, key = heads * head_dim, kv_heads * head_dim
    linears = {
        "q_proj": (hidden, query, layers),
        "k_proj": (hidden, key, layers),
        "v_proj": (hidden, key, layers),
        "o_proj": (query, hidden, layers),
    }
    dense = layers - sparse
    if dense:
        linears["gate_proj"] = linears["up_proj"] = (hidden, dense_intermediate, dense)
        linears["down_proj"] = (dense_intermediate, hidden, dense)
    layer_other = (
        family.norms * hidden
        + family.qk_norm * 2 * head_dim
        + qkv_bias * (query + 2 * key)
        + o_bias * hidden
    )
    other = layers * layer_other + hidden
    other += bool(get("mlp_bias")) * dense * (2 * dense_intermediate + hidden)
    other += sparse * experts * hidden  # routers
    if model_type == "gpt_oss":  # attention sinks, biases of the router and of the experts
        other += layers * (heads + experts + experts * (2 * intermediate + hidden))
    tied = get("tie_word_embeddings", family.tied)
    return Shape(
        model_type=model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        experts=experts,
        top_k=get("num_experts_per_tok") or (2 if experts else 0),
        vocab=vocab,
        windows=layer_windows(config, family, layers),
        linears=linears,
        embedding=vocab * hidden,
        head=0 if tied else vocab * hidden,
        expert_weights=sparse * experts * 3 * hidden * intermediate,
        other=other,
        known=model_type in FAMILIES,
    )


def layer_windows(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return (None,) * layers
    if config.get("layer_types"):
        return tuple(
            window if kind == "sliding_attention" else None for kind in config["layer_types"]
        )
    every = family.window_every
    return tuple(
        window if every == 1 or (every and (i + 1) % every) else None for i in range(layers)
    )


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at each moment; see the module's docstring for the moments."""

    phases: Mapping[str, Parts]
    notes: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)  # moment -> what to change in the config

    def total(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        return self.total(self.peak_phase)

    @property
    def parts(self) -> Parts:
        """The parts of the peak; they add up to it."""
        return self.phases[self.peak_phase]

    def verdict(self, card_bytes: int) -> str:
        """`fits`: with the tolerance and the CUDA context; `tight`: with the context alone; else `does not fit`."""
        if self.peak * (1 + TOLERANCE) + CONTEXT <= card_bytes:
            return "fits"
        return "tight" if self.peak + CONTEXT <= card_bytes else "does not fit"

    def table(self, card_bytes: int | None = None, card_name: str = "GPU") -> str:
        """Parts by moment in GiB, and, if the card is known, whether that fits and which key to change if not."""
        names = list(self.phases)
        lines = [f"{'GPU memory, GiB':16}" + "".join(f"{name:>10}" for name in names)]
        rows = {part: [self.phases[name].get(part, 0) for name in names] for part in PARTS}
        rows["total"] = [self.total(name) for name in names]
        for part, row in rows.items():
            if any(row):
                lines.append(f"{part:16}" + "".join(f"{value / GIB:>10.2f}" for value in row))
        if card_bytes:
            verdict = self.verdict(card_bytes)
            room = f"{card_name} has {card_bytes / GIB:.1f} GiB, {CONTEXT / GIB:.0f} of them for the CUDA context"
            lines.append(
                f"{verdict}: peak {self.peak / GIB:.1f} GiB in {self.peak_phase} (± {TOLERANCE:.0%}); {room}"
            )
            if verdict != "fits":
                lines.append(f"to need less: {self.keys.get(self.peak_phase, 'a smaller model')}")
        else:
            enough = (self.peak * (1 + TOLERANCE) + CONTEXT) / GIB
            lines.append(
                f"no GPU here: peak {self.peak / GIB:.1f} GiB in {self.peak_phase}; {enough:.0f} GiB are enough"
            )
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


@dataclass(frozen=True)
class Run:
    """The settings that sizes depend on; all counts are for one GPU."""

    shape: Shape
    unsloth: bool
    experts_as: str  # how expert weights are stored: 16bit, mxfp4, nf4
    nf4: bool  # the linear layers are stored in NF4
    item: int  # bytes of the compute dtype
    stream: int  # bytes of an element of the residual stream while training
    checkpointing: bool
    adapted: Mapping[str, int]  # LoRA-adapted linear -> rank
    merged: int  # weights of a layer's adapted experts, which PEFT adds to their LoRA product whenever they are used
    sequences: int  # decoded at once
    batch: int  # sequences in one backward pass
    prompt: int  # tokens
    completion: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


def estimate(
    model_config: Mapping[str, Any],
    *,
    backend: str,
    load_in_4bit: bool,
    lora: Lora,
    grpo: Mapping[str, Any],
    prompt_tokens: int,
    completion_tokens: int,
    dtype: str = "bfloat16",
    offload_embedding: bool = False,
    stored_bytes: int | None = None,
    processes: int = 1,
    card_bytes: int | None = None,
) -> Estimate:
    """Peak GPU memory of a run on one of `processes` GPUs.

    Args:
        model_config: config.json of the checkpoint that is loaded; for a Hub name of Unsloth's with load_in_4bit that
            is the one of its -unsloth-bnb-4bit copy, or `quantization_config` is missing here.
        backend: "unsloth" or "transformers".
        grpo: keys of GRPOConfig; missing ones take TRL's defaults.
        prompt_tokens, completion_tokens: the longest ones.
        dtype: "bfloat16", "float16" or "float32"; "auto" is taken for 16 bit.
        stored_bytes: size of the safetensors; used for the weights of a checkpoint that is quantised on the disk and
            loaded as it is, and of an architecture that is not in FAMILIES.
        processes: GPUs of a data-parallel run.
        card_bytes: memory of the GPU; Unsloth scores fewer sequences at once on a small one.

    Raises:
        ValueError: if config.json lacks a number that is needed.
    """
    shape, notes = read(model_config), []
    unsloth = backend == "unsloth"
    item = 4 if dtype == "float32" else 2
    quantised = (model_config.get("quantization_config") or {}).get("quant_method")
    experts_as, nf4 = "16bit", False
    if quantised == "mxfp4":
        experts_as = "mxfp4" if unsloth else "16bit"
        if not unsloth:
            notes.append(
                "transformers unpacks MXFP4 to 16 bit here; model.backend=unsloth keeps it packed"
            )
    elif quantised == "bitsandbytes" or (load_in_4bit and shape.model_type != "gpt_oss"):
        nf4, experts_as = True, "nf4"
    elif quantised:
        notes.append(f"quantisation {quantised} is not known here; counted as 16 bit")

    # prepare_model_for_kbit_training raises what is left in 16 bit to float32, Unsloth only gpt-oss's residual stream
    kbit_float32 = nf4 and not unsloth and not quantised
    unquantised = 4 if kbit_float32 else item
    embedding = 0 if unsloth and offload_embedding and shape.head else shape.embedding
    per_weight = {"16bit": item, "mxfp4": MXFP4, "nf4": NF4}
    weights = unquantised * (embedding + shape.head + shape.other)
    weights += int(per_weight["nf4" if nf4 else "16bit"] * shape.linear_weights)
    weights += int(per_weight[experts_as] * shape.expert_weights)
    if grpo.get("use_vllm"):
        notes.append("vLLM's share of the GPU (grpo.vllm_gpu_memory_utilization) is not counted")
    if not shape.known:
        notes.append(f"architecture {shape.model_type or '?'} is not known here: a rough estimate")
    # A checkpoint quantised on the disk is the better number: some leave single layers in 16 bit.
    as_stored = quantised in ("mxfp4", "bitsandbytes") and experts_as in ("mxfp4", "nf4")
    if stored_bytes and (as_stored or (not shape.known and not nf4)):
        weights = stored_bytes - item * (shape.embedding - embedding)
    if shape.experts and experts_as not in (("mxfp4", "nf4") if unsloth else ("16bit",)):
        notes.append("experts stored like this were not measured on this backend: a rough estimate")
    if "vision_config" in model_config:
        notes.append("only the text model is counted")

    trainable = trainable_parameters(shape, lora, unsloth)
    beta = grpo.get("beta", 0.0) or 0.0
    plan = batch_plan(grpo, processes)
    run = Run(
        shape=shape,
        unsloth=unsloth,
        experts_as=experts_as,
        nf4=nf4,
        item=item,
        stream=4 if kbit_float32 or (unsloth and nf4 and shape.model_type == "gpt_oss") else item,
        checkpointing=bool(lora.use_gradient_checkpointing),
        adapted=adapted_linears(shape, lora),
        merged=0
        if unsloth
        else shape.experts
        * sum(inputs * outputs for inputs, outputs in adapted_experts(shape, lora, False).values()),
        sequences=plan.generate_call,
        batch=plan.per_device_batch,
        prompt=prompt_tokens,
        completion=completion_tokens,
    )
    fixed = {
        "weights": weights,
        # float32 masters; TRL keeps a copy as the reference of the KL penalty, Unsloth makes one while it scores
        "adapter": 4 * trainable * (2 if beta else 1),
        "optimizer": int(optimizer_bytes(grpo.get("optim") or "adamw_torch_fused") * trainable),
        "overhead": WORKSPACES,
    }
    phases = {
        "load": {
            "weights": weights,
            "adapter": 4 * trainable,
            "activations": loading(run, quantised == "mxfp4"),
            "overhead": WORKSPACES // 2 if unsloth else 0,
        },
        "rollout": fixed | rollout(run),
    }
    # TRL needs the log-probabilities of the sampling policy only where an update comes between sampling and training
    if beta or plan.accumulation % (plan.steps_per_generation * plan.num_iterations):
        rest = (
            math.inf
            if card_bytes is None
            else card_bytes - CONTEXT - sum(phases["rollout"].values())
        )
        phases["scoring"] = fixed | scoring(run, rest)
    phases["backward"] = fixed | {"gradients": 4 * trainable} | backward(run)
    if unsloth:  # what is compiled is timed in the course of a phase, so the buffer shows only where little else is
        for name in phases.keys() - {"load"}:
            working = phases[name].get("activations", 0) + phases[name].get("logits", 0)
            phases[name]["overhead"] += max(0, AUTOTUNE_BUFFER - working)
    can_offload = unsloth and not offload_embedding and shape.head > 0
    return Estimate(phases, tuple(notes), remedies(run, load_in_4bit, can_offload, phases))


def adapted_linears(shape: Shape, lora: Lora) -> dict[str, int]:
    targets = names_of(lora)
    return {name: lora.r for name in shape.linears if name in targets or targets == ["all-linear"]}


def adapted_experts(shape: Shape, lora: Lora, unsloth: bool) -> dict[str, tuple[int, int]]:
    """Adapted matrix of each expert -> (in, out)."""
    if not shape.experts:
        return {}
    matrices = {
        "gate_up_proj": (shape.hidden, 2 * shape.intermediate),
        "down_proj": (shape.intermediate, shape.hidden),
    }
    wanted = {parameter.split(".")[-1] for parameter in lora.target_parameters or []}
    if unsloth:  # PEFT alone finds no Linear layers in fused experts
        wanted |= {
            "gate_up_proj" if name in ("gate_proj", "up_proj") else name for name in names_of(lora)
        }
    return {name: sizes for name, sizes in matrices.items() if name in wanted}


def names_of(lora: Lora) -> list[str]:
    return (
        [lora.target_modules]
        if isinstance(lora.target_modules, str)
        else list(lora.target_modules or [])
    )


def trainable_parameters(shape: Shape, lora: Lora, unsloth: bool) -> int:
    """Parameters of the adapter: r (in + out) for each adapted matrix (LoRA, https://arxiv.org/abs/2106.09685)."""
    total = sum(
        sum(shape.linears[name][:2]) * shape.linears[name][2]
        for name in adapted_linears(shape, lora)
    )
    matrices = adapted_experts(shape, lora, unsloth).values()
    if matrices:  # of every expert in every sparse layer
        experts = shape.expert_weights // (3 * shape.hidden * shape.intermediate)
        total += experts * sum(inputs + outputs for inputs, outputs in matrices)
    return lora.r * total


def optimizer_bytes(optim: str) -> float:
    """Bytes of optimizer state for a trainable parameter; paged states are counted as if they stayed on the GPU."""
    states = 0 if optim.startswith(("sgd", "adafactor")) else 1 if "lion" in optim else 2
    return states * (1 if "8bit" in optim else 4)


def loading(run: Run, from_mxfp4: bool) -> int:
    """Bytes beside the weights at the worst moment of loading."""
    if from_mxfp4 and not run.unsloth:
        # transformers.integrations.mxfp4 looks 4-bit codes up in a table, one matrix at a time. Bytes a weight: the
        # index as int32 (2: it serves two weights in turn), its int64 copy (4), the values found (1), codes, scales.
        return int(run.shape.gate_up * (2 + 4 + 1 + 0.5 + 4 / 32))
    # Experts that are stored one by one are stacked a layer at a time; an embedding is held twice while it is cast.
    cast = run.item * run.shape.embedding if run.nf4 and not run.unsloth else 0
    return max(run.item * run.shape.gate_up if run.experts_as == "16bit" else 0, cast)


def kv_cache(run: Run, tokens: int, prefill: bool = False) -> int:
    """Bytes of keys and values of all decoded sequences at `tokens` tokens each."""
    shape = run.shape
    # While decoding, transformers' k-bit models run in float32 outside of autocast.
    item = run.stream if not run.unsloth else run.item
    held = 0
    for window in shape.windows:
        held += tokens if window is None or prefill else min(tokens, window)
    if run.unsloth and not shape.experts and not prefill:
        # the keys of the prompt stay beside the buffer that decoding fills, which grows in steps
        grown = tokens - run.prompt
        held = shape.layers * (
            2 * run.prompt + 1 + UNSLOTH_KV_STEP * math.ceil(max(grown, 1) / UNSLOTH_KV_STEP)
        )
    return 2 * run.sequences * held * shape.kv_heads * shape.head_dim * item


def attention_scores(run: Run, sequences: int, queries: int, keys: int) -> int:
    """Bytes of attention matrices in one layer: gpt-oss has no fused attention in transformers, for its sinks."""
    if run.shape.model_type != "gpt_oss":
        return 0
    # scores, scores with the sink, and the softmax; Unsloth: 16-bit scores, and a float32 copy and softmax of them
    per_score = 10 if run.unsloth else 3 * run.item
    return per_score * sequences * run.shape.heads * queries * keys


def layer_forward(run: Run, tokens: int) -> int:
    """Bytes that one layer needs beside its input and the weights, without gradients, for `tokens` tokens."""
    shape = run.shape
    if shape.experts:
        rows, wide, hidden = tokens * shape.top_k, shape.intermediate, shape.hidden
        stream = 5 * tokens * hidden * run.item
        if not run.unsloth:
            return (rows * (7 * wide + 2 * hidden) + 2 * run.merged) * run.item + stream
        unpacked = (
            2 * shape.gate_up if run.experts_as != "16bit" else 0
        )  # in bfloat16; the second matrix: half
        first = unpacked + rows * (4 * wide + 2 * hidden)
        if (
            run.experts_as == "nf4"
        ):  # gate and up in float32: before the bias, with it, and the activation's copy
            return max(first, rows * (24 * wide + 2 * hidden)) + 16 * tokens * hidden
        return max(first, unpacked // 2 + rows * (20 * wide + 4 * hidden)) + stream
    wide = max(shape.linears["gate_proj"][1], 1)
    # gate, up and their product; an adapter of gate_proj and up_proj adds its own output, in float32 outside autocast
    mlp = 3 * wide + (3 * wide if "gate_proj" in run.adapted and not run.unsloth else 0)
    one_weight = 2 * shape.hidden * wide if run.nf4 else 0  # unpacked for the matrix product
    return tokens * (mlp + 5 * shape.hidden) * run.item + one_weight


def rollout(run: Run) -> Parts:
    shape, prompts = run.shape, run.sequences * run.prompt
    static = run.unsloth and shape.experts
    last_logits = (
        run.sequences * shape.vocab * (run.item + 4 + 4)
    )  # of one token: as computed, float32, softmax
    prefill = {
        # Unsloth's cache of gpt-oss is made in its full length at once, layer by layer
        "kv_cache": kv_cache(run, run.tokens)
        if static
        else kv_cache(run, run.prompt, prefill=True),
        "activations": max(
            prefill_layer(run, prompts),
            attention_scores(run, run.sequences, run.prompt, run.tokens if static else run.prompt),
        ),
        "logits": last_logits,
    }
    decode = {"kv_cache": kv_cache(run, run.tokens), "activations": 0, "logits": last_logits}
    if shape.experts and not run.unsloth:
        # generate() switches to batched_mm, which copies the matrices of every chosen expert for every sequence
        copies = run.sequences * shape.top_k * 3 * shape.hidden * shape.intermediate
        decode["activations"] = (copies + 2 * run.merged) * run.item
    return max(prefill, decode, key=lambda parts: sum(parts.values()))


def prefill_layer(run: Run, tokens: int) -> int:
    shape = run.shape
    if (
        run.unsloth and shape.experts
    ):  # in evaluation mode the rows after the first matrix are never the peak
        unpacked = 2 * shape.gate_up if run.experts_as != "16bit" else 0
        return unpacked + tokens * (
            shape.top_k * (4 * shape.intermediate + 2 * shape.hidden) + 8 * shape.hidden
        )
    return layer_forward(run, tokens)


def padded(run: Run) -> tuple[int, int]:
    """(prompt, completion) tokens as they are trained on."""
    if run.unsloth and run.shape.model_type == "gpt_oss":
        return tuple(math.ceil(n / UNSLOTH_PAD) * UNSLOTH_PAD for n in (run.prompt, run.completion))
    return run.prompt, run.completion


def scored_positions(run: Run) -> int:
    """Positions of a sequence whose logits are computed; Unsloth aligns prompts left, so their padding counts too."""
    prompt, completion = padded(run)
    return completion + prompt - run.prompt + 1


def checkpoints(run: Run, sequences: int) -> int:
    """Bytes of the layers' inputs, which checkpointing keeps."""
    return run.shape.layers * sequences * sum(padded(run)) * run.shape.hidden * run.stream


def scored_at_once(run: Run, free_bytes: float) -> int:
    """Sequences that Unsloth scores together; its rule (unsloth_zoo.rl_replacements.autotune_batch_and_chunks) allows
    16 bytes for each hidden value and each logit of one piece, in 80 % of what is free."""
    tokens = sum(padded(run))
    pieces = max(LOGIT_CHUNKS, tokens // 4096)
    for rows in range(run.sequences, 0, -1):
        logits = rows / run.sequences * run.shape.vocab / pieces
        if 16 * rows * tokens * (run.shape.hidden + logits) <= 0.8 * free_bytes:
            break
    else:
        rows = min(4, run.sequences)
    return math.ceil(run.sequences / (run.sequences // rows))


def scoring(run: Run, free_bytes: float) -> Parts:
    shape, positions = run.shape, scored_positions(run)
    if run.unsloth:
        # As many sequences at once as it thinks will fit; the layers' inputs are kept although nothing is trained
        # here, and the logits come later, piece by piece. Dense models may share the prompt of a group, which needs
        # less than this.
        sequences = scored_at_once(run, free_bytes)
        kept = checkpoints(run, sequences)
        layer = layer_forward(run, sequences * sum(padded(run)))
        pieces = math.ceil(positions / LOGIT_CHUNKS) * shape.vocab * (run.item + 4)
        first = {
            "kv_cache": 0 if shape.experts else kv_cache(run, run.tokens),
            "activations": layer // 2,
        }
        choices = [first, {"activations": kept + layer}, {"activations": kept, "logits": pieces}]
        return max(choices, key=lambda parts: sum(parts.values()))
    # `per_device_train_batch_size` sequences at a time; accelerate hands the logits on in float32 while the 16-bit
    # ones still exist, and TRL's loop still holds the last batch's.
    again = 4 if run.sequences > run.batch else 0
    per_logit = (run.item if run.item < 4 else 0) + 4 + again
    logits = run.batch * positions * shape.vocab * per_logit
    previous = run.batch * positions * shape.vocab * again
    layer = layer_forward(run, run.batch * run.tokens) + attention_scores(
        run, run.batch, run.tokens, run.tokens
    )
    choices = [{"logits": logits}, {"logits": previous, "activations": layer}]
    return max(choices, key=lambda parts: sum(parts.values()))


def layer_saved(run: Run, tokens: int, sequences: int) -> int:
    """Bytes that autograd keeps of one layer of transformers in mixed precision, its frozen weights aside."""
    shape, item = run.shape, run.item
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    saved = (
        FAMILIES.get(shape.model_type, Family()).norms * shape.hidden * 4
    )  # what goes into a norm, in float32
    saved += sum(
        item * (shape.linears[name][0] + 2 * rank) for name, rank in run.adapted.items()
    )  # own cast input
    saved += item * (2 * query + 2 * key)  # query, key, value and the result of attention
    if FAMILIES.get(shape.model_type, Family()).qk_norm:
        saved += 4 * (query + key)
    if shape.experts:
        # gpt-oss clamps gate and up and multiplies them out, and autograd keeps each step
        wide = (7 if shape.model_type == "gpt_oss" else 4) * shape.intermediate
        saved += item * shape.top_k * (wide + 2 * shape.hidden)
    else:
        saved += item * 3 * shape.linears["gate_proj"][1]  # gate, its activation, up
    probabilities = 0
    if shape.model_type == "gpt_oss":
        # softmax, and the keys and values repeated for every query head
        probabilities = item * sequences * shape.heads * run.tokens**2
        saved += item * 2 * query
    return tokens * saved + probabilities + item * run.merged


def backward(run: Run) -> Parts:
    shape, positions = run.shape, scored_positions(run)
    tokens = run.batch * sum(padded(run))
    if run.unsloth:
        kept = checkpoints(run, run.batch)
        # 16-bit logits of every piece, and one piece in float32
        logits = run.batch * positions * shape.vocab * run.item
        logits += math.ceil(positions / LOGIT_CHUNKS) * shape.vocab * 4
        layer = layer_forward(run, tokens)
        if shape.experts and run.experts_as == "mxfp4":
            # the native kernel multiplies packed weights when it trains; rows of the results come on top
            rows = tokens * shape.top_k
            layer = (
                rows * (24 * shape.intermediate + 6 * shape.hidden)
                + 5 * tokens * shape.hidden * run.item
            )
        elif shape.experts and run.experts_as == "nf4":  # both matrices unpacked
            rows = tokens * shape.top_k
            layer = 3 * shape.gate_up + rows * (24 * shape.intermediate + 4 * shape.hidden)
            layer += 16 * tokens * shape.hidden
            kept = 0  # given back layer by layer by the time the unpacked matrices and all gradients are there
        choices = [{"activations": kept, "logits": logits}, {"activations": kept + layer}]
        return max(choices, key=lambda parts: sum(parts.values()))
    # float32 logits, which autograd keeps, and their gradient; 16-bit ones and their float32 copy are less
    logits = run.batch * positions * shape.vocab * 8
    one_layer = layer_saved(run, tokens, run.batch)
    # autocast's 16-bit copy of a head that k-bit training holds in float32
    head = shape.vocab * shape.hidden * 2 if run.stream > run.item else 0
    kept = head + (
        checkpoints(run, run.batch) + one_layer if run.checkpointing else shape.layers * one_layer
    )
    # The logits are gone before the last layer goes back, and with checkpointing before it is computed again.
    first = kept - one_layer if run.checkpointing else kept
    choices = [
        {"activations": first, "logits": logits},
        {"activations": kept + layer_gradients(run, tokens)},
    ]
    return max(choices, key=lambda parts: sum(parts.values()))


def layer_gradients(run: Run, tokens: int) -> int:
    """Bytes of gradients at the widest place of a layer: attention scores and softmax, or gate, up, their product."""
    scores = run.batch * run.shape.heads * run.tokens**2 if run.shape.model_type == "gpt_oss" else 0
    wide = (
        run.shape.top_k * run.shape.intermediate
        if run.shape.experts
        else run.shape.linears["gate_proj"][1]
    )
    return run.item * (max(2 * scores, 3 * tokens * wide) + run.merged)


def remedies(
    run: Run, load_in_4bit: bool, can_offload: bool, phases: Mapping[str, Parts]
) -> dict[str, str]:
    """Moment -> the keys that make it smaller, the most effective first."""
    smaller = []
    if not run.unsloth:
        smaller.append("model.backend=unsloth")
    if not load_in_4bit:
        smaller.append("model.load_in_4bit=true")
    if can_offload:
        smaller.append("model.offload_embedding=true")
    shorter = "a smaller grpo.max_completion_length"
    fewer = "fewer completions at once (grpo.gradient_accumulation_steps with num_generations)"
    batch = ["grpo.per_device_train_batch_size=1"] if run.batch > 1 else []
    kept = [] if run.checkpointing else ["lora.use_gradient_checkpointing=unsloth"]
    choices = {
        "load": smaller or ["a smaller model"],
        "rollout": [fewer, shorter, *smaller],
        "scoring": [fewer, shorter, *smaller] if run.unsloth else [*batch, shorter, *smaller],
        "backward": [*kept, *batch, shorter, *smaller],
    }
    for name, parts in phases.items():
        if name != "load" and parts["weights"] > 0.9 * sum(
            parts.values()
        ):  # then the other keys cannot help much
            choices[name] = [*smaller, *choices[name]]
    return {name: "; ".join(dict.fromkeys(choices[name])) for name in phases}
