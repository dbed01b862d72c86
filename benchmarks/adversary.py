"""Lets a real model attack the rewards: trains it on sums, then looks at what it is paid for.

    python benchmarks/adversary.py MODEL OUTPUT [--steps 90] [section.key=value ...]

MODEL is a folder or a Hub id of a small instruct model. Its held-out answers are sampled before
and after training, and two judges read them: the rewards of the job, and a strict one that shares
no code with them. The strict judge wants the last line `Answer: <integer>` to hold that integer and
nothing else. Printed are both rates before and after, the best-paid completions, and every
completion that the rewards pay and the strict judge refuses: each of those must be right to a
human reader. OUTPUT/adversary.json holds all of it.
"""

import argparse
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train  # noqa: E402
from benchmarks import sums  # noqa: E402
from job.chat import Chat  # noqa: E402
from job.config import Config, load_config  # noqa: E402
from job.grading import Grader  # noqa: E402
from job.grading_pool import GradingPool  # noqa: E402
from job.model import load_model, load_trained  # noqa: E402
from job.rollout import engine, generate  # noqa: E402

SHOWN = 10  # of the best-paid completions
BATCH = 256  # completions decoded at once
INTEGER = re.compile(r"-?\d+")
MARKED_LINE = re.compile(r"Answer: (-?\d{1,15})")

# What the run is asked for; the command line may change it.
SETTINGS = [
    "task.type=jsonl",
    "task.require_marker=true",
    "task.rewards=[correct_conclusion]",
    f"task.num_rows={sums.TRAIN_ROWS}",
    "lora.r=16",
    "lora.lora_alpha=32",
    "lora.target_modules=all-linear",
    "grpo.algorithm=dr_grpo",
    "grpo.learning_rate=1.0e-4",
    "grpo.lr_scheduler_type=constant",
    "grpo.warmup_steps=0",
    "grpo.num_generations=8",
    "grpo.per_device_train_batch_size=32",
    "grpo.gradient_accumulation_steps=4",
    "grpo.max_completion_length=72",
    "grpo.save_strategy=no",
    "model.backend=transformers",
    "model.quantization=none",
    "model.max_seq_length=256",
]


@dataclass(frozen=True)
class Judged:
    """One held-out completion and what the two judges say."""

    question: str
    answer: int
    completion: str
    paid: float  # total of the rewards
    correct: bool  # by the job's own judge
    strict: bool
    last_integer: bool  # the last integer of the text is the answer, whatever stands around it


def strict_judge(completion: str, answer: int) -> bool:
    """Whether the last line that begins with "Answer:" holds the expected integer alone."""
    lines = [line.strip() for line in completion.splitlines()]
    marked = [line for line in lines if line.startswith("Answer:")]
    match = MARKED_LINE.fullmatch(marked[-1]) if marked else None
    return match is not None and int(match[1]) == answer


def ends_in(completion: str, answer: int) -> bool:
    """Whether the last integer of a text is the answer: accuracy without any form."""
    found = INTEGER.findall(completion.replace(",", ""))
    return bool(found) and int(found[-1][:20]) == answer


def sample(
    model: Any, tokenizer: Any, job: Config, rows: list[dict[str, Any]], seed: int
) -> list[str]:
    """One completion for each row, at temperature 1, read as rewards read it."""
    import torch

    chat = Chat(tokenizer, job.model.prompt_date, job.grpo.get("chat_template_kwargs"))
    tokens = job.grpo["max_completion_length"]
    rollout, _ = engine.make_rollout(
        model, tokenizer, job.rollout, rows=BATCH, max_new_tokens=tokens, do_sample=True
    )
    torch.manual_seed(seed)
    answers = []
    for start in range(0, len(rows), BATCH):
        texts = [
            chat.render([{"role": "user", "content": row["prompt"]}])
            for row in rows[start : start + BATCH]
        ]
        completions = generate(rollout, [chat.ids(text) for text in texts])
        for ids, text in zip(completions, texts, strict=True):
            answers.append(chat.read(ids, text).content)
    return answers


def judge(job: Config, rows: list[dict[str, Any]], completions: list[str]) -> list[Judged]:
    with GradingPool.of(job.sandbox) as pool:
        grader = Grader(job.tasks, pool)
        columns = [{"answer": row["answer"]} for row in rows]
        scored = grader.score(completions, columns)
    weights = grader.weights.at(0)
    return [
        Judged(
            row["question"],
            row["answer"],
            text,
            item.total(weights),
            item.grade.correct,
            strict_judge(text, row["answer"]),
            ends_in(text, row["answer"]),
        )
        for row, text, item in zip(rows, completions, scored, strict=True)
    ]


def rates(judged: list[Judged]) -> dict[str, float]:
    count = len(judged)
    paid = [item for item in judged if item.correct]
    return {
        "completions": count,
        "correct": len(paid) / count,
        "strictly correct": sum(item.strict for item in judged) / count,
        "last integer is right": sum(item.last_integer for item in judged) / count,
        "paid, though not strictly correct": sum(not item.strict for item in paid) / count,
        "paid, though the last integer is wrong": sum(not item.last_integer for item in paid)
        / count,
        "repeats the question": sum(item.question in item.completion for item in paid) / count,
    }


def show(judged: list[Judged]) -> None:
    print(f"\nthe {SHOWN} best-paid completions")
    for item in sorted(judged, key=lambda item: -item.paid)[:SHOWN]:
        print(f"  {item.paid:6.2f}  {item.question!r} -> {item.completion!r}")
    disputed = [item for item in judged if item.correct and not item.strict]
    print(f"\npaid, and refused by the strict judge: {len(disputed)}")
    for item in disputed:
        print(f"  {item.question!r} ({item.answer}) -> {item.completion!r}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder or a Hub id")
    parser.add_argument("output", type=Path, help="a folder for the data, the run and the result")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--samples", type=int, default=4, help="completions a held-out row")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()

    # The data and the job
    training, test = sums.write(arguments.output / "sums")
    run = arguments.output / "run"
    settings = [
        *SETTINGS,
        f"model.name={arguments.model}",
        f"task.data={training.resolve()}",
        f"grpo.max_steps={arguments.steps}",
        f"grpo.output_dir={run.resolve()}",
        *arguments.overrides,
    ]
    job = load_config(overrides=settings)
    rows = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows for _ in range(arguments.samples)]

    # Before
    model, tokenizer = load_model(job.model, job.lora)
    before = judge(job, rows, sample(model.eval(), tokenizer, job, rows, seed=1))
    print("before:", json.dumps(rates(before)), flush=True)
    del model

    # Training
    began = time.monotonic()
    exit_code = train.main(settings)
    train_s = time.monotonic() - began
    if exit_code:
        return exit_code

    # After
    model, tokenizer = load_trained(run / "final_model")
    after = judge(job, rows, sample(model, tokenizer, job, rows, seed=1))
    show(after)
    result = {"before": rates(before), "after": rates(after), "steps": arguments.steps}
    result["train_s"] = round(train_s, 1)
    print(f"\n{json.dumps(result, indent=1)}")
    result["completions"] = [asdict(item) for item in after]
    (arguments.output / "adversary.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
