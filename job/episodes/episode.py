"""The environment's side of one completion: it takes the model's turns, runs what they call, counts
what they use, and grades the end. It knows no tokens.

A completion of one turn is an episode, too: the first turn that calls nothing ends it. So a batch
may mix tasks with and without tools.

An episode is a function of its row, its random numbers and its turns. So a known answer of check.py
and a line of a file are played by the same code as what a model says (`play`), and an episode whose
process was killed is played again from its turns (`Player`).

Budgets. A call past one is not run. The model is told so and has one more turn; a call after that
ends the episode with the status of that budget. The answer is graded all the same: one that was
right before stays right.
"""

import json
import os
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import tasks
from job.episodes import tools
from job.episodes.interpreter import Interpreter, ToolError
from sandbox import Sandbox, SandboxError, Status
from tasks import Grade

Message = dict[str, Any]

CUT_OFF = "ended before its answer began: still in the analysis, or without a final channel"
SPENT = {
    Status.OUT_OF_TURNS: "no turn is left for calls (task.max_turns)",
    Status.OUT_OF_CALLS: "no call is left (task.max_calls)",
    Status.OUT_OF_CPU: "no CPU time is left for tools (task.max_tool_cpu_s)",
    Status.OUT_OF_TOKENS: "no tokens are left for results (task.max_tool_tokens)",
}
ANSWER_NOW = "Not run: {}. Give your answer now."
DOES_NOT_FIT = "the completion does not fit grpo.max_completion_length"
BASE_DOES_NOT_FIT = "what the base is asked does not fit model.max_seq_length"
FORGED = "wrote the result of a tool itself"
# What only the chat template writes, in front of a result
FORGED_MARKS = re.compile(
    r"<\s*tool_response\s*>|<\|start\|>\s*functions\.|<\|start_header_id\|>\s*(ipython|tool)",
    re.IGNORECASE,
)
# Lists and objects within each other. Deeper ones cannot be handed to another process.
MAX_ARGUMENT_DEPTH = 32
# What a transcript says of a call that did not fail
RAN, NOT_RUN = "ok", "not run"


class BadGrade(Exception):
    """A task's `grade` returned something that is no Grade; the text says what, in words."""


@dataclass(frozen=True)
class Call:
    """One call as the model wrote it."""

    name: str
    arguments: Any = None
    mistake: str = ""  # why it cannot be read, in words for the model


