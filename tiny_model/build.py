"""Build the embedded tiny gpt-oss: corpus, tokenizer, supervised training from scratch.

    python tiny_model/build.py [--out DIR]

Writes config.json, generation_config.json, model.safetensors (bfloat16) and the tokenizer's files
into DIR, by default this folder. Takes about 100 seconds on two cores. Deterministic on one
machine; elsewhere rounding differs a little.
"""

import argparse
import os
import random
import re
from pathlib import Path
from typing import Any

# Read when torch is imported: OpenMP threads that spin while they wait cost minutes on a busy
# machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast
from trl.chat_template_utils import gptoss_chat_template

import corpus

SEED = 3407
VOCAB_SIZE = 1024
ROW_TOKENS = 448  # a prompt with as many of its completions as fit
BATCH_SIZE = 4  # rows
STEPS = 480
LEARNING_RATE = 3e-3
SLIDING_WINDOW = 128
SPECIAL_TOKENS = [
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>",
    "<|start|>", "<|end|>", "<|message|>", "<|call|>",
]  # fmt: skip
IGNORED = -100  # label of positions that carry no loss


def render(
    tokenizer: PreTrainedTokenizerFast, example: corpus.Example, effort: str, date: str
) -> tuple[str, str]:
    """The chat template's text for one example, split into (prompt, completion)."""
    user = {"role": "user", "content": example.prompt}
    assistant = {"role": "assistant", "content": example.answer}
    if example.analysis:
        assistant["thinking"] = example.analysis
    options = {"tokenize": False, "reasoning_effort": effort}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, **options)
    text = tokenizer.apply_chat_template([user, assistant], **options)
    # The template asks the clock for the date; the corpus spreads it instead.
    dated = [
        re.sub(r"(?<=Current date: )\d{4}-\d\d-\d\d", date, part)
        for part in (prompt, text[len(prompt) :])
    ]
    return dated[0], dated[1]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE on `texts`; every harmony token is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_tokenizer(rows: list[corpus.Example]) -> PreTrainedTokenizerFast:
    names = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
    }

    def wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(
            tokenizer_object=core, chat_template=gptoss_chat_template, model_max_length=1024,
            extra_special_tokens=SPECIAL_TOKENS, clean_up_tokenization_spaces=False,
            padding_side="left", **names,
        )  # fmt: skip

    blank = wrap(Tokenizer(models.BPE()))  # renders the template, encodes nothing
    rng = random.Random(SEED)
    texts = [
        render(blank, row, rng.choice(corpus.EFFORTS), corpus.random_date(rng)) for row in rows
    ]
    # Prompts repeat and are not decoded token by token: the merges should go to the completions.
    return wrap(
        train_tokenizer(
            [prompt for prompt, _ in texts[:600]] + [completion for _, completion in texts]
        )
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> GptOssForCausalLM:
    config = GptOssConfig(
        num_hidden_layers=2, hidden_size=128, intermediate_size=128, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        vocab_size=len(tokenizer), max_position_embeddings=1024, sliding_window=SLIDING_WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return GptOssForCausalLM(config)


Group = tuple[list[int], list[list[int]]]  # the tokens of a prompt, and of completions to it


def collate(groups: list[Group], pad_token_id: int) -> dict[str, Any]:
    """Groups -> input_ids, position_ids, labels: [batch, longest]; attention masks: [batch, 1,
    longest, longest].

    A row is one prompt and all its completions, each of which sees the prompt and itself as if it
    stood alone there: a prompt is computed once, not once a completion.
    """
    longest = max(len(prompt) + sum(map(len, completions)) for prompt, completions in groups)
    input_ids = torch.full((len(groups), longest), pad_token_id)
    labels, part = torch.full_like(input_ids, IGNORED), torch.full_like(input_ids, -1)
    position_ids = torch.zeros_like(input_ids)
    for row, (prompt, completions) in enumerate(groups):
        end = 0
        for number, tokens in enumerate([prompt, *completions]):  # the prompt is part 0
            first, here = len(prompt) if number else 0, slice(end, end + len(tokens))
            input_ids[row, here] = torch.tensor(tokens)
            position_ids[row, here] = torch.arange(first, first + len(tokens))
            part[row, here] = number
            if number:
                labels[row, here] = input_ids[row, here]
            if number > 1:
                # The token before it is the last of another completion. Nothing is lost, because
                # all completions start with the same token.
                labels[row, end] = IGNORED
            end += len(tokens)
    query, key = part[:, :, None], part[:, None, :]
    seen = ((key == 0) | (key == query)) & torch.ones(longest, longest, dtype=torch.bool).tril()
    near = position_ids[:, :, None] - position_ids[:, None, :] < SLIDING_WINDOW
    masks = {"full_attention": seen, "sliding_attention": seen & near}
    hidden = torch.finfo(torch.float32).min
    masks = {name: torch.where(mask, 0.0, hidden)[:, None] for name, mask in masks.items()}
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "labels": labels,
        "attention_mask": masks,
    }


def group(tokenizer: PreTrainedTokenizerFast, rows: list[corpus.Example]) -> list[Group]:
    """Rows with the same prompt together, as many as ROW_TOKENS hold, in random order."""
    rng = random.Random(SEED)
    by_prompt: dict[str, list[corpus.Example]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row)
    groups: list[Group] = []
    for same in by_prompt.values():
        room = 0
        for row in same:
            texts = render(tokenizer, row, rng.choice(corpus.EFFORTS), corpus.random_date(rng))
            prompt, completion = (tokenizer(text).input_ids for text in texts)
            if room < len(completion):  # a new row, with this prompt's date and effort
                groups.append((prompt, []))
                room = ROW_TOKENS - len(prompt)
            groups[-1][1].append(completion)
            room -= len(completion)
    rng.shuffle(groups)
    return groups


def train(
    model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[corpus.Example]
) -> None:
    """STEPS of supervised training with the loss on completions only, over `rows` as often as that
    takes."""
    groups = group(tokenizer, rows)
    print(f"{len(rows)} examples in {len(groups)} rows", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1
    )
    model.train()
    for step in range(STEPS):
        batch = [groups[(step * BATCH_SIZE + index) % len(groups)] for index in range(BATCH_SIZE)]
        loss = model(**collate(batch, tokenizer.pad_token_id), use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step:3} loss {loss.item():.3f}", flush=True)


def build(out: Path) -> None:
    """Make the model and write it into `out`, which is created if need be."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # sums, and so the weights, depend on the number of threads
    torch.use_deterministic_algorithms(True)
    rows = corpus.examples(SEED)
    tokenizer = build_tokenizer(rows)
    model = build_model(tokenizer)
    train(model, tokenizer, rows)
    model.generation_config = GenerationConfig(
        do_sample=True,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # <|end|> closes the analysis message and must not stop generation.
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"]),
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the embedded tiny gpt-oss.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    build(parser.parse_args().out)
