"""chat.py: how prompts are rendered and how completions are read.

Prompts of gpt-oss and of other families are rendered with their own special tokens. Completions
come from harmony models, from models that think between tags, and from plain ones.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import trl
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from job.chat import Chat
from job.config import TINY_MODEL

ROOT = Path(__file__).parent.parent
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@dataclass(frozen=True)
class Family:
    """Special tokens of a family.

    Each comes with the token of the tiny model whose weights it starts from.
    """

    template: str  # a file of trl/chat_templates
    tokens: dict[str, str]
    eos: str
    bos: str | None = None
    # Added to the vocabulary, but left in decoded text
    plain_tokens: list[str] = field(default_factory=list)
    system_role: bool = True
    opening: str = ""  # what the rendered prompt ends with


CHATML = {"<|im_start|>": "<|start|>", "<|im_end|>": "<|return|>"}
THINK = ["<think>", "</think>"]
HEADERS = {
    "<|begin_of_text|>": "<|startoftext|>",
    "<|start_header_id|>": "<|start|>",
    "<|end_header_id|>": "<|message|>",
    "<|eot_id|>": "<|return|>",
}
TURNS = {"<bos>": "<|startoftext|>", "<start_of_turn>": "<|start|>", "<end_of_turn>": "<|return|>"}
GEMMA4 = {
    "<bos>": "<|startoftext|>",
    "<|turn>": "<|start|>",
    "<turn|>": "<|return|>",
    "<|channel>": "<|channel|>",
}
GEMMA4 |= {"<channel|>": "<|message|>"}
PHI = {"<|system|>": "<|start|>", "<|user|>": "<|start|>", "<|assistant|>": "<|start|>"}
DEEPSEEK = {"<｜begin▁of▁sentence｜>": "<|startoftext|>", "<｜end▁of▁sentence｜>": "<|return|>"}
DEEPSEEK |= {"<｜User｜>": "<|start|>", "<｜Assistant｜>": "<|start|>"}

FAMILIES = {
    "qwen2_5": Family("qwen2_5", CHATML, "<|im_end|>", opening="<|im_start|>assistant\n"),
    "qwen3": Family("qwen3", CHATML, "<|im_end|>", None, THINK, opening="<|im_start|>assistant\n"),
    "llama3": Family(
        "llama3",
        HEADERS,
        "<|eot_id|>",
        "<|begin_of_text|>",
        opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama3_1": Family(
        "llama3_1",
        HEADERS,
        "<|eot_id|>",
        "<|begin_of_text|>",
        opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": Family(
        "gemma",
        TURNS,
        "<end_of_turn>",
        "<bos>",
        system_role=False,
        opening="<start_of_turn>model\n",
    ),
    "gemma3": Family("gemma3", TURNS, "<end_of_turn>", "<bos>", opening="<start_of_turn>model\n"),
    "gemma4": Family("gemma4", GEMMA4, "<turn|>", "<bos>", opening="<|turn>model\n"),
    "phi3": Family("phi3", PHI, "<|end|>", opening="<|assistant|>\n"),
    "deepseek_r1_distill": Family(
        "deepseek_r1_distill",
        DEEPSEEK,
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        THINK,
        opening="<｜Assistant｜><think>\n",
    ),
}


def tokenizer_of(family):
    """The tiny model's tokenizer with the family's template and special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": list(family.tokens)}, replace_extra_special_tokens=False
    )
    tokenizer.add_tokens(family.plain_tokens)
    tokenizer.eos_token, tokenizer.bos_token = family.eos, family.bos
    tokenizer.chat_template = (TEMPLATES / f"{family.template}.jinja").read_text(encoding="utf-8")
    return tokenizer


