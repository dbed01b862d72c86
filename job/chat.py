"""How a row becomes a prompt, and how what the model said becomes a message.

Three kinds of models are known, by their chat template:
    harmony     gpt-oss: messages on the channels analysis, commentary and final
    think tags  models that think between two tags and then answer: TAGS
    plain       everything else: all that is said is the answer, even where a model marks its
                thoughts in another way

Calls of tools are written in one of four formats, those that models were trained on:
    harmony     gpt-oss: a message on the channel commentary, addressed to functions.NAME, which
                ends with <|call|>. One call a turn
    hermes      Qwen 2.5 and 3, Hermes: <tool_call>{"name": ..., "arguments": ...}</tool_call>
    llama       Llama 3: the whole answer is {"name": ..., "parameters": ...}. One call a turn
    text        any other template: hermes as plain text. The first message describes the tools,
                and results come in a message of the user
"""

import datetime
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What opens and what closes thinking. Gemma 4's are special tokens, and its thoughts begin with the
# name of their channel: https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
TAGS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, ...
    ("<|channel>", "<channel|>"),
    ("[THINK]", "[/THINK]"),  # Magistral, as special tokens
)
THOUGHT = "thought\n"
MEASURED_AT_ONCE = 1000  # prompts whose tokens are held at once
# Harmony's control tokens, and what they do to a message. gpt-oss may also stop with <|endoftext|>
# (its generation_config.json). https://developers.openai.com/cookbook/articles/openai-harmony
HARMONY_MARKERS = {
    "<|start|>": "start",
    "<|message|>": "message",
    "<|end|>": "end",
    "<|return|>": "end",
    "<|call|>": "end",
    "<|endoftext|>": "end",
}
OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"
OPEN_RESULT, CLOSE_RESULT = "<tool_response>", "</tool_response>"
DESCRIPTION = """\
You may call these tools:
{tools}
To call one, write {open}{{"name": its name, "arguments": {{...}}}}{close} and stop.
Its result comes in {result}."""

Message = Mapping[str, Any]
Schema = Mapping[str, Any]  # of a tool, as transformers' get_json_schema makes it


@dataclass(frozen=True)
class Reading:
    """A completion, read. Lengths are in tokens and count the markers that belong to a part."""

    content: str  # what rewards judge: the final answer alone; empty if it was not reached
    thinking: str = ""
    reached_final: bool = True
    thinking_tokens: int = 0
    final_tokens: int = 0

    def message(self) -> dict[str, Any]:
        """The message that reward functions get.

        It has `thinking` if there is any, and `reached_final` if the answer was not reached.
        """
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.thinking:
            message["thinking"] = self.thinking
        if not self.reached_final:
            message["reached_final"] = False
        return message


@dataclass
class HarmonyMessage:
    """The tokens of one message, while they are read."""

    header: list[int] = field(default_factory=list)  # author, recipient, channel
    body: list[int] | None = None  # None: the message did not get that far
    length: int = 0  # tokens, with the markers

    def add(self, token: int, marker: str | None) -> None:
        self.length += 1
        if self.body is not None:
            self.body.append(token)
        elif marker == "message":
            self.body = []
        else:
            self.header.append(token)


