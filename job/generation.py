"""Conversations with a model: prompts in its own template, answers streamed, history kept."""

import functools
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import tasks
from job.chat import Chat, Reading
from job.config import Config
from job.episodes.loop import Played, play_batch
from job.errors import ConfigError, one_line
from job.evaluation.evaluation import make_grader
from job.evaluation.model_evaluation import sampling_at
from job.grading import Scored
from job.grading_pool import GradingPool
from job.rollout import Rollout, engine
from job.rows import Row, mixed_rows

Message = dict[str, Any]

# What is streamed is read again with each token, which may take this share of the time.
READING_SHARE = 0.1
STREAMED_TOKENS = 4  # that a graph decodes between two looks at them
DIM, PLAIN = "\x1b[2m", "\x1b[0m"  # thinking is dim on a terminal


@dataclass
class Conversation:
    """A model with what was said so far.

    Args:
        model, tokenizer: as load_for_inference returns them.
        max_new_tokens: None: what the prompt leaves of model.max_seq_length.
    """

    model: Any
    tokenizer: Any
    chat: Chat
    config: Config
    reasoning_effort: str | None
    temperature: float
    max_new_tokens: int | None
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self):
        self.start_again()

    def start_again(self) -> None:
        """Forget what was said."""
        self.messages = []
        if self.system:
            self.messages.append({"role": "system", "content": self.system})

    def ask(self, text: str, show: Callable[[Reading], None]) -> Reading:
        """Say something, and keep the answer in the history.

        Args:
            show: is given the answer as far as it goes, again and again.

        Raises:
            ConfigError: if the prompt is too long, or the template refuses it.
        """
        said = [*self.messages, {"role": "user", "content": text}]
        reading = self.answer(said, show)
        self.messages = [*said, {"role": "assistant", "content": reading.content}]
        return reading

    def answer(self, messages: Sequence[Message], show: Callable[[Reading], None]) -> Reading:
        """The answer to some messages. The history stays as it is."""
        try:
            prompt = self.chat.render(messages, self.reasoning_effort)
        except ValueError as error:
            raise ConfigError(one_line(error)) from error
        prompt_ids = self.chat.ids(prompt)
        wanted = self.most_tokens(len(prompt_ids))
        completion_ids: list[int] = []
        reading = self.chat.read(completion_ids, prompt)
        next_reading = 0.0
        for token in self._stream(prompt_ids, wanted):
            completion_ids.append(token)
            if time.monotonic() < next_reading:
                continue
            began = time.monotonic()
            reading = self.chat.read(completion_ids, prompt)
            show(reading)
            took_s = time.monotonic() - began
            next_reading = began + took_s / READING_SHARE
        reading = self.chat.read(completion_ids, prompt)
        show(reading)
        return reading

    def most_tokens(self, prompt_tokens: int) -> int:
        """The most tokens of a completion behind a prompt of that many.

        Raises:
            ConfigError: if they do not fit.
        """
        room = self.config.model.max_seq_length - prompt_tokens
        wanted = self.max_new_tokens or room
        if not 1 <= wanted <= room:
            raise ConfigError(
                f"the prompt has {prompt_tokens} tokens, and {max(wanted, 1)} more do not fit "
                f"into model.max_seq_length {self.config.model.max_seq_length}; set that higher"
            )
        return wanted

    def _stream(self, prompt_ids: list[int], max_new_tokens: int) -> Iterator[int]:
        """The tokens of one completion, as they come."""
        if self.rollout.decodes_to_the_end:
            yield from self._stream_of_transformers(prompt_ids, max_new_tokens)
            return
        row = self.rollout.add(prompt_ids, max_new_tokens)
        passed_on = 0
        try:
            while self.rollout.unfinished:
                ended = self.rollout.step(STREAMED_TOKENS)
                ids = ended[0].completion_ids if ended else self.rollout.decoded(row)
                yield from ids[passed_on:]
                passed_on = len(ids)
        finally:
            self.rollout.cancel()  # Ctrl-C ends the answer, not the conversation

    @functools.cached_property
    def rollout(self) -> Rollout:
        """What decodes: the rollout of training, where this machine can have its graphs."""
        rollout, words = engine.make_rollout(
            self.model,
            self.tokenizer,
            self.config.rollout,
            rows=1,
            max_new_tokens=self.config.model.max_seq_length,
            **sampling_at(self.temperature, self.config),
        )
        if not rollout.decodes_to_the_end:
            print(words, file=sys.stderr)
        return rollout

    def _stream_of_transformers(self, prompt_ids: list[int], max_new_tokens: int) -> Iterator[int]:
        """The same by transformers' generate, which cannot be paused and so gets a thread."""
        import torch

        tokens = TokenQueue()
        ids = torch.tensor([prompt_ids]).to(self.model.device)

        def generate() -> None:
            try:
                with torch.no_grad():
                    self.model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        pad_token_id=self.tokenizer.pad_token_id,
                        max_new_tokens=max_new_tokens,
                        streamer=tokens,
                        stopping_criteria=[tokens.is_stopped],
                        **sampling_at(self.temperature, self.config),
                    )
            except Exception as error:  # of any type; it is raised where the tokens are read
                tokens.fail(error)

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from tokens
        finally:
            tokens.stop()  # Ctrl-C ends the answer, not the conversation
            thread.join()