def save_model(family, folder):
    """A copy of the tiny model that speaks the family's tokens.

    Each takes over the weights of the token that it stands for. So the programs that the model
    knows also come behind the other template, and end with its eos.
    """
    tokenizer = tokenizer_of(family)
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
    torch.manual_seed(0)  # of the new rows
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            for pair in family.tokens.items():
                new, old = tokenizer.convert_tokens_to_ids(pair)
                matrix[[new, old]] = matrix[[old, new]]
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.bos_token_id = (
            tokenizer.eos_token_id,
            tokenizer.bos_token_id,
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


USER, SYSTEM = {"role": "user", "content": "Say hi."}, {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_is_rendered_with_the_familys_own_tokens(name):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    messages = [SYSTEM, USER] if family.system_role else [USER]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text.endswith(family.opening) and all(
        text.count(message["content"]) == 1 for message in messages
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    for token in [*family.tokens, *family.plain_tokens]:
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == text.count(token)
    if family.bos:
        assert ids[0] == tokenizer.bos_token_id and ids.count(ids[0]) == 1


def test_a_family_without_a_system_role_refuses_one():
    for family in FAMILIES.values():
        if not family.system_role:
            with pytest.raises(
                ValueError, match="the chat template refuses .*System role not supported"
            ):
                Chat(tokenizer_of(family), "2025-08-05").render([SYSTEM, USER])


@pytest.fixture(scope="module")
def harmony():
    return Chat(AutoTokenizer.from_pretrained(TINY_MODEL), "2025-08-05")


EFFORTS = ("low", "medium", "high")


def test_effort_and_date_are_the_only_variables_of_a_prompt(harmony):
    prompts = {effort: harmony.render([USER], effort).splitlines() for effort in EFFORTS}
    for effort, lines in prompts.items():
        assert lines.count(f"Reasoning: {effort}") == lines.count("Current date: 2025-08-05") == 1
        assert [line for line in lines if line not in prompts["medium"]] == [
            f"Reasoning: {effort}"
        ] * (effort != "medium")
    assert (
        harmony.prompt_ids([USER], "high")
        == harmony.tokenizer(harmony.render([USER], "high"))["input_ids"]
    )
    other = Chat(harmony.tokenizer, "2031-12-24").render([USER], "low")
    assert other == harmony.render([USER], "low").replace("2025-08-05", "2031-12-24")


def test_the_date_of_llama_is_pinned_and_a_template_variable_of_the_config_wins():
    tokenizer = tokenizer_of(replace(FAMILIES["llama3_1"], template="llama3_2"))
    chat = Chat(tokenizer, "2025-08-05")
    assert "Today Date: 05 Aug 2025" in chat.render([USER], "low") and not chat.has_effort
    assert "Today Date: never" in Chat(tokenizer, "2025-08-05", {"date_string": "never"}).render(
        [USER]
    )


def test_thinking_can_be_switched_off_where_the_template_knows_how():
    chat = Chat(tokenizer_of(FAMILIES["qwen3"]), "2025-08-05", {"enable_thinking": False})
    assert chat.render([USER]).endswith("<think>\n\n</think>\n\n")
    reading = chat.read(
        chat.tokenizer("yes", add_special_tokens=False)["input_ids"], chat.render([USER])
    )
    assert reading.content == "yes" and reading.reached_final


A, F, E = (
    "<|channel|>analysis<|message|>",
    "<|channel|>final<|message|>",
    "<|end|><|start|>assistant",
)
HARMONY = [  # what was said, its answer, its thinking, whether the answer was reached
    (f"{A}hm{E}{F}yes<|return|>", "yes", "hm", True),
    (f"{F}yes<|return|>", "yes", "", True),
    (f"{F}ye", "ye", "", True),  # cut off in the answer
    (F, "", "", True),
    (f"{A}is it 5", "", "is it 5", False),  # cut off in the analysis
    (f"{A}hm{E}", "", "hm", False),
    (f"{A}hm<|end|>", "", "hm", False),
    ("no channel at all", "", "", False),
    ("<|channel|>fin", "", "", False),
    ("", "", "", False),
    (f"{A}one{E}{A}two{E}{F}yes<|return|>", "yes", "one\ntwo", True),
    (f"{F}draft{E}{F}yes<|return|>", "yes", "", True),  # the last is the answer
    (f"{F}yes{E}{A}more", "yes", "more", True),
    (f"<|channel|>commentary<|message|>aside{E}{F}yes<|return|>", "yes", "", True),
    ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "{}", "", True),
    ("<|channel|>final<|constrain|>json<|message|>{}<|return|>", "{}", "", True),
    (f"{F}345<|endoftext|>", "345", "", True),
    (
        f"{A}a secret{E} to=functions.f<|channel|>commentary json<|message|>{{not json<|call|>",
        "",
        "a secret",
        False,
    ),
    (f"{A}{F}yes", "", f"{F}yes", False),  # a marker inside a message opens nothing
    (f"{A}hm<|start|>assistant{F}yes", "", f"hm<|start|>assistant{F}yes", False),
    (f"{A}hm<|end|><|start|>user{F}yes<|return|>", "", "hm", False),  # said as somebody else,
    (f"{A}hm<|end|><|start|>functions.f to=assistant{F}yes<|return|>", "", "hm", False),
    (f" to=functions.f{F}yes<|call|>", "", "", False),  # or to a tool
    ("<|channel|>final to=functions.f<|message|>yes<|call|>", "", "", False),
    (f"junk{F}yes<|return|>", "", "", False),  # no author
    (f"{A}hm<|end|>{F}yes<|return|>", "", "hm", False),
    (f"<|channel|>analysis{F}yes<|return|>", "", "", False),  # two channels
]


@pytest.mark.parametrize(
    ("said", "content", "thinking", "reached"), HARMONY, ids=[row[0][:60] for row in HARMONY]
)
def test_the_answer_of_a_harmony_model_is_its_final_channel(
    harmony, said, content, thinking, reached
):
    ids = harmony.tokenizer(said, add_special_tokens=False)["input_ids"]
    reading = harmony.read(ids)
    assert (reading.content, reading.thinking, reading.reached_final) == (
        content,
        thinking,
        reached,
    )
    assert 0 <= reading.thinking_tokens + reading.final_tokens <= len(ids)
    assert (reading.final_tokens > 0) == reached and reading.thinking_tokens >= len(thinking) // 8


PIECES = [
    *("<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>"),
    *("<|constrain|>", "assistant", "final", "analysis", " to=f", "yes"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_any_sequence_of_markers_is_read(harmony, pieces):
    said = "".join(pieces)
    reading = harmony.read(harmony.tokenizer(said, add_special_tokens=False)["input_ids"])
    assert reading.content in said and all(part in said for part in reading.thinking.split("\n"))
    assert reading.reached_final or not (reading.content or reading.final_tokens)
    if reading.reached_final:
        assert "final" in said and "<|message|>" in said


def test_markers_that_are_spelled_out_are_text(harmony):
    pieces = [
        harmony.tokenizer(part, add_special_tokens=False)["input_ids"]
        for part in ("<|chan", "nel|>final<|mess", "age|>5")
    ]
    reading = harmony.read([token for piece in pieces for token in piece])
    assert reading.content == "" and not reading.reached_final


THINKING = [  # family, what was said, its answer, its thinking, whether the answer was reached
    ("qwen3", "<think>\nhm\n</think>\n\nyes<|im_end|>", "yes", "hm", True),
    ("qwen3", "<think>\nhm", "", "hm", False),
    ("qwen3", "yes<|im_end|>", "yes", "", True),
    (
        "qwen3",
        "the tag </think> closes nothing<|im_end|>",
        "the tag </think> closes nothing",
        "",
        True,
    ),
    # Nothing is hidden behind a second tag
    ("qwen3", "<think>a</think>b</think>c<|im_end|>", "b</think>c", "a", True),
    # Words in front change nothing
    ("qwen3", "Sure. <think>hm</think>yes<|im_end|>", "yes", "Sure. hm", True),
    ("qwen3", "Sure. <think>hm", "", "Sure. hm", False),
    ("deepseek_r1_distill", "hm</think>yes", "yes", "hm", True),  # the prompt opens the thinking
    ("deepseek_r1_distill", "hm", "", "hm", False),
    # Tags that are special tokens
    ("gemma4", "<|channel>thought\nhm\n<channel|>yes<turn|>", "yes", "hm", True),
    # What it says where thinking is off
    ("gemma4", "<|channel>thought\n<channel|>yes<turn|>", "yes", "", True),
    ("gemma4", "<|channel>thought\nhm", "", "hm", False),
    ("gemma4", "a thought\nyes<turn|>", "a thought\nyes", "", True),
    # Knows no thinking: all is said
    ("qwen2_5", "<think>hm</think>yes<|im_end|>", "<think>hm</think>yes", "", True),
]


@pytest.mark.parametrize(("family", "said", "content", "thinking", "reached"), THINKING)
def test_the_answer_stands_behind_the_thinking(family, said, content, thinking, reached):
    chat = Chat(tokenizer_of(FAMILIES[family]), "2025-08-05")
    ids = chat.tokenizer(said, add_special_tokens=False)["input_ids"]
    reading = chat.read(ids, chat.render([USER]))
    assert (reading.content, reading.thinking, reading.reached_final) == (
        content,
        thinking,
        reached,
    )
    assert reading.thinking_tokens + reading.final_tokens == len(ids)
    # Empty thinking has tags
    assert (reading.thinking_tokens > 0) == (not content or not said.startswith(content))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen3", "<think>hm</think>yes<|im_end|>"),
        ("gemma4", "<|channel>thought\nhm<channel|>yes<turn|>"),
    ],
)
def test_tags_that_are_special_tokens_are_seen_and_other_special_tokens_are_left_out(name, said):
    tags = FAMILIES[name].plain_tokens
    tokenizer = tokenizer_of(FAMILIES[name])
    tokenizer.add_special_tokens({"extra_special_tokens": tags}, replace_extra_special_tokens=False)
    assert set(tags) <= set(tokenizer.all_special_tokens)
    chat = Chat(tokenizer, "2025-08-05")
    reading = chat.read(tokenizer(said, add_special_tokens=False)["input_ids"])
    assert (reading.content, reading.thinking, reading.reached_final) == ("yes", "hm", True)


@dataclass(frozen=True)
class Published:
    """What the files of a model's tokenizer say of its added tokens.

    Some of them have no role in tokenizer_config.json and are still flagged as special in
    tokenizer.json.
    """

    roles: dict[str, object]  # of tokenizer_config.json
    special: list[str]
    ends: list[str]  # what a completion can end with
    plain: list[str] = field(default_factory=list)  # added, and part of the text


# From the tokenizer_config.json and tokenizer.json of the models named behind each
PUBLISHED = {
    "gemma": Published(  # google/gemma-3-1b-it
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        ["<end_of_turn>", "<eos>"],
        ["<unused0>", "<table>"],
    ),
    "phi3": Published(  # microsoft/Phi-3-mini-4k-instruct
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"},
        ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
        ["<|end|>", "<|endoftext|>"],
    ),
    "phi4": Published(  # microsoft/phi-4
        {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endofprompt|>"],
        ["<|im_end|>", "<|endoftext|>"],
    ),
    "llama3": Published(  # meta-llama/Llama-3.1-8B-Instruct
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"],
        ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"],
    ),
    "qwen3": Published(  # Qwen/Qwen3-0.6B; Qwen2.5 lacks the last three
        {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|box_start|>"],
        },
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|box_start|>"],
        ["<|im_end|>", "<|endoftext|>"],
        ["<tool_call>", "</tool_call>", "<tool_response>", "<think>", "</think>"],
    ),
    "mistral": Published(  # mistralai/Mistral-7B-Instruct-v0.3
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[control_8]"],
        ["</s>"],
    ),
    "gpt-oss": Published(  # openai/gpt-oss-20b
        {"eos_token": "<|return|>", "pad_token": "<|endoftext|>", "bos_token": "<|startoftext|>"},
        ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|call|>", "<|end|>", "<|start|>"],
        ["<|return|>", "<|call|>", "<|endoftext|>"],
    ),
    "smollm2": Published(  # HuggingFaceTB/SmolLM2-135M-Instruct
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"],
        ["<|im_end|>", "<|endoftext|>"],
    ),
    "deepseek": Published(  # deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
        {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|EOT|>"],
        ["<｜end▁of▁sentence｜>", "<|EOT|>"],
        ["<｜User｜>", "<think>", "</think>", "<tool_call>"],
    ),
}


def published_tokenizer(settings, folder):
    """A tokenizer with these settings: the tiny model's words, and the family's added tokens."""
    backend = json.loads((TINY_MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, added = backend["model"]["vocab"], []
    for token in backend["added_tokens"]:
        vocabulary.pop(token["content"], None)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    first = max(vocabulary.values()) + 100
    for i, token in enumerate([*settings.special, *settings.plain]):
        is_special = token in settings.special
        added.append({"id": first + i, "content": token, "special": is_special} | flags)
    backend["added_tokens"] = added
    (folder / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")
    roles = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings.roles
    (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_ends_a_turn_is_no_part_of_the_answer_by_the_familys_own_settings(name, tmp_path):
    settings = PUBLISHED[name]
    tokenizer = published_tokenizer(settings, tmp_path)
    chat = Chat(tokenizer, "2025-08-05")
    assert chat.kind == "plain"  # without a template that knows channels or thinking
    for end in settings.ends:
        ids = tokenizer(f"yes{end}", add_special_tokens=False)["input_ids"]
        assert ids[-1] == tokenizer.convert_tokens_to_ids(end)
        assert chat.read(ids).content == "yes", end
    for token in settings.plain:
        ids = tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"]
        assert chat.read(ids).content == f"a{token}b"


def test_some_turn_ends_have_no_role_but_their_flag(tmp_path):
    """The test above would say nothing if every end were among `all_special_tokens`."""
    without_role = {}
    for name, settings in PUBLISHED.items():
        (tmp_path / name).mkdir()
        known = published_tokenizer(settings, tmp_path / name).all_special_tokens
        without_role[name] = set(settings.ends) - set(known)
    assert without_role["gemma"] == {"<end_of_turn>"} and without_role["phi3"] == {"<|end|>"}
    assert without_role["llama3"] == {"<|eom_id|>", "<|end_of_text|>"}


def test_the_thinking_of_magistral_is_no_part_of_its_answer(tmp_path):
    tags = ["[THINK]", "[/THINK]"]  # flagged as special, like all that they stand beside
    settings = Published({"eos_token": "</s>"}, ["</s>", "[INST]", "[/INST]", *tags], ["</s>"])
    tokenizer = published_tokenizer(settings, tmp_path)
    tokenizer.chat_template = (
        "{% for message in messages %}[INST]{{ message.content }}[/INST]{% endfor %}"
        "{# An answer begins with [THINK]...[/THINK] #}"
    )
    ids = tokenizer("[THINK]hm[/THINK]yes</s>", add_special_tokens=False)["input_ids"]
    reading = Chat(tokenizer, "2025-08-05").read(ids)
    assert (reading.content, reading.thinking, reading.reached_final) == ("yes", "hm", True)


@pytest.mark.parametrize(
    "piece", ["<|start|>", "<|channel|>", "<|message|>", "a", f"{A}hm{E}", f"{F}hm{E}"]
)
def test_a_long_completion_is_read_in_linear_time(harmony, times_as_much, piece):
    ids = harmony.tokenizer(piece, add_special_tokens=False)["input_ids"]
    # 20 times as long: quadratic work would take 400 times as much
    assert times_as_much(harmony.read, ids * 2_000, ids * 40_000) < 100


def test_a_refused_message_is_a_mistake_of_the_config(tmp_path, run_job):
    save_model(FAMILIES["gemma"], tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": [SYSTEM, USER], "answer": 1}) + "\n")
    result = run_job(
        "--dry-run",
        "--config",
        "configs/tiny.yaml",
        f"model.name={tmp_path / 'model'}",
        "task.type=jsonl",
        f"task.data={tmp_path / 'rows.jsonl'}",
    )
    assert result.returncode == 2 and "System role not supported" in result.stderr


SPY = """
import json

def spy(completions, prompts, completion_ids, grades):
    with open({path!r}, "a") as file:
        for completion, prompt, ids, grade in zip(completions, prompts, completion_ids, grades):
            print(json.dumps([completion, prompt, ids, grade.code]), file=file)
    return [0.0] * len(completions)
"""


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma"])
def test_a_step_is_trained_on_what_the_model_said_without_its_markers(
    name, tmp_path, run_job, monkeypatch
):
    family = FAMILIES[name]
    save_model(family, tmp_path / "model")
    (tmp_path / "spying.py").write_text(SPY.format(path=str(tmp_path / "seen.jsonl")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spying", raising=False)
    result = run_job(
        "--config",
        "configs/tiny.yaml",
        f"grpo.output_dir={tmp_path / 'run'}",
        f"model.name={tmp_path / 'model'}",
        "grpo.max_steps=1",
        "grpo.per_device_train_batch_size=8",
        "grpo.num_generations=8",
        "task.timing_pairs=1",
        "task.check=false",
        "task.rewards=[correctness_check, 'spying:spy']",
    )
    assert result.returncode == 0, result.stderr
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").open(encoding="utf-8")]
    seen = seen[-8:]  # before them come two answers on which the function is tried
    assert len(seen) == 8
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    markers = [
        token
        for token in tokenizer.all_special_tokens
        if token in tokenizer.chat_template or token == family.eos
    ]
    for (message,), prompt, ids, _ in seen:
        assert message["role"] == "assistant" and [turn["role"] for turn in prompt] == ["user"]
        assert message["content"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert not any(marker in message["content"] for marker in markers)
    said = [tokenizer.decode(ids) for _, _, ids, _ in seen]
    assert any(text.endswith(family.eos) for text in said)  # so there was a marker to take out
    assert any(code for *_, code in seen)
