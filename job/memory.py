"""How much GPU memory a run needs, worked out from config.json and the settings alone.

What is counted is PyTorch's peak of allocated bytes on one GPU. The driver shows more: the CUDA
context, and what the allocator keeps for reuse. The verdict leaves space for the context. PyTorch
gives back what it keeps before it fails.

Four moments can be the peak, and `estimate` gives all of them:
    load       the checkpoint is unpacked (transformers turns MXFP4 into bfloat16)
    rollout    completions are decoded: KV cache, and for mixtures of experts the weights that
               generate copies. CUDA graphs keep their buffers through all later moments
    scoring    log-probabilities of the reference model, for beta > 0
    backward   one batch forwards and backwards: checkpointed or kept activations, logits

The sizes come from model_shape.py and workload.py, and what is peculiar to a backend from
memory_transformers.py and memory_unsloth.py. They were read off allocation traces
(torch.cuda.memory._record_memory_history) of transformers 5.17, TRL 1.14.2 and Unsloth 2026.10.6 on
one H200. Other versions may differ.

Nothing here imports torch: a dry run should not wait for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from job.batches import BatchPlan, batch_plan
from job.config import Lora
from job.memory_transformers import Transformers
from job.memory_unsloth import Unsloth
from job.model_shape import Shape
from job.workload import (
    WORKSPACES,
    Checkpoint,
    Parts,
    Storage,
    Workload,
    graph_buffers,
    named_modules,
    read_checkpoint,
)

BACKENDS = {"transformers": Transformers, "unsloth": Unsloth}
GIB = 2**30
# What a moment's bytes are for, in the order of the table.
PARTS = (
    "weights",
    "adapter",
    "optimizer",
    "gradients",
    "kv_cache",
    "graphs",
    "logits",
    "activations",
    "overhead",
)
# What the driver counted on an H200 beyond PyTorch's own reserve, rounded up: context and kernels.
CONTEXT = GIB
TOLERANCE = 0.15  # the error that tests/test_memory.py allows against measured peaks


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at each moment. The docstring of the module names the moments."""

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
        """`fits`, `tight` or `does not fit`.

        A run that fits leaves space for the CUDA context and the tolerance of the estimate. A tight
        one leaves space for the context only.
        """
        if self.peak * (1 + TOLERANCE) + CONTEXT <= card_bytes:
            return "fits"
        if self.peak + CONTEXT <= card_bytes:
            return "tight"
        return "does not fit"

    def table(self, card_bytes: int | None = None, card_name: str = "GPU") -> str:
        """Parts by moment in GiB.

        With the size of the card it says whether the run fits, and which key to change if not.
        """
        lines = self._rows()
        if card_bytes:
            lines += self._against(card_bytes, card_name)
        else:
            enough = (self.peak * (1 + TOLERANCE) + CONTEXT) / GIB
            lines.append(f"no GPU here: {self._peak_in_words()}; {enough:.0f} GiB are enough")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _rows(self) -> list[str]:
        names = list(self.phases)
        rows = {part: [self.phases[name].get(part, 0) for name in names] for part in PARTS}
        rows["total"] = [self.total(name) for name in names]
        unit, size, digits = "GiB", GIB, 2
        if self.peak < GIB:  # of the tiny model, all would be 0.00
            unit, size, digits = "MiB", GIB / 1024, 1
        lines = [f"{f'GPU memory, {unit}':16}" + "".join(f"{name:>10}" for name in names)]
        for part, row in rows.items():
            if any(row):
                cells = [f"{value / size:>10.{digits}f}" for value in row]
                lines.append(f"{part:16}" + "".join(cells))
        return lines

    def _peak_in_words(self) -> str:
        if self.peak < GIB:
            return f"peak {self.peak / GIB * 1024:.1f} MiB in {self.peak_phase}"
        return f"peak {self.peak / GIB:.1f} GiB in {self.peak_phase}"

    def _against(self, card_bytes: int, card_name: str) -> list[str]:
        verdict = self.verdict(card_bytes)
        lines = [
            f"{verdict}: {self._peak_in_words()} (± {TOLERANCE:.0%}); "
            f"{card_name} has {card_bytes / GIB:.1f} GiB, "
            f"{CONTEXT / GIB:.0f} of them for the CUDA context"
        ]
        if verdict != "fits":
            lines.append(f"to need less: {self.keys.get(self.peak_phase, 'a smaller model')}")
        return lines


def estimate(
    architecture: Mapping[str, Any],
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
    graphs: bool = False,
) -> Estimate:
    """Peak GPU memory of a run on one of `processes` GPUs.

    Args:
        architecture: config.json of the checkpoint that is loaded. Its `quantization_config` names
            the form of the weights: that of a bitsandbytes copy differs from the original's.
        backend: "unsloth" or "transformers".
        load_in_4bit: whether the backend is asked for bitsandbytes' 4 bit.
        lora: the adapter.
        grpo: keys of GRPOConfig; missing ones take TRL's defaults.
        prompt_tokens: of the longest prompt.
        completion_tokens: of the longest completion.
        dtype: "bfloat16", "float16" or "float32"; "auto" is taken for 16 bit.
        offload_embedding: whether Unsloth keeps the embedding in main memory.
        stored_bytes: size of the safetensors. It is used for the weights of a checkpoint that is
            quantised on the disk and loaded as it is, and of an architecture that is not known.
        processes: GPUs of a data-parallel run.
        graphs: whether completions are decoded by CUDA graphs, if the model can be.

    Raises:
        ValueError: if config.json lacks a number that is needed.
    """
    # How the weights are held
    checkpoint = read_checkpoint(architecture, load_in_4bit)
    shape = checkpoint.shape
    storage = BACKENDS[backend].storage(checkpoint, item=4 if dtype == "float32" else 2)
    can_offload = backend == "unsloth" and shape.head > 0
    offloaded = shape.embedding if can_offload and offload_embedding else 0

    # What is done with them
    plan = batch_plan(grpo, processes)
    work = Workload(
        shape=shape,
        storage=storage,
        checkpointing=bool(lora.use_gradient_checkpointing),
        adapted=adapted_linears(shape, lora),
        adapted_experts=adapted_experts(shape, lora, backend),
        sequences=plan.generate_call,
        batch=plan.per_device_batch,
        prompt=prompt_tokens,
        completion=completion_tokens,
        prompts=max(1, plan.generate_call // plan.num_generations),
        graphs=graphs and decodes_in_graphs(storage, backend),
    )
    phases = moments(
        BACKENDS[backend](work),
        weights=storage.weight_bytes(offloaded, stored_bytes),
        trainable=trainable_parameters(shape, lora, backend),
        grpo=grpo,
        plan=plan,
    )
    keys = remedies(work, backend, can_offload and not offload_embedding, phases)
    return Estimate(phases, tuple(notes_on(architecture, storage, backend, grpo)), keys)


def notes_on(
    architecture: Mapping[str, Any], storage: Storage, backend: str, grpo: Mapping[str, Any]
) -> list[str]:
    """What the reader of the estimate should know about it."""
    notes = []
    checkpoint, shape = storage.checkpoint, storage.checkpoint.shape
    if checkpoint.form == "mxfp4" and storage.experts_as == "16bit":
        notes.append(
            "transformers unpacks MXFP4 to 16 bit here; model.backend=unsloth keeps it packed"
        )
    if checkpoint.quantised and checkpoint.form == "16bit":
        notes.append(f"quantisation {checkpoint.quantised} is not known here; counted as 16 bit")
    if grpo.get("use_vllm"):
        notes.append("vLLM's share of the GPU (grpo.vllm_gpu_memory_utilization) is not counted")
    if not shape.known:
        name = shape.model_type or "?"
        notes.append(f"architecture {name} is not known here: a rough estimate")
    if shape.experts and storage.experts_as not in BACKENDS[backend].MEASURED_EXPERTS:
        notes.append("experts stored like this were not measured on this backend: a rough estimate")
    if "vision_config" in architecture:
        notes.append("only the text model is counted")
    return notes


# ---- adapter


def adapted_linears(shape: Shape, lora: Lora) -> dict[str, int]:
    """Adapted linear layer -> rank."""
    targets = named_modules(lora)
    if targets == ["all-linear"]:
        targets = list(shape.linears)
    return {name: lora.r for name in shape.linears if name in targets}


def adapted_experts(shape: Shape, lora: Lora, backend: str) -> dict[str, tuple[int, int]]:
    """Adapted matrix of each expert -> (in, out)."""
    if not shape.experts:
        return {}
    matrices = {
        "gate_up_proj": (shape.hidden, 2 * shape.intermediate),
        "down_proj": (shape.intermediate, shape.hidden),
    }
    targets = BACKENDS[backend].expert_targets(lora)
    return {name: sizes for name, sizes in matrices.items() if name in targets}


def trainable_parameters(shape: Shape, lora: Lora, backend: str) -> int:
    """Parameters of the adapter: r (in + out) for each adapted matrix.

    Source: LoRA, https://arxiv.org/abs/2106.09685.
    """
    total = 0
    for name in adapted_linears(shape, lora):
        inputs, outputs, count = shape.linears[name]
        total += (inputs + outputs) * count
    for inputs, outputs in adapted_experts(shape, lora, backend).values():
        total += (inputs + outputs) * shape.experts * shape.sparse_layers
    return lora.r * total


def optimizer_bytes(optim: str) -> float:
    """Bytes of optimizer state for a trainable parameter.

    Paged states are counted as if they stayed on the GPU.
    """
    states = 2
    if optim.startswith(("sgd", "adafactor")):
        states = 0
    elif "lion" in optim:
        states = 1
    bytes_each = 1 if "8bit" in optim else 4
    return states * bytes_each


# ---- moments


def moments(
    backend: Transformers | Unsloth,
    *,
    weights: int,
    trainable: int,
    grpo: Mapping[str, Any],
    plan: BatchPlan,
) -> dict[str, Parts]:
    """Bytes by part at each moment.

    Args:
        backend: with the work that it does.
        weights: their bytes.
        trainable: parameters of the adapter.
        grpo: keys of GRPOConfig.
        plan: what these keys make of the batches.
    """
    adapter = 4 * trainable  # float32 masters
    load = {"weights": weights, "adapter": adapter} | backend.loading()

    # Later moments hold the optimizer too. TRL keeps a copy of the adapter as the reference of the
    # KL penalty; Unsloth makes one while it scores.
    has_reference = bool(grpo.get("beta"))
    optim = grpo.get("optim") or "adamw_torch_fused"
    fixed = {
        "weights": weights,
        "adapter": 2 * adapter if has_reference else adapter,
        "optimizer": int(optimizer_bytes(optim) * trainable),
        "overhead": WORKSPACES,
    }
    if backend.work.graphs:
        fixed = added(fixed, graph_buffers(backend.work))
    phases = {"rollout": added(fixed, backend.rollout())}
    # TRL needs log-probabilities of the sampling policy only where an update can come between
    # sampling and training.
    updates_between = plan.accumulation % (plan.steps_per_generation * plan.num_iterations) > 0
    if has_reference or updates_between:
        phases["scoring"] = added(fixed, backend.scoring())
    phases["backward"] = added(fixed, {"gradients": 4 * trainable} | backend.backward())

    for parts in phases.values():
        parts["overhead"] += backend.autotuning(parts)
    return {"load": load} | phases


def added(fixed: Parts, more: Parts) -> Parts:
    """Both together, part by part."""
    parts = dict(fixed)
    for name, size in more.items():
        parts[name] = parts.get(name, 0) + size
    return parts


def decodes_in_graphs(storage: Storage, backend: str) -> bool:
    """Whether job/rollout can capture a model that is held in this way."""
    if backend == "unsloth":
        return storage.experts_as == "mxfp4" and storage.checkpoint.shape.experts > 0
    return storage.experts_as != "nf4" or not storage.checkpoint.shape.experts


def remedies(
    work: Workload, backend: str, can_offload: bool, phases: Mapping[str, Parts]
) -> dict[str, str]:
    """Moment -> the keys that make it smaller, the most effective first."""
    smaller = smaller_weights(backend, work.storage.checkpoint, can_offload)
    shorter = "a smaller grpo.max_completion_length"
    fewer = "fewer completions at once (grpo.gradient_accumulation_steps with num_generations)"
    batch = ["grpo.per_device_train_batch_size=1"] if work.batch > 1 else []
    kept = [] if work.checkpointing else ["lora.use_gradient_checkpointing=unsloth"]
    choices = {
        "load": smaller or ["a smaller model"],
        "rollout": [fewer, shorter, *smaller],
        "scoring": [*batch, shorter, *smaller],
        "backward": [*kept, *batch, shorter, *smaller],
    }
    keys = {}
    for name, parts in phases.items():
        ordered = choices[name]
        mostly_weights = parts["weights"] > 0.9 * sum(parts.values())
        if mostly_weights and name != "load":
            # The other keys cannot help much.
            ordered = [*smaller, *ordered]
        keys[name] = "; ".join(dict.fromkeys(ordered))
    return keys


def smaller_weights(backend: str, checkpoint: Checkpoint, can_offload: bool) -> list[str]:
    """The keys that make the weights smaller."""
    keys = []
    if backend != "unsloth":
        keys.append("model.backend=unsloth")
    if checkpoint.form == "16bit" and checkpoint.shape.model_type != "gpt_oss":
        keys.append("model.quantization=bnb-4bit")
    if can_offload:
        keys.append("model.offload_embedding=true")
    return keys
