"""Compares an export with base + adapter, in a process of its own that has no network.

    python -m job.export_check SPEC.json RESULT.json

job/exporting.py starts it. First tensors: the rule is exact and holds for models of any size. Then,
where the model fits into memory, what it says: greedy tokens, logits and KL divergence.
"""

import json
import sys
from pathlib import Path
from typing import Any

from job.base_weights import BaseWeights, is_packed
from job.errors import ConfigError, one_line
from job.lora_weights import Adapter, Change, read_adapter, sixteen_bit
from job.model import SMALL_MODEL, quiet_bitsandbytes

# Rounding once to the nearest is off by half a step at most.
MAX_STEPS = 0.5
# What float32 arithmetic may add to that, as a share of the numbers that are summed
FLOAT32_SLACK = 2.0**-20
# Tolerances by the type that is computed in: mean KL divergence in nats a token, and the largest
# difference of a logit as a share of the largest logit. Rounding the merged weights causes both.
# bfloat16 rounds every activation besides, merged or not.
TOLERANCES = {"float32": (1e-2, 0.02), "bfloat16": (5e-2, 0.1)}
# This share of the tokens must keep the tolerance of logits. Where two experts are nearly tied,
# rounding sends a token to the other one, and its logits change at once.
WITHIN_TOLERANCE = 0.95
NEW_TOKENS = 32
# Loading needs more than the weights: the largest of them twice, and activations
MEMORY_FACTOR = 1.3
CGROUP = Path("/sys/fs/cgroup")


def main(arguments: list[str]) -> None:
    quiet_bitsandbytes()
    spec = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    result = check(spec)
    Path(arguments[1]).write_text(json.dumps(result), encoding="utf-8")


def check(spec: dict[str, Any]) -> dict[str, Any]:
    """Compare an export.

    Args:
        spec: format; adapter, export: folders; base: a folder, or None if it is not on this
            machine; prompts: lists of messages.

    Returns:
        passed, and a verdict on tensors and on tokens, each with `passed` and its figures.
    """
    adapter_folder, folder = Path(spec["adapter"]), Path(spec["export"])
    if spec["format"] == "lora":
        tensors = compare_adapters(adapter_folder, folder)
    else:
        base = BaseWeights(Path(spec["base"]))
        adapter = read_adapter(adapter_folder, base.config)
        tensors = compare_weights(base, adapter, BaseWeights(folder))
    if tensors["passed"]:
        tokens = compare_tokens(spec)
    else:
        tokens = {"passed": True, "skipped": "the tensors differ already"}
    return {
        "passed": tensors["passed"] and tokens["passed"],
        "tensors": tensors,
        "tokens": tokens,
    }


# ---- tensors


def compare_adapters(source: Path, copy: Path) -> dict[str, Any]:
    """Every tensor of the adapter must have the same bytes."""
    from safetensors.torch import load_file

    name = "adapter_model.safetensors"
    theirs, ours = load_file(source / name), load_file(copy / name)
    different = sorted(theirs.keys() ^ ours.keys())
    for key in theirs.keys() & ours.keys():
        if not same_bytes(theirs[key], ours[key]):
            different.append(key)
    return {"passed": not different, "equal": len(ours), "different": different}


def compare_weights(base: BaseWeights, adapter: Adapter, export: BaseWeights) -> dict[str, Any]:
    """Every parameter that the adapter leaves alone must be the base's, to the bit. Every other
    must be base + scaling · B·A, rounded once.

    Returns:
        equal, merged: how many of each; largest_error_steps: of merged ones, in units of the last
        place; different: names of those that break the rule.
    """
    different = sorted(base.parameters.keys() ^ export.parameters.keys())
    equal, merged, largest = 0, 0, 0.0
    for name in base.parameters.keys() & export.parameters.keys():
        if name in adapter.changes:
            merged += 1
            start = adapter.replaced.get(name)
            if start is None:
                start = unpacked_by_library(base, name)
            steps = error_steps(start, adapter.changes[name], export.read(name))
            largest = max(largest, steps)
            if steps > MAX_STEPS:
                different.append(name)
            continue
        equal += 1
        if not is_unchanged(base, adapter, export, name):
            different.append(name)
    return {
        "passed": not different,
        "equal": equal,
        "merged": merged,
        "largest_error_steps": round(largest, 4),
        "different": sorted(different),
    }


def is_unchanged(base: BaseWeights, adapter: Adapter, export: BaseWeights, name: str) -> bool:
    """Whether the export holds what the base holds, or what was trained in its place."""
    if is_packed(export, name):
        return all(same_bytes(base.stored(part), export.stored(part))
                   for part in base.parameters[name])  # fmt: skip
    found = export.read(name)
    wanted = adapter.replaced.get(name)
    if wanted is None:
        wanted = unpacked_by_library(base, name)
        return same_bytes(wanted.to(sixteen_bit(wanted.dtype)), found)
    return same_bytes(wanted.to(found.dtype), found)