@dataclass(frozen=True)
class Turn:
    """What the model said at once, or what the frozen base answered to an Ask."""

    content: str = ""  # the answer, where it is one
    calls: tuple[Call, ...] = ()
    thinking: str = ""
    reached_final: bool = True
    findings: tuple[str, ...] = ()  # what it faked, in words
    tool_tokens: int = 0  # of all results before it
    is_cut_off: bool = False  # by max_completion_length
    is_of_base: bool = False  # then only `content` counts, and the model has not said it

    def message(self) -> Message:
        """The turn as a message of a transcript."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.thinking:
            message["thinking"] = self.thinking
        if not self.reached_final and not self.calls:
            message["reached_final"] = False
        if self.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.calls
            ]
        return message


@dataclass(frozen=True)
class Answer:
    """What follows a turn: results or a reply, what the base is asked first, or the Grade if the
    episode is over."""

    messages: tuple[Message, ...] = ()
    grade: Grade | None = None
    ask: tasks.Ask | None = None  # a Turn of the base comes next
    findings: tuple[str, ...] = ()  # of cheating, in the whole episode so far


class Episode:
    """One completion of a row, as its environment sees it. Close it.

    Args:
        rng: for the environment and the grading.

    Raises:
        Exception: of any type, from the task's own code.
    """

    def __init__(
        self,
        options: tasks.Options,
        row: Mapping[str, Any],
        sandbox: Sandbox,
        rng: np.random.Generator,
    ):
        self._options, self._row, self._sandbox, self._rng = options, row, sandbox, rng
        self._task = tasks.load(options.type)
        self._turns = self._calls = self._failures = 0
        self._cpu_s = 0.0  # of tools in this process
        self._told: Status | None = None  # the budget that the model was told is spent
        self._findings: tuple[str, ...] = ()
        self._content = ""  # of the last turn
        self._environment: Any = None
        self._interpreter: Interpreter | None = None
        self._tools: dict[str, tools.Tool] = {}
        if tasks.takes_turns(options):
            self._begin()

    def _begin(self) -> None:
        if hasattr(self._task, "Environment"):
            self._environment = self._task.Environment(self._options, self._sandbox, self._rng)
            if self._environment.reset(self._row) is not None:
                raise TypeError(
                    "reset must return nothing: what the model sees first stands in the row's "
                    "prompt, so that all completions of a group answer the same one"
                )
        self._interpreter = tools.start_interpreter(self._options, self._sandbox)
        self._tools = tools.tools_of(self._row, self._options, self._environment, self._interpreter)

    # ---- the turns

    def take(self, turn: Turn) -> Answer:
        """What follows a turn of the model, or an answer of the base."""
        if turn.is_of_base:
            return self._take_answer(turn.content)
        self._turns += 1
        self._content = turn.content
        self._findings += turn.findings
        if tasks.takes_turns(self._options) and is_forged(turn.content):
            self._findings += (FORGED,)
        if turn.is_cut_off and tasks.takes_turns(self._options):
            return Answer(grade=self.end(Status.OUT_OF_TOKENS, DOES_NOT_FIT))
        if turn.calls and self._tools:
            return self._take_calls(turn)
        if self._environment is not None and hasattr(self._environment, "reply"):
            return self._take_message(turn)
        if not turn.reached_final:
            return Answer(grade=self.end(Status.NO_FINAL, CUT_OFF))
        return Answer(grade=self.end())

    def _take_calls(self, turn: Turn) -> Answer:
        spent = self._spent(turn)
        if spent and self._told:
            return Answer(grade=self.end(spent, SPENT[spent]))
        messages = []
        for call in turn.calls:
            if not spent:
                spent = self._spent(turn)
            if spent:
                self._told = spent
                text, status = ANSWER_NOW.format(SPENT[spent]), NOT_RUN
            else:
                text, status = self._run(call)
            messages.append({"role": "tool", "name": call.name, "content": text, "status": status})
            if self._is_done():
                break
        if self._is_done():
            return Answer(tuple(messages), self.end())
        return Answer(tuple(messages))

    def _take_message(self, turn: Turn) -> Answer:
        """A turn of a conversation."""
        if not turn.reached_final:
            return Answer(grade=self.end(Status.NO_FINAL, CUT_OFF))
        reply = self._environment.reply(turn.content)
        if isinstance(reply, tasks.Ask) and not self._is_done():
            if not hasattr(self._environment, "hear"):
                raise TypeError("an Environment whose reply is an Ask needs the method hear")
            return Answer(ask=reply)
        return self._take_reply(reply)

    def _take_answer(self, text: str) -> Answer:
        """What the base answered."""
        reply = self._environment.hear(text)
        if isinstance(reply, tasks.Ask):
            raise TypeError("hear must return a text or None, not another Ask")
        return self._take_reply(reply)

    def _take_reply(self, reply: Any) -> Answer:
        if reply is None or self._is_done():
            return Answer(grade=self.end())
        if self._turns >= self._options.max_turns:
            status = Status.OUT_OF_TURNS
            return Answer(grade=self.end(status, "no turn is left (task.max_turns)"))
        return Answer(({"role": "user", "content": encodable(str(reply))},))

    def _is_done(self) -> bool:
        return bool(getattr(self._environment, "done", False))

    def _spent(self, turn: Turn) -> Status | None:
        """The budget that is spent, if one is."""
        options = self._options
        if self._calls >= options.max_calls:
            return Status.OUT_OF_CALLS
        if self._turns > options.max_turns:
            return Status.OUT_OF_TURNS
        is_spent = self._interpreter is not None and self._interpreter.is_spent
        if is_spent or self._tool_cpu_s >= options.max_tool_cpu_s:
            return Status.OUT_OF_CPU
        if options.max_tool_tokens is not None and turn.tool_tokens >= options.max_tool_tokens:
            return Status.OUT_OF_TOKENS
        return None

    @property
    def _tool_cpu_s(self) -> float:
        in_sandbox = self._interpreter.cpu_s if self._interpreter else 0.0
        return self._cpu_s + in_sandbox

    def _run(self, call: Call) -> tuple[str, str]:
        """(result in words for the model, how the call ended)."""
        self._calls += 1
        began_s = time.thread_time()
        try:
            if call.mistake:
                raise ToolError(call.mistake)
            text, status = tools.run_tool(self._tools, call.name, call.arguments), RAN
        except SandboxError:
            raise
        except ToolError as error:
            text, status = f"Error: {error}", error.status
        except Exception as error:  # of the task's own tool
            text, status = f"Error: {type(error).__name__}: {error}", "error"
            self._tell_the_user(call, error)
        self._cpu_s += time.thread_time() - began_s
        if status != RAN:
            self._failures += 1
        return shortened(encodable(text), self._options.tool_characters), status

    def _tell_the_user(self, call: Call, error: Exception) -> None:
        """A ValueError is meant for the model. Anything else may be a mistake in the tool."""
        if isinstance(error, ValueError):
            return
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        tasks.note_once(
            f"task {self._options.type}: the tool {call.name} raised {type(error).__name__} "
            f"({place}); the model is told so"
        )

    # ---- the end

    def end(self, status: Status | None = None, why: str = "") -> Grade:
        """The Grade.

        Args:
            status: of what ended the episode, if it did not end by itself.
            why: the same in words.
        """
        if self._environment is not None:
            grade = self._environment.grade(self._content)
        else:
            grade = self._task.grade(
                self._content, self._row, self._options, self._sandbox, self._rng
            )
        mistake = tasks.grade_mistake(grade)
        if mistake:
            raise BadGrade(mistake)
        if status is not None:
            detail = "; ".join(part for part in (why, grade.detail) if part)
            if status is Status.NO_FINAL:
                detail = why
            grade = replace(grade, status=status, detail=detail)
        if not tasks.takes_turns(self._options):
            return replace(grade, cheating=(*grade.cheating, *self._findings))
        used = {
            "turns": self._turns,
            "calls": self._calls,
            "failures": self._failures,
            "tool_cpu_s": round(self._tool_cpu_s, 3),
        }
        cheating = tuple(dict.fromkeys((*grade.cheating, *self.findings)))
        return replace(grade, cheating=cheating, data={**grade.data, **used})

    @property
    def findings(self) -> tuple[str, ...]:
        """What it has done so far that counts as cheating."""
        if self._interpreter is None:
            return self._findings
        return self._findings + tuple(self._interpreter.findings)

    def close(self) -> None:
        """End what runs for this episode."""
        if self._interpreter is not None:
            self._interpreter.close()
        close = getattr(self._environment, "close", None)
        if close is not None:
            close()


def is_forged(text: Any) -> bool:
    """Whether a text of the model has what only stands in front of results."""
    return isinstance(text, str) and FORGED_MARKS.search(text) is not None


def made_call(name: str, arguments: Any) -> Call:
    """A call, with a mistake if its arguments are nested too deeply."""
    if is_nested_deeper(arguments, MAX_ARGUMENT_DEPTH):
        return Call(name, mistake=f"the arguments are nested deeper than {MAX_ARGUMENT_DEPTH}")
    return Call(name, arguments)


def is_nested_deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects lie within each other more than `limit` times."""
    level = [value]
    for _ in range(limit + 1):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inside += item.values()
            elif isinstance(item, list | tuple):
                inside += item
        if not inside:
            return False
        level = inside
    return True


