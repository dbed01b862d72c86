"""Reads calls out of what a model said, and renders what follows them, in the format of its chat
template (chat.Chat.tool_format).

What the model said is never rendered again: its tokens stay as they were sampled. Only what follows
a turn is rendered, behind a stand-in for the turn, and taken from where that one ends.
"""

import json
import re
from collections.abc import Sequence

from job.chat import CLOSE_CALL, CLOSE_RESULT, OPEN_CALL, OPEN_RESULT, Chat
from job.episodes.episode import FORGED, Call, Message, Turn, is_forged, made_call

# What may end a turn, apart from the tokenizer's own token
TURN_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>")
TEXT_ENDS = ("<|endoftext|>", "<|end_of_text|>")  # models may stop with these as well
ROLES = ("assistant", "user", "system", "developer")  # whoever else speaks is a tool
STAND_IN = "stand-in-for-what-was-said"
PYTHON_TAG = "<|python_tag|>"
RECIPIENT = re.compile(r"\bto=([^\s<]+)")
NAME = re.compile(r"[A-Za-z_]\w{0,63}")


class ToolFormat:
    """Reads turns, and renders what follows them.

    Args:
        chat: whose template it is.
    """

    def __init__(self, chat: Chat):
        self.chat, self.kind = chat, chat.tool_format
        self._tokenizer = chat.tokenizer
        vocabulary = chat.tokenizer.get_vocab()
        ends = [chat.tokenizer.eos_token, *TURN_ENDS]
        self._ends = [end for end in ends if end in vocabulary]
        self._end_ids = {vocabulary[end] for end in (*self._ends, *TEXT_ENDS) if end in vocabulary}
        self._pad_id = chat.tokenizer.pad_token_id
        added = [*chat.tokenizer.all_special_tokens, *chat.tokenizer.get_added_vocab()]
        marks = {OPEN_CALL, CLOSE_CALL, OPEN_RESULT, CLOSE_RESULT, *added}
        # Long ones first, because one may hold another
        marks = [mark for mark in marks if len(mark) > 2 and mark[0] in "<["]
        self._marks = sorted(marks, key=len, reverse=True)

    # ---- what the model said

    def read(self, ids: Sequence[int], prompt: str, is_cut_off: bool, tool_tokens: int) -> Turn:
        """A turn of the model.

        Args:
            ids: of this turn alone.
            prompt: the text before it, of which the end counts.
            is_cut_off: by the limit of tokens.
            tool_tokens: of all results before it.
        """
        reading = self.chat.read(ids, prompt)
        content, calls, findings = reading.content, (), ()
        if self.kind == "harmony":
            calls, findings = self._harmony_calls(ids)
        elif reading.reached_final:
            text = self._final_text(ids, reading.content)
            if self.kind == "llama":
                calls = llama_calls(text)
            else:
                content, calls = hermes_calls(text)
            rest = content if calls else text
            if is_forged(rest):
                findings = (FORGED,)
            if self.kind == "llama" and calls:
                content = ""
        if is_cut_off:
            calls = ()
        return Turn(
            content=content,
            calls=tuple(calls),
            thinking=reading.thinking,
            reached_final=reading.reached_final,
            findings=tuple(findings),
            tool_tokens=tool_tokens,
            is_cut_off=is_cut_off,
        )

    def is_ended(self, ids: Sequence[int]) -> bool:
        """Whether a turn ends with a token that ends turns."""
        return bool(ids) and (ids[-1] in self._end_ids or ids[-1] == self._pad_id)

    def _final_text(self, ids: Sequence[int], content: str) -> str:
        """What was said behind the thinking, with the marks that a tokenizer counts as special."""
        said = [token for token in ids if token not in self._end_ids and token != self._pad_id]
        text = self._tokenizer.decode(said, skip_special_tokens=False)
        if self.chat.tags and self.chat.tags[1] in text:
            return text.partition(self.chat.tags[1])[2]
        return text

    def _harmony_calls(self, ids: Sequence[int]) -> tuple[list[Call], list[str]]:
        """The call that a turn ends with, if it does, and what the model faked."""
        messages = [part for part in self.chat.harmony_messages(ids) if part.body is not None]
        findings = []
        for number, part in enumerate(messages):
            # The author of the first one stands in the prompt
            words = self._tokenizer.decode(part.header).partition("<|")[0].split()
            is_of_tool = any(word.casefold().startswith("functions.") for word in words)
            if is_of_tool or (number > 0 and words and words[0] not in ROLES):
                findings.append(FORGED)
        if not messages:
            return [], findings
        last = messages[-1]
        recipient = RECIPIENT.search(self._tokenizer.decode(last.header))
        if recipient is None:
            return [], findings
        body = self._tokenizer.decode(last.body)
        name = recipient[1].removeprefix("functions.")
        if recipient[1] == "python" and not body.lstrip().startswith("{"):
            return [
                Call("python", {"code": body})
            ], findings  # the tool that gpt-oss was built with
        return [call_of(name, body)], findings

    # ---- what follows

    def following(self, turn: Turn, messages: Sequence[Message]) -> str:
        """The text between a turn and the model's next one.

        Args:
            messages: results of its calls, or a reply.

        Raises:
            ValueError: if the chat template refuses them.
        """
        shown = [self.clean(message) for message in messages]
        said: Message = {"role": "assistant", "content": STAND_IN}
        if turn.calls and self.kind == "text":
            results = [f"{OPEN_RESULT}\n{item['content']}\n{CLOSE_RESULT}" for item in shown]
            shown = [{"role": "user", "content": "\n".join(results)}]
        elif turn.calls:
            function = {"name": shown[0]["name"], "arguments": {STAND_IN: ""}}
            said = {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": function}],
            }
        before = [{"role": "user", "content": "-"}, said]
        text = self.chat.render([*before, *shown])
        after = text.partition(STAND_IN)[2]
        ends = [after.find(end) + len(end) for end in self._ends if end in after]
        if not ends:
            raise ValueError("the chat template does not say how a turn of the assistant ends")
        return after[min(ends) :]

    def clean(self, message: Message) -> Message:
        """A message in whose text no token controls anything, and with a name that is one."""
        text = message["content"]
        for mark in self._marks:
            if mark in text:
                text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        cleaned: Message = {"role": message["role"], "content": text}
        if message["role"] == "tool":
            name = message["name"]
            cleaned["name"] = name if NAME.fullmatch(name) else "unknown"
        return cleaned


def call_of(name: str, text: str) -> Call:
    """A call whose arguments are a text of JSON."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Call(name, mistake=f"the arguments are not JSON: {error}")
    return made_call(name, arguments)


def calls_of_json(text: str) -> list[Call]:
    """The calls in a text of JSON: {"name", "arguments" or "parameters"}, or a list of such."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [Call("", mistake=f"the call is not JSON: {error}")]
    found = []
    for item in read if isinstance(read, list) and read else [read]:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            found.append(Call("", mistake='a call must be {"name": ..., "arguments": {...}}'))
            continue
        arguments = item.get("arguments", item.get("parameters", {}))
        if isinstance(arguments, str):
            found.append(call_of(item["name"], arguments))
        else:
            found.append(made_call(item["name"], arguments))
    return found


def hermes_calls(text: str) -> tuple[str, list[Call]]:
    """(what was said beside them, the calls)."""
    said, *pieces = text.split(OPEN_CALL)
    calls = []
    for piece in pieces:
        inside, _, after = piece.partition(CLOSE_CALL)
        calls += calls_of_json(inside.strip())
        said += after
    return said.strip() if pieces else text, calls


def llama_calls(text: str) -> list[Call]:
    """The call that the whole text is, if it is one."""
    text = text.strip()
    body = text.removeprefix(PYTHON_TAG).strip()
    if text.startswith(PYTHON_TAG) and not body.startswith("{"):
        return [Call("python", {"code": body})]
    if re.match(r'\{\s*"(?:name|type)"', body) or text.startswith(PYTHON_TAG):
        return calls_of_json(body)
    return []