class Chat:
    """The chat template of a tokenizer with everything that it is rendered with.

    Args:
        tokenizer: with a chat template.
        date: what the template is told is today, as YYYY-MM-DD. It is fixed, so that a run that is
            resumed on another day sees the same prompts.
        template_kwargs: further variables of the template, as in GRPOConfig.chat_template_kwargs.
        schemas_of: the tools that the completion of a row may call.
    """

    def __init__(
        self,
        tokenizer: Any,
        date: str,
        template_kwargs: Mapping[str, Any] | None = None,
        schemas_of: Callable[[Mapping[str, Any]], Sequence[Schema]] = lambda row: (),
    ):
        self.tokenizer = tokenizer
        template = tokenizer.chat_template or ""
        variables = dict(template_kwargs or {})
        self.unknown_kwargs = [key for key in variables if key not in template]
        self.has_effort = "reasoning_effort" in template
        self.tags = tags_in(template)
        if "<|channel|>" in template and "<|channel|>" in tokenizer.get_vocab():
            self.kind = "harmony"
        elif self.tags:
            self.kind = "think tags"
        else:
            self.kind = "plain"
        self.schemas_of = schemas_of
        self.tool_format = tool_format_of(template, self.kind)
        # The template calls strftime_now, which would read the clock. A variable of that name hides
        # the function.
        today = datetime.date.fromisoformat(date)
        self.template_kwargs = {"strftime_now": today.strftime} | variables
        # The prompts of a run repeat.
        self._cached_ids = functools.lru_cache(maxsize=65536)(self._tokenized)

    def render_row(self, row: Mapping[str, Any]) -> str:
        """The prompt of a row, with its effort and its tools.

        Raises:
            ValueError: as `render` does, or if a tool is not well-formed.
        """
        return self.render(row["prompt"], row.get("reasoning_effort"), self.schemas_of(row))

    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        """The same as tokens."""
        return self.ids(self.render_row(row))

    def render(
        self,
        messages: Sequence[Message],
        reasoning_effort: str | None = None,
        schemas: Sequence[Schema] = (),
    ) -> str:
        """The prompt as the model is given it, up to where the assistant begins.

        Args:
            schemas: of the tools that it may call.

        Raises:
            ValueError: if the template refuses the messages, a system message for instance.
        """
        variables = dict(self.template_kwargs)
        if schemas and self.tool_format == "text":
            messages = described(messages, schemas)
        elif schemas:
            variables["tools"] = list(schemas)
        if self.has_effort and reasoning_effort:
            variables["reasoning_effort"] = reasoning_effort
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False, **variables
            )
        except Exception as error:  # jinja2's, or a TypeError or KeyError from inside the template
            raise ValueError(f"the chat template refuses {messages!r}: {error}") from error

    def prompt_ids(
        self, messages: Sequence[Mapping[str, Any]], reasoning_effort: str | None = None
    ) -> list[int]:
        """The prompt as tokens."""
        return self.ids(self.render(messages, reasoning_effort))

    def prompt_lengths(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """Tokens of the prompt of each row, which holds `prompt` and `reasoning_effort`.

        Tokenizers take many texts at once faster than one by one.
        """
        lengths: list[int] = []
        for start in range(0, len(rows), MEASURED_AT_ONCE):
            texts = []
            for row in rows[start : start + MEASURED_AT_ONCE]:
                texts.append(self.render_row(row))
            distinct = list(dict.fromkeys(texts))  # a task may ask the same in all rows
            found = self.tokenizer(distinct, add_special_tokens=False, return_attention_mask=False)[
                "input_ids"
            ]
            known = dict(zip(distinct, map(len, found), strict=True))
            lengths += [known[text] for text in texts]
        return lengths

    def ids(self, text: str) -> list[int]:
        """The tokens of a rendered prompt."""
        return list(self._cached_ids(text))

    def _tokenized(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def read(self, completion_ids: Sequence[int], prompt: str = "") -> Reading:
        """What a completion thinks and what it answers.

        Args:
            completion_ids: its tokens, as a list of ids without padding.
            prompt: the rendered prompt. The templates of some models open the thinking in it.
        """
        if self.kind == "harmony":
            return self._read_harmony(completion_ids)
        ids = [token for token in completion_ids if token not in self._dropped]
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        if self.kind == "think tags":
            return self._read_thinking(text, prompt, len(completion_ids))
        return Reading(text, final_tokens=len(completion_ids))

    def _read_thinking(self, text: str, prompt: str, length: int) -> Reading:
        start, end = self.tags
        thinking, closed, answer = text.partition(end)
        # The opening tag counts wherever it is. Words in front of it must not turn the thinking
        # into an answer.
        if start not in thinking and not prompt.rstrip().endswith(start):
            return Reading(text, final_tokens=length)
        # A tag may be several tokens. So the tokens after it are counted.
        final_tokens = len(self._tokenized(answer))
        return Reading(
            content=answer.strip(),
            thinking=thinking.replace(start + THOUGHT, "").replace(start, "").strip(),
            reached_final=bool(closed),
            thinking_tokens=max(length - final_tokens, 0),
            final_tokens=final_tokens,
        )

    def _read_harmony(self, ids: Sequence[int]) -> Reading:
        """Reads the tokens, not the decoded text.

        The model can spell a marker with ordinary letters. And a call of a tool that does not parse
        must not turn the analysis into an answer.
        """
        said: dict[str, list[str]] = {"analysis": [], "final": []}
        lengths = dict.fromkeys(said, 0)
        for message in self.harmony_messages(ids):
            channel = self._channel(message)
            if channel in said:
                said[channel].append(self.tokenizer.decode(message.body))
                lengths[channel] += message.length
        answers = said["final"]
        answer = ""
        if answers:
            answer = answers[-1]  # earlier ones were drafts
        return Reading(
            content=answer,
            thinking="\n".join(said["analysis"]),
            reached_final=bool(answers),
            thinking_tokens=lengths["analysis"],
            final_tokens=lengths["final"],
        )

    def harmony_messages(self, ids: Sequence[int]) -> Iterator[HarmonyMessage]:
        """The messages of a completion; the last one may be unfinished."""
        # The prompt ends with the author of the first message.
        message = HarmonyMessage(header=list(self._tokenized("assistant")))
        for token in ids:
            marker = self._markers.get(token)
            if marker == "start" and message.body is None:
                yield message
                message = HarmonyMessage(length=1)
            elif marker == "end":
                message.length += 1
                yield message
                message = HarmonyMessage()
            else:
                message.add(token, marker)
        yield message

    def _channel(self, message: HarmonyMessage) -> str | None:
        """The channel of a message. None if it has none, or if it is an answer to a tool."""
        if message.body is None:
            return None
        parts = split_at(message.header, self._vocabulary["<|channel|>"])
        if len(parts) != 2:
            return None
        author, after = (self.tokenizer.decode(part) for part in parts)
        # The channel, and perhaps a recipient and a content type: "final <|constrain|>json"
        words = after.replace("<", " <").split()
        if not words:
            return None
        to_a_tool = any(word.startswith("to=") for word in words)
        if words[0] == "final" and (to_a_tool or author.split() != ["assistant"]):
            return None  # nobody is shown what goes to a tool
        return words[0]

    @functools.cached_property
    def _dropped(self) -> set[int]:
        """Special tokens that are left out of an answer.

        `all_special_tokens` has those that the tokenizer's settings give a role. Others are only
        flagged as special in the vocabulary, often the one that ends a turn: <end_of_turn> of
        Gemma 3, <|end|> of Phi-3, <|eom_id|> of Llama 3. Both count.

        The tags of thinking stay, also where the template knows no thinking: some tokenizers count
        them among the special tokens.
        """
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        flagged = {token for token, entry in added.items() if entry.special}
        named = self.tokenizer.convert_tokens_to_ids(self.tokenizer.all_special_tokens)
        tags = {self._vocabulary.get(tag) for tag in itertools.chain.from_iterable(TAGS)}
        return (flagged | set(named)) - tags

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    @functools.cached_property
    def _markers(self) -> dict[int, str]:
        """Token id -> what it does to a message."""
        vocabulary = self._vocabulary
        markers = {}
        for name, does in HARMONY_MARKERS.items():
            if name in vocabulary:
                markers[vocabulary[name]] = does
        return markers


def tool_format_of(template: str, kind: str) -> str:
    """The format of calls that a chat template was made for: see the head of this file."""
    if "tools" not in template:
        return "text"
    if kind == "harmony":
        return "harmony"
    if "ipython" in template and "parameters" in template:
        return "llama"
    # Some templates of Qwen have the same tags around calls in XML
    if OPEN_CALL in template and "<function=" not in template and "arguments" in template:
        return "hermes"
    return "text"


def described(messages: Sequence[Message], schemas: Sequence[Schema]) -> list[Message]:
    """The messages of a prompt whose first one says which tools there are."""
    lines = [json.dumps(schema["function"], ensure_ascii=False) for schema in schemas]
    text = DESCRIPTION.format(
        tools="\n".join(lines), open=OPEN_CALL, close=CLOSE_CALL, result=OPEN_RESULT
    )
    first = {**messages[0], "content": f"{text}\n\n{messages[0]['content']}"}
    return [first, *messages[1:]]


def tags_in(template: str) -> tuple[str, str] | None:
    """The pair of TAGS that a chat template knows, if any."""
    for start, end in TAGS:
        if end in template:
            return start, end
    return None


def split_at(tokens: Sequence[int], separator: int) -> list[list[int]]:
    """`tokens` in pieces, without the separators between them."""
    pieces: list[list[int]] = [[]]
    for token in tokens:
        if token == separator:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces
