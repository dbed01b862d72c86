"""How fast completions are decoded, by engine, sequences and tokens, and what a whole step costs.

    python benchmarks/rollout.py                       the embedded tiny model, on a CPU too
    python benchmarks/rollout.py --model gpt-oss-20b   random weights of that shape, in MXFP4
    python benchmarks/rollout.py --model FOLDER        any checkpoint

Options: --sequences 8 32 128, --tokens 128, --engines graph generate, --steps 3 (of the whole job,
after the first; 0: none), --json FILE (the results), --compare FILE (of an earlier run: exit code 1
if a figure is more than 20 % worse). Further arguments are overrides of the config.

The time of a token step is the slope between two lengths of completion, so it holds no prompt. The
floor is the time in which the card could read what a step must read: the weights that it uses, and
the keys and values, at the bandwidth that a large copy reaches here.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WORSE = 0.20
GIB = 2**30
PROMPT_TOKENS = 180  # about what a prompt of the default task has
# gpt-oss-20b, from its config.json
GPT_OSS_20B = {
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "sliding_window": 128,
}


def main() -> int:
    arguments, overrides = parse()
    with tempfile.TemporaryDirectory(dir=memory_disk()) as scratch:
        model = arguments.model
        if model == "gpt-oss-20b":
            model = str(make_checkpoint(Path(scratch, "gpt-oss-20b")))
        overrides = [f"model.name={model}", *overrides]
        results = environment(arguments.model)
        results["decoding"] = list(measure_decoding(arguments, overrides))
        if arguments.steps:
            results["step"] = measure_job(arguments, overrides, Path(scratch, "run"))
            print_step(results["step"])
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    if arguments.compare:
        return compare(results, json.loads(Path(arguments.compare).read_text()))
    return 0


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--engines", nargs="+", choices=["graph", "generate"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--compare")
    arguments, overrides = parser.parse_known_intermixed_args()
    if arguments.engines is None:
        arguments.engines = ["graph", "generate"]
    return arguments, overrides


def memory_disk() -> str | None:
    """Where a checkpoint is written and read fastest; None: the usual place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def environment(model: str) -> dict[str, Any]:
    import torch
    import transformers

    name = "CPU"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return {
        "model": model,
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


# ---- the checkpoint


def make_checkpoint(folder: Path) -> Path:
    """Random weights in gpt-oss-20b's shape, experts in MXFP4, with the tiny model's tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GptOssConfig

    from job.config import TINY_MODEL

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    config = GptOssConfig(
        **GPT_OSS_20B,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["GptOssForCausalLM"],
        dtype="bfloat16",
        quantization_config={
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    )
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    folder.mkdir(parents=True)
    index = {}
    for number, (name, weight) in enumerate(shapes.items()):
        tensors = random_tensors(name, tuple(weight.shape), device)
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    tokenizer.save_pretrained(folder)
    return folder


def random_tensors(name: str, shape: tuple[int, ...], device: str) -> dict[str, Any]:
    """A weight as the checkpoint stores it: matrices of experts as blocks and scales."""
    import torch

    if name.endswith(("gate_up_proj", "down_proj")):
        experts, inputs, outputs = shape
        groups = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8, device=device)
        scales = torch.randint(119, 122, groups, dtype=torch.uint8, device=device)
        return {f"{name}_blocks": blocks.cpu(), f"{name}_scales": scales.cpu()}
    if "norm" in name:
        return {name: torch.ones(shape, dtype=torch.bfloat16)}
    if name.endswith("bias") or "sinks" in name:
        return {name: torch.zeros(shape, dtype=torch.bfloat16)}
    return {name: (0.02 * torch.randn(shape, device=device)).bfloat16().cpu()}


# ---- decoding


def measure_decoding(
    arguments: argparse.Namespace, overrides: list[str]
) -> Iterator[dict[str, Any]]:
    """A row of results for each engine and number of sequences, printed as it comes."""
    import torch

    from job.config import load_config
    from job.model import load_model

    config = load_config(None, overrides)
    began = time.perf_counter()
    model, tokenizer = load_model(config.model, config.lora)
    adapt(model)
    model.eval()
    load_s = time.perf_counter() - began
    print(f"load: {load_s:.1f} s, {allocated_gib():.2f} GiB")
    bandwidth = measure_bandwidth()
    header = "| engine | sequences | ms a token step | floor ms | tokens/s | peak GiB |"
    print(header, "|---|---|---|---|---|---|", sep="\n")
    for sequences in arguments.sequences:
        for engine in arguments.engines:
            decode = decoder_of(engine, model, tokenizer, sequences, arguments.tokens)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            step_s = slope(decode, arguments.tokens)
            row = {
                "engine": engine,
                "sequences": sequences,
                "tokens": arguments.tokens,
                "step_ms": 1000 * step_s,
                "floor_ms": floor_ms(model, sequences, arguments.tokens, bandwidth),
                "tokens_per_s": sequences / step_s,
                "peak_gib": peak_gib(),
                "load_s": load_s,
            }
            print(
                f"| {engine} | {sequences} | {row['step_ms']:.2f} | {row['floor_ms']:.2f} "
                f"| {row['tokens_per_s']:.0f} | {row['peak_gib']:.2f} |",
                flush=True,
            )
            del decode
            yield row


def adapt(model: Any) -> None:
    """Give the adapter a B that is not 0, as after some training."""
    import torch

    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)


def decoder_of(
    engine: str, model: Any, tokenizer: Any, sequences: int, tokens: int
) -> Callable[[int], None]:
    """Decodes that many tokens of different prompts to their end; nothing stops a row."""
    import torch
    from transformers import GenerationConfig

    from job.rollout import BatchRollout, complete_with_transformers, decode_all
    from job.rollout.engine import Request, make_graph_rollout

    generator = torch.Generator().manual_seed(0)
    most = min(len(tokenizer), model.config.get_text_config().vocab_size)
    prompts = torch.randint(0, most, (sequences, PROMPT_TOKENS), generator=generator).tolist()
    if engine == "generate":
        # Unsloth raises for an empty list of stop tokens, so there is one that never comes
        model.generation_config.eos_token_id = [-1]

        def generate(count: int) -> None:
            complete = complete_with_transformers(
                model, tokenizer, do_sample=True, max_new_tokens=count, min_new_tokens=count
            )
            decode_all(BatchRollout(complete), prompts)

        return generate

    rollouts: dict[int, Any] = {}

    def decode(count: int) -> None:
        if count not in rollouts:
            request = Request(
                generation_config=GenerationConfig(do_sample=True),
                stop_ids=[],
                pad_id=0,
                rows=sequences,
                tokens=PROMPT_TOKENS + tokens,
                max_new_tokens=count,
                autocast=autocast_dtype(model),
            )
            capture = torch.cuda.is_available()
            rollouts[count], _ = make_graph_rollout(model, request, capture)
        decode_all(rollouts[count], prompts)

    return decode


def autocast_dtype(model: Any) -> Any:
    import torch

    dtype = model.get_output_embeddings().weight.dtype
    return None if dtype is torch.float32 else dtype


def slope(decode: Callable[[int], None], tokens: int) -> float:
    """Seconds of one token step: the median of three, after everything was compiled."""
    short = max(1, tokens // 4)
    found = []
    for attempt in range(4):
        short_s, long_s = seconds(decode, short), seconds(decode, tokens)
        if attempt > 0:
            found.append((long_s - short_s) / (tokens - short))
    return statistics.median(found)


def seconds(decode: Callable[[int], None], tokens: int) -> float:
    import torch

    began = time.perf_counter()
    decode(tokens)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure_bandwidth() -> float:
    """Bytes a second that a large copy reads and writes."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.zeros(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda _: target.copy_(source), 0) for _ in range(12)]
    return 2 * source.nbytes / statistics.median(times[2:])


def floor_ms(model: Any, sequences: int, tokens: int, bandwidth: float) -> float:
    """What a step must read, at this bandwidth. Of experts, those that it is expected to use."""
    from job.model_shape import read_shape

    shape = read_shape(model.config.get_text_config().to_dict())
    expert_bytes = other_bytes = 0
    for name, weight in model.named_parameters():
        size = weight.nbytes
        if hasattr(weight, "mxfp4_scales"):
            size += weight.mxfp4_scales.nbytes
        if ".experts." in name and "lora" not in name:
            expert_bytes += size
        elif "embed_tokens" not in name or shape.tied:
            other_bytes += size
    used = 1.0
    if shape.experts:
        used = 1 - (1 - shape.top_k / shape.experts) ** sequences
    held = sum(min(window or 10**9, PROMPT_TOKENS + tokens // 2) for window in shape.windows)
    cache_bytes = 2 * 2 * sequences * held * shape.key
    return 1000 * (other_bytes + used * expert_bytes + cache_bytes) / bandwidth


def allocated_gib() -> float:
    import torch

    return torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else 0.0


def peak_gib() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0


# ---- the whole job


def measure_job(
    arguments: argparse.Namespace, overrides: list[str], folder: Path
) -> dict[str, dict[str, float]]:
    """Seconds of each part of a step of train.py, with each engine; the median without the first.

    The job runs in a process of its own.
    """
    import subprocess

    found = {}
    for engine in arguments.engines:
        run = folder / engine
        command = [
            sys.executable,
            "train.py",
            *overrides,
            f"rollout.engine={'auto' if engine == 'graph' else engine}",
            f"grpo.output_dir={run}",
            f"grpo.max_steps={arguments.steps + 1}",
            f"grpo.max_completion_length={arguments.tokens}",
            "grpo.save_steps=1000",
            "grpo.report_to=[]",
        ]
        began = time.perf_counter()
        subprocess.run(command, check=True, cwd=Path(__file__).parent.parent, stdout=sys.stderr)
        whole_s = time.perf_counter() - began
        lines = (run / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines if "time/rollout" in line]
        parts = {"first_step_s": steps[0]["step_time"], "job_s": whole_s}
        for key in ("step_time", "time/rollout", "time/grading", "time/scoring", "time/backward"):
            parts[key] = statistics.median(step[key] for step in steps[1:])
        found[engine] = parts
    return found


def print_step(step: dict[str, dict[str, float]]) -> None:
    print("\n| engine | step s | rollout | grading | scoring | backward | first step | job |")
    print("|---|---|---|---|---|---|---|---|")
    for engine, parts in step.items():
        values = [
            parts["step_time"],
            *(parts[f"time/{name}"] for name in ("rollout", "grading", "scoring", "backward")),
            parts["first_step_s"],
            parts["job_s"],
        ]
        print(f"| {engine} | " + " | ".join(f"{value:.2f}" for value in values) + " |")


# ---- comparison with an earlier run


def compare(results: dict[str, Any], baseline: dict[str, Any]) -> int:
    """1 if a step of decoding takes more than WORSE longer than in the baseline."""
    before = {}
    for row in baseline["decoding"]:
        before[row["engine"], row["sequences"], row["tokens"]] = row["step_ms"]
    if results["device"] != baseline["device"]:
        print(f"the baseline is of another device: {baseline['device']}")
    code = 0
    for row in results["decoding"]:
        old_ms = before.get((row["engine"], row["sequences"], row["tokens"]))
        if old_ms is None:
            continue
        change = row["step_ms"] / old_ms - 1
        if change > WORSE:
            print(
                f"{row['engine']}, {row['sequences']} sequences: {row['step_ms']:.2f} ms, "
                f"{change:+.0%} against {old_ms:.2f} ms"
            )
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
