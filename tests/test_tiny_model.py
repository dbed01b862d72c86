"""The embedded tiny gpt-oss: small, offline, in harmony format, and reproducible by
tiny_model/build.py."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks
from job import grading
from job.grading import Grader

FOLDER = Path(__file__).parents[1] / "tiny_model"
sys.path.insert(0, str(FOLDER))

import build  # noqa: E402
import corpus  # noqa: E402

SAMPLES = 96
MAX_NEW_TOKENS = 112


def load(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return tokenizer, model.eval()


@pytest.fixture(scope="module")
def committed():
    return load(FOLDER)


def task_options(name: str) -> tasks.Options:
    fast = (
        {"timing_pairs": 1, "timing_min_size": 8, "timing_max_size": 8} if name == "matmul" else {}
    )
    return tasks.load(name).Options(type=name, **fast)


def task_rows(options: tasks.Options) -> dict[str, dict]:
    """The task's first rows by their prompt, as many as the corpus knows problems."""
    count = {"code": len(corpus.CODE_PROMPTS), "reasoning": len(corpus.REASONING_PROBLEMS)}.get(
        options.type, 1
    )
    return {
        row["prompt"][0]["content"]: row for row in tasks.load(options.type).rows(options)[:count]
    }


def shares(tokenizer, model, sandbox, task: str) -> dict[str, float]:
    """What a sample at temperature 1 is worth, by the real grader."""
    options = task_options(task)
    rows = list(task_rows(options).values())
    torch.manual_seed(0)
    answers, columns = [], []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_tensors="pt"
        )
        prompt = prompt["input_ids"].repeat(SAMPLES // len(rows), 1)
        sampled = model.generate(
            prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, temperature=1.0
        )
        for text in tokenizer.batch_decode(sampled[:, prompt.shape[1] :]):
            final = re.search(r"<\|channel\|>final<\|message\|>(.*?)<\|return\|>", text, re.DOTALL)
            answers.append(final[1] if final else "")
            columns.append({name: value for name, value in row.items() if name != "prompt"})
    return grading.shares(Grader([options], sandbox, seed=0).grade(answers, columns))


@torch.no_grad()
def mean_log_likelihood(tokenizer, model) -> float:
    """Mean log-likelihood per completion token, in nats, on 64 corpus texts that were not trained
    on."""
    rng = random.Random(1)
    texts = [
        build.render(tokenizer, row, rng.choice(corpus.EFFORTS), corpus.random_date(rng))
        for row in corpus.examples(seed=1)[:64]
    ]
    groups = [
        (tokenizer(prompt).input_ids, [tokenizer(completion).input_ids])
        for prompt, completion in texts
    ]
    return -model(**build.collate(groups, tokenizer.pad_token_id)).loss.item()


def test_folder_is_small():
    files = [
        path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sum(path.stat().st_size for path in files) <= 3_000_000


def test_loads_offline_as_gpt_oss(committed, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("touched the network"))
    tokenizer, model = load(FOLDER)
    assert model.config.model_type == "gpt_oss"
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert len(tokenizer) == model.config.vocab_size


def test_special_tokens(committed):
    tokenizer, model = committed
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|return|>", "<|endoftext|>")
    assert all(len(tokenizer(token).input_ids) == 1 for token in build.SPECIAL_TOKENS)
    stops = tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id)
    assert stops == ["<|return|>", "<|call|>"]


@pytest.mark.parametrize(
    "text", ["def f(x):\n\treturn x  # ok\n", "ß→π \U0001f600 naïve", "<|start|>user<|message|>"]
)
def test_tokenizer_round_trips(committed, text):
    tokenizer, _ = committed
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("task", corpus.TASKS)
def test_corpus_has_the_default_prompts(task):
    _, make = corpus.TASKS[task]
    rng = random.Random(0)
    examples = [make(rng) for _ in range(200)]
    if task == "prompt_injection":
        own = corpus.INJECTION_PROMPT.replace("{agent_code}", r"[A-Z]{6}")
        assert corpus.INJECTION_PROMPT == tasks.load(task).PROMPT
        assert all(re.fullmatch(own, example.prompt) for example in examples)
    else:
        assert {example.prompt for example in examples} == task_rows(task_options(task)).keys()


@pytest.mark.parametrize("task", corpus.TASKS)
def test_answers_deserve_their_kind(sandbox, task):
    """A kind that starts with correct, wrong or cheat is judged so."""
    options = task_options(task)
    _, make = corpus.TASKS[task]
    rng = random.Random(0)
    rows = task_rows(options)
    found = {}
    for example in (make(rng) for _ in range(500)):
        if example.kind.startswith(("correct", "wrong", "cheat")):
            row = rows.get(example.prompt) or next(iter(rows.values()))
            found[example.kind, example.answer] = {
                name: value for name, value in row.items() if name != "prompt"
            }
    grades = Grader([options], sandbox, seed=0).grade(
        [answer for _, answer in found], list(found.values())
    )
    for (kind, answer), grade in zip(found, grades, strict=True):
        assert bool(grade.cheating) == kind.startswith("cheat"), answer
        assert grade.correct == kind.startswith("correct"), answer


def test_completions_beside_each_other_do_not_meet(committed):
    tokenizer, model = committed
    prompt, one, other = (
        tokenizer(text).input_ids
        for text in ("a prompt of a few words" * 20, "one", "another" * 30)
    )
    together = model(**build.collate([(prompt, [one, other])], tokenizer.pad_token_id)).logits[
        0, -len(other) :
    ]
    alone = model(torch.tensor([prompt + other])).logits[0, -len(other) :]
    assert torch.allclose(together, alone, atol=1e-4)


def test_prompt_renders_in_harmony_format(committed):
    tokenizer, _ = committed
    message = {"role": "user", "content": "Hello"}
    text = tokenizer.apply_chat_template(
        [message], tokenize=False, add_generation_prompt=True, reasoning_effort="high"
    )
    assert "Reasoning: high" in text
    assert text.endswith("<|start|>user<|message|>Hello<|end|><|start|>assistant")


def check_behaviour(tokenizer, model, sandbox):
    for task, low, high in (
        ("matmul", 0.15, 0.50),
        ("game_2048", 0.08, 0.45),
        ("code", 0.08, 0.50),
    ):
        share = shares(tokenizer, model, sandbox, task)
        assert low <= share["grades/correct"] <= high, task
        assert 0.02 <= share["grades/cheating"] <= 0.30, task


@pytest.mark.slow
def test_the_model_is_sometimes_right_and_sometimes_cheats(committed, sandbox):
    check_behaviour(*committed, sandbox)


@pytest.mark.slow
def test_a_few_steps_of_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "STEPS", 4)
    try:
        build.build(tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert (tmp_path / "tokenizer.json").read_text() == (FOLDER / "tokenizer.json").read_text()
    assert load(tmp_path)[1].num_parameters() == load(FOLDER)[1].num_parameters()


@pytest.mark.slow
@pytest.mark.skipif(
    "REBUILD_TINY_MODEL" not in os.environ,
    reason="takes minutes; set REBUILD_TINY_MODEL=1 to run it",
)
def test_rebuilt_model_behaves_the_same(committed, sandbox, tmp_path):
    script = FOLDER / "build.py"
    subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path)], check=True, capture_output=True
    )
    rebuilt = load(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == (FOLDER / "tokenizer.json").read_text()
    assert mean_log_likelihood(*rebuilt) == pytest.approx(mean_log_likelihood(*committed), abs=0.05)
    check_behaviour(*rebuilt, sandbox)
