"""How a row becomes a prompt, and how what the model said becomes a message: chat templates, effort, channels.

Three kinds of models are known, by their chat template:
    harmony     gpt-oss: messages on the channels analysis, commentary and final
    think tags  models that think between two tags and then answer: TAGS
    plain       everything else: all that is said is the answer, also where a model marks its thoughts in another way
"""

import datetime
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What opens and what closes thinking. Gemma 4's are special tokens, and its thoughts begin with the name of their
# channel: https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
TAGS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, ...
    ("<|channel>", "<channel|>"),
)
THOUGHT = "thought\n"


@dataclass(frozen=True)
class Reading:
    """A completion, read. Lengths are in tokens and count the markers that belong to a part."""

    content: str  # what rewards judge: the final answer alone; empty if it was not reached
    thinking: str = ""
    reached_final: bool = True
    thinking_tokens: int = 0
    final_tokens: int = 0

    def message(self) -> dict[str, str]:
        """As reward functions are given it: `thinking` if there is any, and `reached_final` if it was not."""
        thinking = {"thinking": self.thinking} if self.thinking else {}
        unfinished = {} if self.reached_final else {"reached_final": False}
        return {"role": "assistant", "content": self.content, **thinking, **unfinished}


class Chat:
    """The chat template of a tokenizer with everything that it is rendered with.

    Args:
        tokenizer: with a chat template.
        date: what the template is told is today, as YYYY-MM-DD. A fixed one, so that a run that is resumed another day
            sees the same prompts.
        template_kwargs: further variables of the template, as in GRPOConfig.chat_template_kwargs.
    """

    def __init__(self, tokenizer: Any, date: str, template_kwargs: Mapping[str, Any] | None = None):
        self.tokenizer = tokenizer
        template = tokenizer.chat_template or ""
        self.unknown_kwargs = [key for key in template_kwargs or () if key not in template]
        self.has_effort = "reasoning_effort" in template
        harmony = "<|channel|>" in template and "<|channel|>" in tokenizer.get_vocab()
        self.tags = next((pair for pair in TAGS if pair[1] in template), None)
        self.kind = "harmony" if harmony else "think tags" if self.tags else "plain"
        today = datetime.date.fromisoformat(date)
        # A variable hides the function of that name, which would read the clock.
        self.template_kwargs = {"strftime_now": today.strftime, **(template_kwargs or {})}

    def render(
        self, messages: Sequence[Mapping[str, Any]], reasoning_effort: str | None = None
    ) -> str:
        """The prompt as the model is given it, up to where the assistant begins.

        Raises:
            ValueError: if the template refuses the messages, a system message for instance.
        """
        effort = (
            {"reasoning_effort": reasoning_effort} if self.has_effort and reasoning_effort else {}
        )
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                tokenize=False,
                **self.template_kwargs | effort,
            )
        except Exception as error:  # jinja2's, or a TypeError or KeyError from inside the template
            raise ValueError(f"the chat template refuses {messages!r}: {error}") from error

    def prompt_ids(
        self, messages: Sequence[Mapping[str, Any]], reasoning_effort: str | None = None
    ) -> list[int]:
        return self.ids(self.render(messages, reasoning_effort))

    def ids(self, text: str) -> list[int]:
        """The tokens of a rendered prompt."""
        return list(self._cached_ids(text))

    @functools.lru_cache(maxsize=65536)  # noqa: B019 - there is one Chat a run
    def _cached_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def read(self, completion_ids: Sequence[int], prompt: str = "") -> Reading:
        """A completion's tokens (a list of ids, without padding) as thinking and answer. `prompt` is the rendered
        prompt, where some templates already open the thinking."""
        if self.kind == "harmony":
            return self._read_harmony(list(completion_ids))
        ids = [token for token in completion_ids if token not in self._dropped]
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        if self.kind == "plain":
            return Reading(text, final_tokens=len(completion_ids))
        start, end = self.tags
        # Wherever it is opened: words in front of the tag must not make an answer of the thinking
        opened = prompt.rstrip().endswith(start) or start in text.partition(end)[0]
        thinking, closed, answer = text.partition(end) if opened else ("", "", text)
        if opened and not closed:
            answer = ""  # all of it is thinking
        # A tag need not be one token: count what follows it instead.
        final = (
            len(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
            if opened
            else len(completion_ids)
        )
        return Reading(
            content=answer.strip() if opened else answer,
            thinking=thinking.replace(start + THOUGHT, "").replace(start, "").strip(),
            reached_final=bool(closed) or not opened,
            thinking_tokens=max(len(completion_ids) - final, 0),
            final_tokens=final,
        )

    def _read_harmony(self, ids: list[int]) -> Reading:
        """Reads the tokens, not the decoded text: the model can spell a marker with ordinary letters, and a call of a
        tool that does not parse must not turn the analysis into an answer."""
        said: dict[str, list[str]] = {"analysis": [], "final": []}
        tokens = dict.fromkeys(said, 0)
        for header, body, count in self._messages(ids):
            author, *channels = (
                self.tokenizer.decode(part)
                for part in split(header, self._vocabulary["<|channel|>"])
            )
            if body is None or len(channels) != 1:
                continue
            words = (
                channels[0].replace("<", " <").split()
            )  # the channel, and perhaps a recipient and a content type
            channel = words[0] if words else ""
            to_the_user = author.split() == ["assistant"] and not any(
                word.startswith("to=") for word in words
            )
            if channel in said and (
                to_the_user or channel != "final"
            ):  # nobody is shown what goes to a tool
                said[channel].append(self.tokenizer.decode(body))
                tokens[channel] += count
        return Reading(
            content=said["final"][-1] if said["final"] else "",
            thinking="\n".join(said["analysis"]),
            reached_final=bool(said["final"]),
            thinking_tokens=tokens["analysis"],
            final_tokens=tokens["final"],
        )

    def _messages(self, ids: list[int]) -> Iterator[tuple[list[int], list[int] | None, int]]:
        """(header, body, number of tokens) of each message; the body is None where none was begun. The prompt ends
        with the author of the first one."""
        header, body, begin = (
            self.tokenizer("assistant", add_special_tokens=False)["input_ids"],
            None,
            0,
        )
        for i, token in enumerate([*ids, None]):
            marker = self._markers.get(token)
            if token is None or marker == "end" or (marker == "start" and body is None):
                end = i + (marker == "end")
                yield header, body, end - begin
                header, body, begin = [], None, end
            elif marker == "message" and body is None:
                body = []
            else:
                (header if body is None else body).append(token)

    @functools.cached_property
    def _dropped(self) -> set[int]:
        """Special tokens that are left out of an answer: all but the tags of thinking, which some tokenizers count
        among them, also where the template knows no thinking."""
        tags = {tag for pair in TAGS for tag in pair}
        names = [name for name in self.tokenizer.all_special_tokens if name not in tags]
        return set(self.tokenizer.convert_tokens_to_ids(names))

    @functools.cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    @functools.cached_property
    def _markers(self) -> dict[int, str]:
        """Harmony's control tokens between messages: https://developers.openai.com/cookbook/articles/openai-harmony;
        gpt-oss may also stop with <|endoftext|> (its generation_config.json)."""
        names = {name: name for name in ("start", "message")}
        names |= dict.fromkeys(("end", "return", "call", "endoftext"), "end")
        return {
            self._vocabulary[f"<|{name}|>"]: what
            for name, what in names.items()
            if f"<|{name}|>" in self._vocabulary
        }


def split(tokens: Sequence[int], separator: int) -> list[list[int]]:
    """`tokens` in pieces, without the separators between them."""
    pieces: list[list[int]] = [[]]
    for token in tokens:
        if token == separator:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces
