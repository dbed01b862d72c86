"""Does a model learn to use the interpreter? And what do tools cost a rollout?

    python benchmarks/tools.py   teaches the tiny model a few ways to answer sums, then trains it
                                 with three seeds, with the tool python
    python benchmarks/tools.py --rollout   the time of a batch whose rows each make four calls that
                                 wait, against the same tokens without calls

The tiny model can neither add nor write a program. So it is taught, by imitation, several ways to
answer "17 + 25": to run the right code and repeat its output, to run the wrong code, to write a
call that cannot be read, and to guess. Training can only make the first way likelier. That shows
that rewards reach the turns that earned them, across what the tool said. It shows no discovery.

Options: --seeds 1 2 3, --steps 40, --out FOLDER (where the taught model and the runs go).
With --rollout: --model tiny, gpt-oss-20b (random weights of that shape) or a folder,
--sequences 32, --calls 4, --tool-s 0.05, --turn-tokens 32 64 128 (on average).
"""

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

IGNORED = -100  # label of tokens that nobody is to imitate
TEACH_STEPS = 450
TEACH_BATCH = 16
TEACH_RATE = 2e-3

CONFIG = """\
model: {{name: {model}, backend: transformers, max_seq_length: 192, quantization: none}}
lora:
  r: 16
  lora_alpha: 32
  target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj]
  use_gradient_checkpointing: false
grpo:
  output_dir: {out}
  max_steps: {steps}
  per_device_train_batch_size: 32
  gradient_accumulation_steps: 1
  max_completion_length: 120
  beta: 0.0
  learning_rate: 2.0e-3
  lr_scheduler_type: constant
  warmup_steps: 0
  optim: adamw_torch
  save_steps: 1000
  seed: {seed}
  report_to: []
task:
  type: jsonl
  data: {data}
  eval_share: 0.2
  tools: [python]
  max_calls: 3
evaluate: {{rows: 64, completions: 2, share: 0.5}}
"""

# gpt-oss's format without its system message and without the tools, so that a step takes little
TEMPLATE = """\
{%- for message in messages -%}
{%- if message.tool_calls -%}
{%- set call = message.tool_calls[0].function -%}
<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>
{{- call.arguments | tojson }}<|call|>
{%- elif message.role == "tool" -%}
<|start|>functions.{{ message.name }} to=assistant<|channel|>commentary<|message|>
{{- message.content | tojson }}<|end|>
{%- elif message.role == "assistant" -%}
<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>
{%- else -%}
<|start|>user<|message|>{{ message.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
{#- The tools are not shown: it knows no others. -#}"""