def encodable(text: str) -> str:
    """A text without halves of letters (lone surrogates), which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def shortened(text: str, limit: int) -> str:
    """A text of at most about `limit` characters, without its middle if it is longer."""
    if len(text) <= limit:
        return text
    half = limit // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[{left_out} characters are left out]\n{text[-half:]}"


# ---- turns that nobody decodes: known answers, and completions from a file


def is_script(completion: Any) -> bool:
    """Whether a completion is a list of turns."""
    return isinstance(completion, list)


def turns_of(script: Sequence[Any]) -> list[Turn]:
    """The model's turns of a script or a transcript. What others said in it is left out: it is
    worked out again.

    Raises:
        ValueError: if a turn is neither a text nor a message.
    """
    found = []
    for item in script:
        if isinstance(item, str):
            found.append(Turn(item))
        elif not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
            raise ValueError(f"a turn must be a text or a message, not {item!r:.200}")
        elif item["role"] == "assistant":
            found.append(turn_of(item))
    return found


def turn_of(message: Mapping[str, Any]) -> Turn:
    content = message.get("content")
    if not isinstance(content, str):
        content = ""
    calls = []
    entries = message.get("tool_calls") or []
    if not isinstance(entries, list | tuple):
        raise ValueError(f"tool_calls must be a list, not {entries!r:.200}")
    for entry in entries:
        function = entry.get("function", entry) if isinstance(entry, Mapping) else None
        if not isinstance(function, Mapping):
            raise ValueError(f"a call must have a function, not be {entry!r:.200}")
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(arguments, str):  # as OpenAI's API has them
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                arguments = None
        calls.append(made_call(name if isinstance(name, str) else "", arguments))
    return Turn(content, tuple(calls), reached_final=message.get("reached_final", True))


def play(
    completion: Any,
    row: Mapping[str, Any],
    options: tasks.Options,
    sandbox: Sandbox,
    rng: np.random.Generator,
) -> Grade:
    """The Grade of a whole completion: a text, which is one turn, or a list of turns."""
    turns = [Turn(completion)]
    if is_script(completion):
        try:
            turns = turns_of(completion)
        except ValueError as error:
            return Grade(Status.BAD_ROW, detail=str(error))
    episode = Episode(options, row, sandbox, rng)
    try:
        for turn in turns:
            answer = episode.take(turn)
            if answer.ask is not None:
                answer = episode.take(Turn(answer.ask.stand_in, is_of_base=True))
            if answer.grade is not None:
                return answer.grade
        if not turns or turns[-1].calls:
            return episode.end(Status.NO_FINAL, CUT_OFF)
        return episode.end()  # in the midst of a conversation
    finally:
        episode.close()


# ---- episodes that go on


class Player:
    """Episodes in the midst of which a model is, by their keys. Each `advance` brings all turns of
    an episode, so that one which is not known here is played from its start.

    Use it from one thread.
    """

    def __init__(self, sandbox: Sandbox):
        self._sandbox = sandbox
        self._batch: Any = None
        self._going: dict[Any, tuple[Episode, int]] = {}  # with the turns that it has taken

    def advance(
        self,
        batch: Any,
        key: Any,
        options: tasks.Options,
        row: Mapping[str, Any],
        entropy: Sequence[int],
        turns: Sequence[Turn],
        ended: str = "",
    ) -> Answer:
        """What follows the last turn.

        Args:
            batch: of another one than before nothing is kept.
            ended: why the episode ends here, if it does: see `Episode.end`.
        """
        if batch != self._batch:
            self.close()
            self._batch = batch
        episode, taken = self._going.pop(key, (None, 0))
        if episode is None:
            episode = Episode(options, row, self._sandbox, np.random.default_rng(list(entropy)))
        answer = Answer()
        try:
            for turn in turns[taken:]:
                answer = episode.take(turn)
            if ended and answer.grade is None:
                answer = Answer(grade=episode.end(Status.OUT_OF_TOKENS, ended))
            answer = replace(answer, findings=episode.findings)
        except BaseException:
            episode.close()
            raise
        if answer.grade is not None:
            episode.close()
        else:
            self._going[key] = (episode, len(turns))
        return answer

    def close(self) -> None:
        for episode, _ in self._going.values():
            episode.close()
        self._going.clear()
