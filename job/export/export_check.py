"""Compares an export with base + adapter, in a process of its own that has no network.

    python -m job.export.export_check SPEC.json RESULT.json

exporting.py starts it. First tensors: the rule is exact and holds for models of any size. Then,
where the model fits into memory, what it says: greedy tokens, logits and KL divergence.
"""

import json
import sys
from pathlib import Path
from typing import Any

from job.errors import ConfigError, one_line
from job.export.base_weights import BaseWeights, is_packed
from job.export.lora_weights import Adapter, Change, read_adapter, sixteen_bit
from job.model import SMALL_MODEL, quiet_bitsandbytes

# What float32 arithmetic may add to the error of rounding, as a share of the numbers summed
FLOAT32_SLACK = 2.0**-20
# Of the values of a matrix, so many may come out otherwise when they are summed in another order.
# About one in ten thousand does.
MAX_OTHER, MAX_OTHER_SHARE = 1000, 0.01
# Tolerances by the type that is computed in: mean KL divergence in nats a token, and the largest
# difference of a logit as a share of the largest logit. Rounding the merged weights causes both.
# bfloat16 rounds every activation besides, merged or not.
TOLERANCES = {"float32": (1e-2, 0.02), "bfloat16": (5e-2, 0.1)}
# This share of the tokens must keep the tolerance of logits. In a mixture of experts none need:
# where two experts are nearly tied, rounding sends a token to the other one, and its logits jump.
WITHIN_TOLERANCE = 0.95
# Larger models take too long on a CPU. Their tensors are compared all the same.
MAX_CPU_PARAMETERS = 1.5e9
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
            machine; prompts: lists of messages; tensors_only: whether to run no model.

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
    if not tensors["passed"]:
        tokens = {"passed": True, "skipped": "the tensors differ already"}
    elif spec["tensors_only"]:
        tokens = {"passed": True, "skipped": "--compare tensors"}
    else:
        tokens = compare_tokens(spec)
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
        equal, merged: how many of each; different: names of those that break the rule.
    """
    different = sorted(base.parameters.keys() ^ export.parameters.keys())
    equal, merged = 0, 0
    for name in base.parameters.keys() & export.parameters.keys():
        if name in adapter.changes:
            merged += 1
            start = adapter.replaced.get(name)
            if start is None:
                start = unpacked_by_library(base, name)
            if not is_rounded_sum(start, adapter.changes[name], export.read(name)):
                different.append(name)
            continue
        equal += 1
        if not is_unchanged(base, adapter, export, name):
            different.append(name)
    return {
        "passed": not different,
        "equal": equal,
        "merged": merged,
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
    if not is_packed(base, name):
        return base.read(name)
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = (base.stored(part) for part in base.parameters[name])
    whole = torch.empty(base.shape(name), dtype=torch.bfloat16)
    for expert in range(len(blocks)):  # one by one, because it needs several times the memory
        one = slice(expert, expert + 1)
        whole[one] = convert_moe_packed_tensors(blocks[one], scales[one])
    return whole


def is_rounded_sum(weight: Any, change: Change, found: Any) -> bool:
    """Whether every value of a merged parameter is base + scaling · B·A, rounded once.

    The sum is worked out again in float32. The few values that come out otherwise lie between two
    numbers of 16 bit, and must be within half a step of the sum in float64.

    Args:
        weight: what the adapter is added to.
        found: the sum in the export.
    """
    if weight.shape != found.shape:
        return False
    if change.experts == 1:
        weight, found = weight.unsqueeze(0), found.unsqueeze(0)
    for expert in range(change.experts):
        left, right = factors(change, expert)
        start, made = weight[expert].float(), found[expert]
        other = ((start + left @ right).to(made.dtype) != made).nonzero()
        if len(other) > max(MAX_OTHER, MAX_OTHER_SHARE * made.numel()):
            return False
        rows, columns = other.T
        # Each of these values alone: (values, r) · (values, r)
        products = left[rows].double() * right[:, columns].T.double()
        exact = start[rows, columns].double() + products.sum(-1)
        slack = FLOAT32_SLACK * (start[rows, columns].abs() + products.abs().sum(-1))
        error = (made[rows, columns].double() - exact).abs() - slack
        if not (error <= half_step(exact, made.dtype)).all():  # never true of nan
            return False
    return True


def half_step(values: Any, dtype: Any) -> Any:
    """Half the distance between neighbours in `dtype`, at each of these values."""
    import torch

    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(values)
    step = limits.eps * torch.exp2(exponent.double() - 1)
    return step.clamp(min=limits.eps * limits.smallest_normal) / 2


def factors(change: Change, expert: int) -> tuple[Any, Any]:
    """Two float32 matrices whose product is scaling · B·A in the shape of the parameter.

    They are taken from the adapter's file by PEFT's layout of experts, and not by its code.
    """
    layer = change.layer
    a = layer.lora_A["default"].weight
    b = layer.lora_B["default"].weight * layer.scaling["default"]
    transposed = layer.fan_in_fan_out
    if change.experts > 1:
        a = a.reshape(change.experts, -1, a.shape[-1])[expert]
        b = b.reshape(b.shape[0], -1, change.experts)[:, :, expert]
        # gpt-oss stacks its experts as (experts, in, out); most others as (experts, out, in)
        transposed = getattr(layer.get_base_layer(), "is_transposed", False)
    if transposed:
        return a.T, b.T
    return b, a


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
        needed_gb = parameters * 2 * MEMORY_FACTOR / 1e9
        return {
            "passed": True,
            "skipped": f"to run the model takes a GPU with {needed_gb:.0f} GB free",
        }
    try:
        reference = load_adapted(base, Path(spec["adapter"]), place)
    except Exception as error:  # of any type, because the files are the user's
        # Some 4-bit copies have a layout that only Unsloth can load.
        return {
            "passed": BaseWeights(base).layout == "bnb4",
            "skipped": f"transformers cannot load base + adapter: {one_line(error)[:200]}",
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
    needed = WITHIN_TOLERANCE
    if any(".experts" in name for name in BaseWeights(base).parameters):
        needed = 0.0
    return compare_answers(wanted, without, exported, prompts, place, needed)


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
    wanted: Answers,
    without: list[Any],
    exported: Any,
    prompts: list[list[int]],
    place: tuple[str, str],
    needed: float,
) -> dict[str, Any]:
    """The verdict on tokens.

    Args:
        without: the logits of the base alone.
        place: device and dtype of both models.
        needed: share of the tokens that must keep the tolerance of logits.
    """
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
        "passed": kl <= kl_tolerance and within >= needed,
        "greedy_equal": equal,
        "greedy_total": total,
        "max_logit_difference": of_tokens.max().item(),
        "logit_tolerance": logit_tolerance,
        "tokens_within_tolerance": within,
        "tokens_within_needed": needed,
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

    free = {}
    if parameters <= MAX_CPU_PARAMETERS:
        free["cpu"] = free_memory_bytes()
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