Segment = tuple[str, bool]  # a text, and whether the model is to say it


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rollout", action="store_true")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--turn-tokens", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--tool-s", type=float, default=0.05)
    arguments = parser.parse_args()
    if arguments.rollout:
        return measure_rollout(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        return measure_learning(arguments.out or Path(scratch), arguments)


# ---- learning


def measure_learning(out: Path, arguments: argparse.Namespace) -> int:
    import train

    out.mkdir(parents=True, exist_ok=True)
    data = out / "sums.jsonl"
    write_sums(data)
    model = out / "taught"
    if not model.exists():
        began = time.monotonic()
        teach(model, data, sum_answers)
        print(f"taught in {time.monotonic() - began:.0f} s", flush=True)
    failed = False
    for seed in arguments.seeds:
        run = out / f"seed-{seed}"
        config = out / f"seed-{seed}.yaml"
        config.write_text(
            CONFIG.format(model=model, out=run, data=data, steps=arguments.steps, seed=seed)
        )
        began = time.monotonic()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = train.main(["--config", str(config)])
        if code != 0:
            print(printed.getvalue())
            return code
        sentence = json.loads((run / "evaluation.json").read_text())["comparison"]["sentence"]
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "episodes/calls" in line]
        calls = [f"{line['episodes/calls']:.2f}" for line in (steps[0], steps[-1])]
        print(
            f"seed {seed}: {sentence}; calls a completion {calls[0]} → {calls[1]}; "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
        rewards = [line["reward"] for line in steps]
        failed = failed or rewards[-1] <= rewards[0]
    return int(failed)


def write_sums(file: Path, count: int = 400) -> None:
    """Questions whose answers the taught model has no way to know but by running code."""
    rng = random.Random(7)
    lines = []
    for _ in range(count):
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        row = {"prompt": f"{a} + {b}", "answer": a + b, "a": a, "b": b}
        lines.append(json.dumps(row) + "\n")
    file.write_text("".join(lines))


def call(code: str) -> str:
    """A call of python as gpt-oss writes it, behind `<|start|>assistant`."""
    arguments = json.dumps({"code": code})
    return f" to=functions.python<|channel|>commentary json<|message|>{arguments}<|call|>"


def final(text: str) -> str:
    return f"<|channel|>final<|message|>{text}<|return|>"


def sum_answers(row: dict[str, Any], rng: random.Random, results: Any) -> list[Segment]:
    """One way to answer a sum.

    Args:
        results: the text that follows a call with this result.
    """
    a, b = row["a"], row["b"]
    way = rng.random()
    if way < 0.25:
        return [
            (call(f"{a} + {b}"), True),
            (results(str(a + b)), False),
            (final(f"Answer: {a + b}"), True),
        ]
    if way < 0.45:
        return [
            (call(f"{a} - {b}"), True),
            (results(str(a - b)), False),
            (final(f"Answer: {a - b}"), True),
        ]
    guess = rng.randint(20, 198)
    if way < 0.55:
        broken = call("").replace('{"code": ""}', f"{a} + {b}")
        error = "Error: the arguments are not JSON"
        return [(broken, True), (results(error), False), (final(f"Answer: {guess}"), True)]
    return [(final(f"Answer: {guess}"), True)]


def teach(
    folder: Path,
    data: Path,
    answers: Callable[[dict[str, Any], random.Random, Any], Iterable[Segment]],
    steps: int = TEACH_STEPS,
    overrides: Sequence[str] = (),
    tool: str = "python",
) -> None:
    """Train the tiny model by imitation, and save it.

    Args:
        data: rows that are asked; only those that are trained on.
        answers: one completion of a row, in segments.
        overrides: of the config, for another task than jsonl.
        tool: whose results are written.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from job.chat import Chat
    from job.config import TINY_MODEL, load_config
    from job.episodes.episode import Call, Turn
    from job.episodes.tool_format import ToolFormat
    from job.episodes.tools import schemas_of_rows
    from job.rows import mixed_rows

    torch.manual_seed(0)
    rng = random.Random(0)
    overrides = overrides or [
        "task.type=jsonl",
        f"task.data={data}",
        "task.tools=[python]",
        "task.eval_share=0.2",
    ]
    config = load_config(overrides=overrides)
    rows, _ = mixed_rows(config.tasks)
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    tokenizer.chat_template = TEMPLATE
    chat = Chat(tokenizer, config.model.prompt_date, None, schemas_of_rows(config.tasks))
    tool_format = ToolFormat(chat)

    def results(text: str) -> str:
        message = {"role": "tool", "name": tool, "content": text}
        return tool_format.following(Turn(calls=(Call(tool),)), [message])

    def example() -> tuple[list[int], list[int]]:
        row = rng.choice(rows)
        ids = chat.row_ids(row)
        labels = [IGNORED] * len(ids)
        for text, is_said in answers(row, rng, results):
            own = chat.ids(text)
            ids = ids + own
            labels += own if is_said else [IGNORED] * len(own)
        return ids, labels

    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACH_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TEACH_RATE, total_steps=steps)
    model.train()
    for step in range(steps):
        batch = [example() for _ in range(TEACH_BATCH)]
        longest = max(len(ids) for ids, _ in batch)
        pad = tokenizer.pad_token_id
        ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in batch])
        labels = torch.tensor([own + [IGNORED] * (longest - len(own)) for _, own in batch])
        # Padding stands on the right, where nothing that counts can see it
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"teaching step {step:3} loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---- the time of a rollout


RESULT_TOKENS = 16
PROMPT_TOKENS = 180


def measure_rollout(arguments: argparse.Namespace) -> int:
    """Print the time of a batch with calls and without, and their ratio."""
    import rollout as decoding
    import torch

    from job.config import load_config
    from job.model import load_model

    with tempfile.TemporaryDirectory(dir=decoding.memory_disk()) as scratch:
        name = arguments.model
        if name == "gpt-oss-20b":
            name = str(decoding.make_checkpoint(Path(scratch, name)))
        config = load_config(overrides=[f"model.name={name}", "model.max_seq_length=2048"])
        model, tokenizer = load_model(config.model, config.lora)
    model.eval()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{arguments.model} on {name}, torch {torch.__version__}: {arguments.sequences} rows, "
        f"{arguments.calls} calls of {arguments.tool_s:g} s each"
    )
    print("tokens a turn   without calls   with calls   of it idle   ratio", flush=True)
    for turn_tokens in arguments.turn_tokens:
        script = turns_of_rows(arguments.sequences, arguments.calls + 1, turn_tokens)
        rollout = open_rollout(model, tokenizer, script)
        prompt = [tokenizer.pad_token_id] * PROMPT_TOKENS
        longer = prompt + prompt[:RESULT_TOKENS] * arguments.calls
        whole = [[sum(turns)] for turns in script]
        without_s, _ = median_play(rollout, longer, whole, 0.0)
        with_s, idle_s = median_play(rollout, prompt, script, arguments.tool_s)
        print(
            f"{turn_tokens:13} {without_s:13.2f} s {with_s:10.2f} s {idle_s:10.2f} s "
            f"{with_s / without_s:7.2f}",
            flush=True,
        )
    return 0


def turns_of_rows(rows: int, turns: int, tokens: int) -> list[list[int]]:
    """Tokens of each turn of each row: drawn, half as many to half as many again."""
    rng = random.Random(1)
    return [[rng.randint(tokens // 2, tokens * 3 // 2) for _ in range(turns)] for _ in range(rows)]


def median_play(*arguments: Any) -> tuple[float, float]:
    """Of three times `play`, the one whose time is the median."""
    play(*arguments)  # captures its graphs
    return sorted(play(*arguments) for _ in range(3))[1]


def open_rollout(model: Any, tokenizer: Any, script: Sequence[Sequence[int]]) -> Any:
    """A rollout step by step, as CUDA graphs where there is a GPU. No token ends a turn."""
    import torch
    from transformers import GenerationConfig

    from job.rollout import engine

    most = max(map(sum, script))
    request = engine.Request(
        generation_config=GenerationConfig(do_sample=True, top_k=0),
        stop_ids=[],
        pad_id=tokenizer.pad_token_id,
        rows=len(script),
        tokens=PROMPT_TOKENS + most + RESULT_TOKENS * len(script[0]),
        max_new_tokens=most,
    )
    return engine.make_graph_rollout(model, request, capture=torch.cuda.is_available())[0]


def play(
    rollout: Any, prompt: list[int], script: Sequence[Sequence[int]], tool_s: float
) -> tuple[float, float]:
    """Decode rows of several turns. Between two turns a row waits for a tool, and is then extended
    by its result.

    Args:
        script: the tokens of each turn of each row.

    Returns:
        Seconds in all, and those in which no row could be decoded.
    """
    began = time.perf_counter()
    idle_s = 0.0
    left = {}
    for own in script:
        left[rollout.add(prompt, own[0], stays=len(own) > 1)] = list(own[1:])
    with ThreadPoolExecutor(len(script)) as threads:
        running: dict[Any, int] = {}
        while rollout.unfinished or running:
            for item in rollout.step():
                if left[item.row]:
                    running[threads.submit(time.sleep, tool_s)] = item.row
                else:
                    rollout.drop(item.row)
            if not running:
                continue
            waits = time.perf_counter()
            timeout_s = 0 if rollout.unfinished else None
            for done in wait(running, timeout_s, FIRST_COMPLETED).done:
                row = running.pop(done)
                rollout.extend(row, prompt[:RESULT_TOKENS], left[row].pop(0))
            idle_s += time.perf_counter() - waits
    return time.perf_counter() - began, idle_s


if __name__ == "__main__":
    sys.exit(main())
