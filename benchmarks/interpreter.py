"""What the interpreter gives a real model: trains it on sums without it and with it.

    python benchmarks/interpreter.py MODEL OUTPUT [--only with] [section.key=value ...]

MODEL is a folder or a Hub id of a small instruct model. Both runs have the same questions and the
same settings, and two worked examples in front of each question: with the interpreter these hold
calls and their results, because a small model would call nothing otherwise. The strict judge of
adversary.py reads the held-out answers before and after. It wants the last line
`Answer: <integer>`, with the right integer, and shares no code with the rewards.
OUTPUT/interpreter.json holds the figures.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train  # noqa: E402
from benchmarks import adversary, sums  # noqa: E402
from job.chat import CLOSE_CALL, CLOSE_RESULT, OPEN_CALL, OPEN_RESULT  # noqa: E402
from job.evaluation.run_evaluation import step_of  # noqa: E402

FORM = "write the result alone on a last line, in this form:\nAnswer: <integer>"
ASKED = {
    "without": f"Write the calculation on one line. Then {FORM}",
    "with": f"Work it out with the tool python. Then {FORM}",
}
# (question, calculation, result); none of these is among the questions
EXAMPLES = [
    ("What is 31 + 47?", "31 + 47", 78),
    ("A box holds 12 pens. How many pens are in 7 boxes?", "7 * 12", 84),
]

SETTINGS = """\
model: {{name: {model}, backend: transformers, quantization: none, max_seq_length: 640}}
lora: {{r: 16, lora_alpha: 32, target_modules: all-linear}}
grpo:
  output_dir: {output}
  algorithm: dr_grpo
  max_steps: 60
  save_steps: 60
  num_generations: 8
  per_device_train_batch_size: 32
  gradient_accumulation_steps: 4
  max_completion_length: 96
  learning_rate: 1.0e-4
  lr_scheduler_type: constant_with_warmup
  warmup_steps: 3
  report_to: []
task:
  type: jsonl
  data: {data}
  require_marker: true
  rewards: [correct_conclusion]
  eval_share: 0.1
  tools: {tools}
  max_calls: 3
evaluate: {{rows: 200, completions: 4, share: 0.4}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", choices=list(ASKED))
    arguments, overrides = parser.parse_known_intermixed_args()
    figures = {}
    for name in [arguments.only] if arguments.only else list(ASKED):
        code, figures[name] = measure(name, arguments.model, arguments.output, overrides)
        if code != 0:
            return code
        print(name, "the interpreter:", json.dumps(figures[name]), flush=True)
    suffix = f"_{arguments.only}" if arguments.only else ""
    path = arguments.output / f"interpreter{suffix}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(
    name: str, model: str, output: Path, overrides: list[str]
) -> tuple[int, dict[str, Any]]:
    """One run: its exit code and its figures."""
    folder = output / name
    folder.mkdir(parents=True)
    rows, _ = sums.make()
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row_of(name, row)) + "\n" for row in rows))
    tools = "[python]" if name == "with" else "[]"
    config = folder / "job.yaml"
    run = folder / "run"
    config.write_text(SETTINGS.format(model=model, output=run, data=data, tools=tools))
    began = time.monotonic()
    code = train.main(["--config", str(config), *overrides])
    if code != 0:
        return code, {}
    figures: dict[str, Any] = {"seconds": round(time.monotonic() - began)}
    answers = {asked(name, row["question"]): row["answer"] for row in rows}
    for path in sorted(run.glob("evaluation/step-*"), key=step_of):
        figures[path.name] = judged(path / "completions.parquet", answers)
    return code, figures


def asked(name: str, question: str) -> str:
    return f"{question}\n{ASKED[name]}"


def row_of(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row whose prompt shows the examples first."""
    prompt = []
    for question, calculation, result in EXAMPLES:
        prompt.append({"role": "user", "content": asked(name, question)})
        if name == "with":
            prompt += called(calculation, result)
            calculation = ""
        else:
            calculation = f"{calculation} = {result}\n"
        prompt.append({"role": "assistant", "content": f"{calculation}Answer: {result}"})
    prompt.append({"role": "user", "content": asked(name, row["question"])})
    return {"prompt": prompt, "answer": row["answer"]}


def called(calculation: str, result: int) -> list[dict[str, str]]:
    """A call and its result, as models without a format of their own write them."""
    call = json.dumps({"name": "python", "arguments": {"code": calculation}})
    return [
        {"role": "assistant", "content": f"{OPEN_CALL}{call}{CLOSE_CALL}"},
        {"role": "user", "content": f"{OPEN_RESULT}\n{result}\n{CLOSE_RESULT}"},
    ]


def judged(path: Path, answers: dict[str, int]) -> dict[str, float]:
    """Rates among the completions of an evaluation."""
    import pyarrow.parquet as parquet

    found = parquet.read_table(path).to_pylist()
    count = len(found)
    right = [adversary.strict_judge(row["answer"], answers[row["question"]]) for row in found]
    calls = sum(row.get("calls") or 0 for row in found)
    paid_wrongly = sum(
        row["correct"] and not adversary.ends_in(row["answer"], answers[row["question"]])
        for row in found
    )
    return {
        "completions": count,
        "right by the strict judge": round(sum(right) / count, 4),
        "paid as correct": round(sum(row["correct"] for row in found) / count, 4),
        "paid, and the last integer is wrong": paid_wrongly,
        "cheating": round(sum(row["cheating"] for row in found) / count, 4),
        "calls a completion": round(calls / count, 2),
        "failed calls": sum(row.get("failures") or 0 for row in found),
        "tokens": round(sum(row["tokens"] for row in found) / count, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
