"""chat_templates.py: templates for models that have none of their own."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from job.chat import Chat
from job.chat_templates import set_template
from job.config import ROOT, TINY_MODEL, load_config
from job.errors import ConfigError
from job.model import load_model, load_tokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "How?"},
]
TURNS = """{% for message in messages %}[{{ message.role }}]{{ message.content }}<|end|>{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""


@pytest.fixture
def tokenizer():
    """That of a base model: without a template."""
    found = AutoTokenizer.from_pretrained(TINY_MODEL)
    found.chat_template = None
    return found


@pytest.fixture
def base_model(tmp_path):
    """The tiny model without its chat template."""
    folder = shutil.copytree(TINY_MODEL, tmp_path / "base")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_plain_is_questions_and_answers(tokenizer):
    assert set_template(tokenizer, "plain", "base")
    chat = Chat(tokenizer, "2025-08-05")
    eos = tokenizer.eos_token
    assert chat.render(CONVERSATION) == (
        f"Be brief.\n\nQuestion: Why?\n\nAnswer: So.{eos}\n\nQuestion: How?\n\nAnswer:"
    )
    assert chat.read(chat.ids(f"yes{eos}")).content == "yes"


def test_chatml_ends_with_its_own_token(tokenizer):
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    assert set_template(tokenizer, "chatml", "base")
    assert tokenizer.eos_token == "<|im_end|>"
    chat = Chat(tokenizer, "2025-08-05")
    assert chat.render(CONVERSATION[1:2]) == (
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not set_template(tokenizer, "chatml", "base")  # it has it already


def test_a_token_before_every_text_stands_before_a_prompt_too(tokenizer, monkeypatch):
    tokenizer.bos_token = "<|startoftext|>"
    monkeypatch.setattr("job.chat_templates.begins_with_bos", lambda tokenizer: True)
    set_template(tokenizer, "plain", "base")
    text = Chat(tokenizer, "2025-08-05").render(CONVERSATION[1:2])
    assert text == "<|startoftext|>Question: Why?\n\nAnswer:"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for %}", "renders no conversation"),
        ("{{ messages[0].nothing.at_all }}", "renders no conversation"),
        ("Hello.", "it leaves out what the user says"),
        ("{{ messages[0].content }}", "it leaves out what the assistant says"),
    ],
)
def test_a_template_that_cannot_work_is_refused(tokenizer, tmp_path, text, message):
    file = tmp_path / "template.jinja"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^model.chat_template: {file} .*{message}"):
        set_template(tokenizer, str(file), "base")


def test_chatml_without_its_tokens_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"chatml needs <\|im_start\|>, which is not in the voc"):
        set_template(tokenizer, "chatml", "base")


def test_a_base_model_needs_a_template_and_stops_where_it_says(base_model, tmp_path):
    tiny = [f"model.name={base_model}"]
    with pytest.raises(ConfigError, match="has no chat template.*model.chat_template: plain, cha"):
        load_tokenizer(load_config(ROOT / "configs" / "tiny.yaml", tiny).model)
    with pytest.raises(ConfigError, match="^model.chat_template: there is no file of_mine, and no"):
        load_config(None, ["model.chat_template=of_mine"])

    file = tmp_path / "turns.jinja"
    file.write_text(TURNS)
    job = load_config(ROOT / "configs" / "tiny.yaml", [*tiny, f"model.chat_template={file}"])
    tokenizer = load_tokenizer(job.model)
    assert Chat(tokenizer, "2025-08-05").render(CONVERSATION[1:2]) == "[user]Why?<|end|>[assistant]"
    model, tokenizer = load_model(job.model, None)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokenizer.eos_token_id == end and end in model.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|return|>") in model.generation_config.eos_token_id