def unpacked_by_library(base: BaseWeights, name: str) -> Any:
    """A parameter of the base. MXFP4 is unpacked by transformers, not by the code under test."""
    if base.layout != "mxfp4" or not is_packed(base, name):
        return base.read(name)
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = (base.stored(part) for part in base.parameters[name])
    return convert_moe_packed_tensors(blocks, scales)


def error_steps(weight: Any, change: Change, found: Any) -> float:
    """The largest error of a merged parameter, in units of the last place.

    Args:
        weight: what the adapter is added to.
        found: the sum in the export.

    Returns:
        infinity if the shape differs or a value is not finite.
    """
    import torch

    if weight.shape != found.shape or not found.isfinite().all():
        return float("inf")
    if change.experts == 1:
        weight, found = weight.unsqueeze(0), found.unsqueeze(0)
    significand_bits = {torch.bfloat16: 8, torch.float16: 11}[found.dtype]
    smallest = torch.finfo(found.dtype).smallest_normal * torch.finfo(found.dtype).eps
    largest = 0.0
    for expert in range(change.experts):
        start = weight[expert].double()
        delta, bound = exact_delta(change, expert)
        exact = start + delta
        slack = FLOAT32_SLACK * (start.abs() + bound)
        _, exponent = torch.frexp(exact)
        step = torch.exp2((exponent - significand_bits).double()).clamp(min=smallest)
        error = (found[expert].double() - exact).abs() - slack
        largest = max(largest, (error / step).max().item())
    return largest


def exact_delta(change: Change, expert: int) -> tuple[Any, Any]:
    """scaling · B·A in float64, and the same of absolute values, which bounds rounding errors."""
    layer = change.layer
    a = layer.lora_A["default"].weight.double()
    b = layer.lora_B["default"].weight.double()
    transposed = layer.fan_in_fan_out
    if change.experts > 1:
        a = a.reshape(change.experts, -1, a.shape[-1])[expert]
        b = b.reshape(b.shape[0], -1, change.experts)[:, :, expert]
        # gpt-oss stacks its experts as (experts, in, out); most others as (experts, out, in)
        transposed = getattr(layer.get_base_layer(), "is_transposed", False)
    scaling = layer.scaling["default"]
    delta, bound = scaling * (b @ a), abs(scaling) * (b.abs() @ a.abs())
    if transposed:
        delta, bound = delta.T, bound.T
    return delta, bound


def same_bytes(one: Any, other: Any) -> bool:
    import torch

    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.contiguous(), other.contiguous()
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


# ---- tokens and logits


def compare_tokens(spec: dict[str, Any]) -> dict[str, Any]:
    """What base + adapter and the export say to the same prompts.

    The verdict rests on KL divergence and logits of the same sequences. Greedy tokens are counted
    up to the first that differs: two tokens that are nearly tied may change places.

    Returns:
        the figures and their tolerances; or `skipped`, with the reason.
    """
    if spec["base"] is None:
        return {"passed": True, "skipped": "the base is not on this machine"}
    base = Path(spec["base"])
    parameters = count_parameters(base)
    place = find_place(parameters)
    if place is None:
        return {
            "passed": True,
            "skipped": f"{parameters * 2 * MEMORY_FACTOR / 1e9:.0f} GB of memory are needed to run "
            "the model in bfloat16",
        }
    try:
        reference = load_adapted(base, Path(spec["adapter"]), place)
    except Exception as error:  # of any type, because of whatever layout the base has
        return {
            "passed": True,
            "skipped": f"transformers cannot load base + adapter here: {one_line(error)[:200]}",
        }
    prompts = token_ids(Path(spec["export"]), spec["prompts"])
    wanted = Answers.of(reference, prompts)
    with reference.disable_adapter():
        without = logits_of(reference, wanted.sequences)
    del reference

    if spec["format"] == "lora":
        exported = load_adapted(base, Path(spec["export"]), place)
    else:
        exported = load(Path(spec["export"]), place)
    return compare_answers(wanted, without, exported, prompts, place)


class Answers:
    """What a model answers to prompts: token ids, and logits at every one of them.

    Attributes:
        sequences: one a prompt, prompt and greedy completion.
        logits: one a prompt, (tokens, vocabulary), float32.
    """

    def __init__(self, sequences: list[Any], logits: list[Any]):
        self.sequences, self.logits = sequences, logits

    @classmethod
    def of(cls, model: Any, prompts: list[list[int]]) -> "Answers":
        sequences = [greedy(model, prompt) for prompt in prompts]
        return cls(sequences, logits_of(model, sequences))


