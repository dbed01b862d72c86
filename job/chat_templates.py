"""Chat templates for models that have none of their own, and the token with which they end a turn.

`model.chat_template` is one of these names, or a file with a Jinja template:

    plain    Question: ... Answer: ...  An answer ends with the tokenizer's own eos. For base
             models, which know no other marker
    chatml   <|im_start|>role ... <|im_end|>  For models whose vocabulary has these two, like the
             base models of Qwen. An answer ends with <|im_end|>
"""

from pathlib import Path
from typing import Any

from job.errors import ConfigError, one_line

PLAIN = """\
{%- for message in messages %}
{%- if message.role == "system" %}
{{- message.content }}

{% elif message.role == "assistant" %}
{{- "Answer: " + message.content + eos_token }}

{% else %}
{{- "Question: " + message.content }}

{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "Answer:" }}
{%- endif %}"""

CHATML = """\
{%- for message in messages %}
{{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|im_start|>assistant\\n" }}
{%- endif %}"""

NAMED = {"plain": PLAIN, "chatml": CHATML}
# Tokens without which a named template would be spelled out letter by letter
NEEDED = {"plain": (), "chatml": ("<|im_start|>", "<|im_end|>")}
ANSWER = "An answer."


def template_mistake(name: str) -> str:
    """What is wrong with the value of `model.chat_template`, in words; empty if nothing is."""
    if name in NAMED or Path(name).expanduser().is_file():
        return ""
    names = ", ".join(NAMED)
    return f"there is no file {name}, and no template of that name; there are {names}"


def set_template(tokenizer: Any, name: str, model_name: str) -> bool:
    """Give a tokenizer a chat template, and the token that ends a turn in it as its eos.

    Args:
        name: one of NAMED, or a file.

    Returns:
        False if the tokenizer has this template already.

    Raises:
        ConfigError: if the template cannot be used with this tokenizer.
    """
    vocabulary = tokenizer.get_vocab()
    for token in NEEDED.get(name, ()):
        if token not in vocabulary:
            raise ConfigError(
                f"model.chat_template: {name} needs {token}, which is not in the vocabulary of "
                f"{model_name}; take plain, or a file"
            )
    if name in NAMED:
        template = NAMED[name]
        if begins_with_bos(tokenizer):
            template = "{{- bos_token }}\n" + template
    else:
        try:
            template = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"model.chat_template: {name} cannot be read: {one_line(error)}"
            ) from error
    if template == tokenizer.chat_template:
        return False
    tokenizer.chat_template = template
    try:
        end = turn_end(tokenizer)
    except Exception as error:  # jinja2's, or whatever the template's own code raises
        raise ConfigError(
            f"model.chat_template: {name} renders no conversation: {one_line(error)}"
        ) from error
    if end is not None:
        tokenizer.eos_token = end
    return True


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether this tokenizer puts a token in front of every text."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def turn_end(tokenizer: Any) -> str | None:
    """The special token that a chat template writes behind an answer; None if it writes none."""
    conversation = [
        {"role": "user", "content": "A question."},
        {"role": "assistant", "content": ANSWER},
    ]
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    for message in conversation:
        if message["content"] not in text:
            raise ValueError(f"it leaves out what the {message['role']} says")
    _, _, rest = text.rpartition(ANSWER)
    special = [entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special]
    for token in special:
        if rest.lstrip().startswith(token):
            return token
    return None
