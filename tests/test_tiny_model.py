"""The embedded tiny gpt-oss: small, offline, in harmony format, and reproducible by tiny_model/build.py."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import reward_functions
from reward_functions import Grader
from tasks import matmul

FOLDER = Path(__file__).parents[1] / "tiny_model"
sys.path.insert(0, str(FOLDER))

import build  # noqa: E402
import corpus  # noqa: E402

SAMPLES = 128
MAX_NEW_TOKENS = 112


def load(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return tokenizer, model.eval()


@pytest.fixture(scope="module")
def committed():
    return load(FOLDER)


def shares(tokenizer, model, sandbox) -> dict[str, float]:
    """What a sample at temperature 1 is worth, by the real grader."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": matmul.PROMPT}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"].repeat(SAMPLES, 1)
    torch.manual_seed(0)
    sampled = model.generate(prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, temperature=1.0)
    texts = tokenizer.batch_decode(sampled[:, prompt.shape[1] :])
    finals = [re.search(r"<\|channel\|>final<\|message\|>(.*?)<\|return\|>", text, re.DOTALL) for text in texts]
    options = matmul.Options(type="matmul", timing_pairs=1, timing_min_size=8, timing_max_size=8)
    answers = [final[1] if final else "" for final in finals]
    return reward_functions.shares(Grader([options], sandbox, seed=0).grade(answers, [{}] * SAMPLES))


@torch.no_grad()
def mean_log_likelihood(tokenizer, model) -> float:
    """Mean log-likelihood per completion token, in nats, on 64 corpus texts that were not trained on."""
    rng = random.Random(1)
    texts = [
        build.render(tokenizer, row, rng.choice(corpus.EFFORTS), corpus.random_date(rng))
        for row in corpus.examples(seed=1)[:64]
    ]
    pairs = [(tokenizer(prompt).input_ids, tokenizer(completion).input_ids) for prompt, completion in texts]
    return -model(**build.collate(pairs, tokenizer.pad_token_id)).loss.item()


def test_folder_is_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
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


@pytest.mark.parametrize("text", ["def f(x):\n\treturn x  # ok\n", "ß→π \U0001f600 naïve", "<|start|>user<|message|>"])
def test_tokenizer_round_trips(committed, text):
    tokenizer, _ = committed
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_it_was_taught_the_default_prompt():
    assert corpus.MATMUL_PROMPT == matmul.PROMPT


def test_prompt_renders_in_harmony_format(committed):
    tokenizer, _ = committed
    message = {"role": "user", "content": "Hello"}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True, reasoning_effort="high")
    assert "Reasoning: high" in text
    assert text.endswith("<|start|>user<|message|>Hello<|end|><|start|>assistant")


@pytest.mark.slow
def test_rebuilt_model_behaves_the_same(committed, sandbox, tmp_path):
    script = FOLDER / "build.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], check=True, timeout=480, capture_output=True)
    rebuilt = load(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == (FOLDER / "tokenizer.json").read_text()
    assert mean_log_likelihood(*rebuilt) == pytest.approx(mean_log_likelihood(*committed), abs=0.05)
    for tokenizer, model in (committed, rebuilt):
        share = shares(tokenizer, model, sandbox)
        assert 0.12 <= share["grades/correct"] <= 0.45
        assert 0.05 <= share["grades/cheating"] <= 0.30
