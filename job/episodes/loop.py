"""Decodes a batch of episodes. A row whose tools run stays in the rollout; the others are decoded
meanwhile, and what has ended is graded.

    what the model says  ->  a Turn (tool_format)  ->  results, a reply or the Grade (grading)
            ^                                                        |
            +---- the same row, extended by their tokens  <----------+

An environment may ask the frozen base before it replies. The base answers all rows in one batch,
once nothing of the model itself can be decoded. Its answer is no part of the completion, only the
reply that the environment makes of it.

A completion is all tokens behind the prompt. Its mask is 1 for what the model said and 0 for what
others said, so that only the former is trained on. It always ends with what the model said.
"""

import itertools
from collections.abc import Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from job.chat import Chat, Reading
from job.episodes.episode import BASE_DOES_NOT_FIT, DOES_NOT_FIT, Answer, Message, Turn
from job.episodes.tool_format import ToolFormat
from job.grading import Grader
from job.grading_pool import Job, Step
from job.rollout import Base, Finished, Rollout, TokenIds
from sandbox import Status
from tasks import Ask, Grade

_batches = itertools.count()  # a number for each batch of this process


@dataclass
class Played:
    """One episode: while it is played, and when it is over."""

    row: dict[str, Any]
    prompt_ids: TokenIds
    job: Job
    text: str  # what the newest turn follows
    completion_ids: TokenIds = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)  # None: the rollout has none
    turns: list[Turn] = field(default_factory=list)  # with the answers of the base
    messages: list[Message] = field(default_factory=list)
    tool_tokens: int = 0
    thinking_tokens: int = 0
    final_tokens: int = 0
    grade: Grade | None = None
    findings: tuple[str, ...] = ()  # of cheating so far; they outlive a worker that is killed

    @property
    def said_ids(self) -> TokenIds:
        """What the model said of it."""
        return [token for token, said in zip(self.completion_ids, self.mask, strict=True) if said]

    @property
    def own_turns(self) -> list[Turn]:
        """The model's own."""
        return [turn for turn in self.turns if not turn.is_of_base]

    def reading(self) -> Reading:
        """The episode as one completion: its last answer, and all that was thought."""
        own = self.own_turns
        last = own[-1]
        # A call may be the end of an episode that is over, and needs no answer after it
        is_over = bool(last.calls) and self.grade is not None and self.grade.status is Status.OK
        return Reading(
            content=last.content,
            thinking="\n".join(turn.thinking for turn in own if turn.thinking),
            reached_final=last.reached_final or is_over,
            thinking_tokens=self.thinking_tokens,
            final_tokens=self.final_tokens,
        )

    def completion(self) -> list[Message]:
        """What reward functions get. The last message brings the Grade along."""
        messages = [*self.messages]
        messages[-1] = messages[-1] | {"grade": self.grade}
        return messages

    def count(self, name: str) -> float:
        """How much was used of something: turns, calls or failures."""
        return float(self.grade.data.get(name, 0))


def play_batch(
    rollout: Rollout,
    rows: Sequence[dict[str, Any]],
    chat: Chat,
    grader: Grader,
    max_tokens: int,
    step: int = 0,
    base: Base | None = None,
) -> list[Played]:
    """The episodes of some rows, in order, each with its Grade.

    Args:
        rollout: with no row in it.
        max_tokens: of a completion, results included.
        step: the training step.
        base: answers what environments ask; None: none may ask.

    Raises:
        GradeError, SandboxError: as grading does.
        ValueError: if the chat template refuses a result, or what the base is asked.
    """
    batch = Batch(rollout, chat, grader, max_tokens, base)
    try:
        return batch.play(rows, step)
    except BaseException:
        rollout.cancel()
        raise