class TokenQueue:
    """A streamer of transformers that hands on token ids, so that they can be read by channel."""

    def __init__(self):
        self._tokens: queue.SimpleQueue = queue.SimpleQueue()
        self._stopped = False
        self._is_prompt = True

    def put(self, value: Any) -> None:
        if self._is_prompt:  # `generate` begins with the prompt
            self._is_prompt = False
            return
        self._tokens.put(value.flatten().tolist())

    def end(self) -> None:
        self._tokens.put(None)

    def fail(self, error: Exception) -> None:
        self._tokens.put(error)

    def stop(self) -> None:
        self._stopped = True

    def is_stopped(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """A stopping criterion of transformers."""
        import torch

        return torch.full((len(input_ids),), self._stopped, device=input_ids.device)

    def __iter__(self) -> Iterator[int]:
        while (item := self._tokens.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield from item


# ---- What is shown


class Screen:
    """Writes an answer while it grows: the answer to one stream, the thinking to another.

    Args:
        answers, thoughts: None: standard output and standard error, so that a file gets answers
            only.
    """

    def __init__(self, answers: TextIO | None = None, thoughts: TextIO | None = None):
        self._answers, self._thoughts = answers or sys.stdout, thoughts or sys.stderr
        self._thinking = self._content = ""

    def show(self, reading: Reading) -> None:
        """Write what is new."""
        thinking = addition(self._thinking, reading.thinking)
        if thinking:
            if self._thoughts.isatty():
                thinking = f"{DIM}{thinking}{PLAIN}"
            print(thinking, end="", file=self._thoughts, flush=True)
            self._thinking = settled(reading.thinking)
        content = addition(self._content, reading.content)
        if content:
            if self._thinking and not self._content:
                print("\n", file=self._thoughts, flush=True)
            print(content, end="", file=self._answers, flush=True)
            self._content = settled(reading.content)

    def end(self, reading: Reading | None = None) -> None:
        """End the line, and be ready for the next answer.

        Args:
            reading: the whole answer; None if it was stopped.
        """
        print(file=self._answers, flush=True)
        if reading and not reading.reached_final:
            print("(ended before its answer began)", file=self._thoughts, flush=True)
        self._thinking = self._content = ""


def settled(text: str) -> str:
    """The text without a character at its end of which only some bytes are there yet."""
    return text.rstrip("\ufffd")


def addition(shown: str, text: str) -> str:
    """What is new in a text. If it is another text, a new line and all of it."""
    text = settled(text)
    if text.startswith(shown):
        return text[len(shown) :]
    return f"\n{text}"


# ---- What is asked


def read_prompts(words: Sequence[str], file: str | None, standard_input: TextIO) -> list[str]:
    """The prompts of the command line, of a file, or of standard input.

    Args:
        file: text with one prompt, or, if its name ends with .jsonl, one JSON object a line whose
            "prompt" is a text.

    Raises:
        ConfigError: if the file cannot be read, or a prompt is empty.
    """
    prompts = list(words)
    if file:
        prompts += read_prompt_file(Path(file))
    if not prompts and not standard_input.isatty():
        text = standard_input.read()
        if text.strip():
            prompts.append(text)
    for prompt in prompts:
        if not prompt.strip():
            raise ConfigError("a prompt is empty")
    return prompts


def read_prompt_file(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file: {file} cannot be read: {one_line(error)}") from error
    if file.suffix != ".jsonl":
        return [text]
    prompts = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise ConfigError(f'--file: {file}:{number}: must be {{"prompt": "text"}}')
        prompts.append(prompt)
    return prompts


def row_of_task(options: tasks.Options, number: int) -> Row:
    """One row of a task, held-out ones first.

    Raises:
        ConfigError: if there is no such row.
    """
    try:
        rows, held_out = mixed_rows([options])
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
    found = held_out + rows
    if not 0 <= number < len(found):
        raise ConfigError(f"--row: there are rows 0 to {len(found) - 1}, not {number}")
    return found[number]


# ---- Answers of several turns


def play_row(
    conversation: Conversation, row: Row, options: tasks.Options, config: Config
) -> tuple[Played, Scored]:
    """The answer to a row whose task offers tools, played to its end and graded.

    Raises:
        ConfigError: if the prompt is too long, or the template refuses it.
    """
    row = row | {"prompt": [*conversation.messages, *row["prompt"]]}
    try:
        prompt_ids = conversation.chat.row_ids(row)
    except ValueError as error:
        raise ConfigError(one_line(error)) from error
    tokens = conversation.most_tokens(len(prompt_ids))
    model, tokenizer = conversation.model, conversation.tokenizer
    sampling = sampling_at(conversation.temperature, config)
    rollout, _ = engine.make_rollout(
        model, tokenizer, config.rollout, rows=1, max_new_tokens=tokens, **sampling
    )
    base = engine.make_base(model, tokenizer, config.model.max_seq_length, **sampling)
    with GradingPool.of(config.sandbox) as pool:
        grader = make_grader([options], pool)
        (episode,) = play_batch(rollout, [row], conversation.chat, grader, tokens, base=base)
        completion = [episode.completion()]
        (scored,) = grader.score_completions(completion, [episode.completion_ids], [row])
    return episode, scored


def transcript_in_words(messages: Sequence[Message]) -> str:
    """What was said in an answer of several turns, a paragraph for each message."""
    parts = []
    for message in messages:
        if message.get("thinking"):
            parts.append(f"(thinking) {message['thinking']}")
        if message["role"] == "tool":
            parts.append(f"[{message['name']}, {message['status']}] {message['content']}")
        elif message["role"] == "user":
            parts.append(f"user: {message['content']}")
        elif message["content"]:
            parts.append(message["content"])
        for call in message.get("tool_calls", ()):
            function = call["function"]
            parts.append(f"[call of {function['name']}] {json.dumps(function['arguments'])}")
    return "\n".join(parts)


# ---- What it is worth


def grade_answer(reading: Reading, row: Row, options: tasks.Options, config: Config) -> Scored:
    """The Grade of an answer to a row, and what each reward function pays for it."""
    with GradingPool.of(config.sandbox) as pool:
        grader = make_grader([options], pool)
        (scored,) = grader.score_completions([[reading.message()]], [[]], [row])
    return scored


def grade_in_words(scored: Scored) -> str:
    """A Grade, one line for each thing that it says."""
    grade = scored.grade
    lines = [f"status    {grade.status}", f"correct   {grade.correct}"]
    lines.append(f"cheating  {'; '.join(grade.cheating) or False}")
    lines.append(f"passed    {grade.passed:.0%}")
    if grade.speedup is not None:
        lines.append(f"speed-up  {grade.speedup:.2f}")
    if grade.detail:
        lines.append(f"detail    {grade.detail}")
    for name, value in grade.data.items():
        lines.append(f"{name:9} {value}")
    for name, paid in scored.rewards.items():
        lines.append(f"reward    {name}: {paid}")
    return "\n".join(lines)