def compare_answers(
    wanted: Answers, without: list[Any], exported: Any, prompts: list[list[int]], place: Any
) -> dict[str, Any]:
    """The verdict on tokens. `without` are the logits of the base alone."""
    import torch

    # The same sequences, read by both models
    got = logits_of(exported, wanted.sequences)
    differences, largest = [], 0.0
    for ours, theirs in zip(got, wanted.logits, strict=True):
        differences.append((ours - theirs).abs().amax(-1))
        largest = max(largest, theirs.abs().max().item())
    of_tokens = torch.cat(differences)
    device, dtype = place
    kl_tolerance, share = TOLERANCES[dtype]
    logit_tolerance = share * largest
    within = (of_tokens <= logit_tolerance).float().mean().item()
    kl = mean_kl(wanted.logits, got)

    # What the export writes on its own
    equal, total = 0, 0
    for prompt, sequence in zip(prompts, wanted.sequences, strict=True):
        total += len(sequence) - len(prompt)
        equal += first_difference(sequence, greedy(exported, prompt)) - len(prompt)
    return {
        "passed": kl <= kl_tolerance and within >= WITHIN_TOLERANCE,
        "greedy_equal": equal,
        "greedy_total": total,
        "max_logit_difference": of_tokens.max().item(),
        "logit_tolerance": logit_tolerance,
        "tokens_within_tolerance": within,
        "tokens_within_needed": WITHIN_TOLERANCE,
        "kl": kl,
        "kl_tolerance": kl_tolerance,
        "kl_without_adapter": mean_kl(wanted.logits, without),
        "device": device,
        "dtype": dtype,
    }


def first_difference(one: list[int], other: list[int]) -> int:
    """The first place where two sequences differ; the shorter length if one begins the other."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def mean_kl(wanted: list[Any], got: list[Any]) -> float:
    """Mean over all tokens of KL(wanted || got), in nats."""
    import torch

    each = []
    for theirs, ours in zip(wanted, got, strict=True):
        log_p, log_q = theirs.log_softmax(-1), ours.log_softmax(-1)
        each.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(each).mean().item()


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The prompt and what follows it with the likeliest token at each place."""
    import torch

    ids = torch.tensor([prompt], device=model.device)
    with torch.no_grad():
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    return made[0].tolist()


def logits_of(model: Any, sequences: list[list[int]]) -> list[Any]:
    """Logits at every token of each sequence, float32, (tokens, vocabulary)."""
    import torch

    found = []
    with torch.no_grad():
        for sequence in sequences:
            ids = torch.tensor([sequence], device=model.device)
            found.append(model(input_ids=ids).logits[0].float().cpu())
    return found


def token_ids(folder: Path, prompts: list[list[dict[str, str]]]) -> list[list[int]]:
    """The prompts as the export's own tokenizer and chat template render them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        return [tokenizer(messages[-1]["content"])["input_ids"] for messages in prompts]
    found = []
    for messages in prompts:
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )
        found.append(list(rendered["input_ids"]))
    return found


# ---- loading


def free_memory_bytes() -> int:
    """Main memory that the machine has left, or the container, if that is less.

    A container sees the memory of the whole machine. Its own limit is in its control group
    (cgroup v2: memory.max and memory.current), which counts cached files as used.
    """
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stat = (CGROUP / "memory.stat").read_text().split()
        cached = int(stat[stat.index("inactive_file") + 1])
    except (OSError, ValueError):  # no such control group, or no limit: "max"
        return free
    return min(free, max(limit - used + cached, 0))


def count_parameters(folder: Path) -> int:
    import math

    base = BaseWeights(folder)
    return sum(math.prod(base.shape(name)) for name in base.parameters)


def find_place(parameters: int) -> tuple[str, str] | None:
    """(device, dtype) where a model of this size fits, the most exact first; None if nowhere."""
    import torch

    free = {"cpu": free_memory_bytes()}
    if torch.cuda.is_available():
        free["cuda"], _ = torch.cuda.mem_get_info()
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        for device in ("cuda", "cpu"):
            if parameters * size * MEMORY_FACTOR <= free.get(device, 0):
                return device, dtype
    return None


def load(folder: Path, place: tuple[str, str]) -> Any:
    """The model of a folder, unpacked if it is in MXFP4."""
    import torch
    from transformers import AutoModelForCausalLM, Mxfp4Config
    from transformers.utils import logging

    logging.disable_progress_bar()
    device, dtype = place
    options = {}
    layout = BaseWeights(folder).layout
    if layout == "mxfp4":
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, **options
    )
    if layout != "bnb4":  # bitsandbytes has placed it already
        model = model.to(device=device, dtype=getattr(torch, dtype))
    if device == "cpu" and model.num_parameters() < SMALL_MODEL:
        torch.set_num_threads(1)  # see load_transformers in job/model.py
    return model.eval()


def load_adapted(base: Path, adapter: Path, place: tuple[str, str]) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base, place), str(adapter)).eval()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        sys.exit(str(error))