class Batch:
    """One batch of episodes, while it is played."""

    def __init__(
        self, rollout: Rollout, chat: Chat, grader: Grader, max_tokens: int, base: Base | None
    ):
        self.rollout, self.chat, self.grader = rollout, chat, grader
        self.max_tokens, self.base = max_tokens, base
        self.format = ToolFormat(chat)
        self.number = next(_batches)
        self.decoded: dict[int, int] = {}  # row of the rollout -> the episode's place
        self.running: dict[Future[Answer], int] = {}  # what grading is busy with -> its row
        self.asked: dict[int, Ask] = {}  # row -> what the base is to answer

    def play(self, rows: Sequence[dict[str, Any]], step: int) -> list[Played]:
        episodes = []
        for place, row in enumerate(rows):
            text = self.chat.render_row(row)
            job = self.grader.job(None, row, step, place)
            episodes.append(Played(row, self.chat.ids(text), job, text))
        for place, episode in enumerate(episodes):
            number = self.rollout.add(episode.prompt_ids, self.max_tokens, stays=True)
            self.decoded[number] = place
        while self.rollout.unfinished or self.running or self.asked:
            for item in self.rollout.step():
                self._take(item, episodes[self.decoded[item.row]])
            if self._base_is_due(episodes):
                self._ask_base(episodes)
            self._answer(episodes)
        return episodes

    def _take(self, item: Finished, episode: Played) -> None:
        """Read a turn, and ask what follows it."""
        ids = item.completion_ids
        episode.completion_ids += ids
        episode.mask += [1] * len(ids)
        if item.logprobs is None:
            episode.logprobs = None
        else:
            episode.logprobs += item.logprobs
        reading = self.chat.read(ids, episode.text)
        episode.thinking_tokens += reading.thinking_tokens
        episode.final_tokens += reading.final_tokens
        is_cut_off = not self.format.is_ended(ids)
        turn = self.format.read(ids, episode.text, is_cut_off, episode.tool_tokens)
        episode.turns.append(turn)
        episode.messages.append(turn.message())
        self._ask(item.row, episode)

    def _ask(self, row: int, episode: Played, ended: str = "") -> None:
        key = self.decoded[row]
        turns = tuple(episode.turns)
        step = Step(episode.job, self.number, key, turns, ended, episode.findings)
        self.running[self.grader.advance(step)] = row

    def _answer(self, episodes: list[Played]) -> None:
        """Take what is known by now of what follows turns. Wait only if nothing can be decoded."""
        if not self.running:
            return
        # A long step had better have all rows again; short ones go on with what there is
        everything = self.rollout.decodes_to_the_end
        must_wait = everything or self.rollout.is_blocked or self.rollout.unfinished == 0
        timeout_s = None if must_wait else 0
        until = ALL_COMPLETED if everything else FIRST_COMPLETED
        for done in wait(self.running, timeout_s, until).done:
            row = self.running.pop(done)
            self._go_on(row, episodes[self.decoded[row]], done.result())

    def _base_is_due(self, episodes: list[Played]) -> bool:
        """Whether rows wait for the base, and the model itself has nothing to decode."""
        if not self.asked or (self.rollout.unfinished and not self.rollout.is_blocked):
            return False
        # Turns that call nothing are answered soon, and may ask as well. Tools may take long.
        return all(episodes[self.decoded[row]].turns[-1].calls for row in self.running.values())

    def _ask_base(self, episodes: list[Played]) -> None:
        """Let the base answer all that it is asked by now, in one batch."""
        if self.base is None:
            raise RuntimeError("an environment asks the frozen base, and there is none here")
        asked, self.asked = self.asked, {}
        prompts: dict[int, str] = {}
        for row, ask in asked.items():
            episode = episodes[self.decoded[row]]
            messages = [self.format.clean(message) for message in ask.messages]
            prompt = self.chat.render(messages, episode.row.get("reasoning_effort"))
            if len(self.chat.ids(prompt)) + ask.max_tokens > self.base.max_seq_length:
                self._ask(row, episode, BASE_DOES_NOT_FIT)
            else:
                prompts[row] = prompt
        if not prompts:
            return
        rollout = self.base.rollout(max(asked[row].max_tokens for row in prompts))
        rows = {}
        for row, prompt in prompts.items():
            rows[rollout.add(self.chat.ids(prompt), asked[row].max_tokens)] = row
        while rollout.unfinished:
            for item in rollout.step():
                row = rows[item.row]
                episode = episodes[self.decoded[row]]
                text = self.chat.read(item.completion_ids, prompts[row]).content
                episode.turns.append(Turn(text, is_of_base=True))
                self._ask(row, episode)

    def _go_on(self, row: int, episode: Played, answer: Answer) -> None:
        """Extend a row by what follows its turn, or end it."""
        episode.findings = answer.findings
        if answer.grade is not None:
            episode.messages += answer.messages
            episode.grade = answer.grade
            self.rollout.drop(row)
            return
        if answer.ask is not None:
            self.asked[row] = answer.ask
            return
        text = self.format.following(episode.own_turns[-1], answer.messages)
        ids = self.chat.ids(text)
        left = self.max_tokens - len(episode.completion_ids) - len(ids)
        if left < 1:
            self._ask(row, episode, DOES_NOT_FIT)
            return
        episode.messages += answer.messages
        episode.text = text
        episode.completion_ids += ids
        episode.mask += [0] * len(ids)
        if episode.logprobs is not None:
            episode.logprobs += [0.0] * len(ids)
        episode.tool_tokens += len(ids)
        self.rollout.extend(row, ids, left)
