"""Writes output folders such as a run leaves, without running anything."""

import json

import pandas
import yaml

CONFIG = {
    "model": {"name": "tiny"},
    "grpo": {"max_steps": 20, "num_generations": 4, "beta": 0.04, "hub_token": "hf_secret"},
    "task": {"type": "matmul"},
}


def metrics_of(step):
    """A line of metrics.jsonl, with signals that move with the step."""
    return {
        "step": step,
        "loss": 0.1,
        "reward": float(step),
        "reward_std": 1.0,
        "rewards/function_works/mean": step / 2,
        "rewards/function_works/std": 0.5,
        "reward_weights/function_works": 2.0,
        "grades/correct": step / 100,
        "grades/cheating": 0.1,
        "grades/status/ok": 0.75,
        "grades/status/crash": 0.25,
        "kl": 0.01,
        "entropy": 0.5,
        "completions/mean_length": 60.0,
        "num_tokens": 1000.0 * step,
        "step_time": 8.0,
        "time/rollout": 4.0,
        "time/grading": 2.0,
        "time/scoring": 1.0,
        "time/backward": 1.0,
    }


def completion(step=1, group=0, **columns):
    """A row of the table of completions."""
    return {
        "step": step,
        "prompt": "Multiply two matrices.",
        "completion": "thinking and answer",
        "thinking": "Let me see.",
        "answer": "```python\ndef matmul(A, B): ...\n```",
        "function_works": 1.0,
        "total": 2.0,
        "weights": {"function_works": 2.0},
        "group": group,
        "correct": True,
        "cheating": "",
        "status": "ok",
        "detail": "",
        "advantage": 0.5,
    } | columns


def write_completions(folder, step, rows):
    (folder / "completions").mkdir(exist_ok=True)
    table = pandas.DataFrame(rows)
    table.to_parquet(folder / "completions" / f"completions_{step:05d}.parquet")


def write_run(folder, steps=range(1, 21), rows=None):
    """A run with all its files. `rows` are the completions of its last step."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    lines = [json.dumps(metrics_of(step)) for step in steps]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    session = {
        "began": "2026-01-01T00:00:00+00:00",
        "processes": 2,
        "versions": {"torch": "2.13.0"},
        "hardware": {"processor": "a processor", "gpus": ["a GPU", "a GPU"]},
        "outcome": "finished",
    }
    (folder / "environment.json").write_text(json.dumps([session]))
    if rows is None:
        rows = [completion(total=float(i), answer=f"answer {i}") for i in range(4)]
    if rows:
        write_completions(folder, max(steps, default=1), rows)
    return folder
