"""generate.py: conversations, what is shown while they go on, and grades of answers."""

import io
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedRollout, harmony_call, harmony_final

import generate
from job import generation
from job.chat import Chat, Reading
from job.config import ROOT, load_config
from job.episodes.tool_format import ToolFormat
from job.errors import ConfigError
from job.generation import Screen, TokenQueue
from job.model import find_model

TINY = ["tiny", "--config", str(ROOT / "configs" / "tiny.yaml")]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(capsys, *arguments):
    code = generate.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


# ---- what is shown


@settings(max_examples=40)
@given(st.lists(st.text(max_size=8), max_size=6), st.lists(st.text(max_size=8), max_size=6))
def test_what_is_shown_piece_by_piece_is_the_whole(thinking, content):
    answers, thoughts = io.StringIO(), io.StringIO()
    screen = Screen(answers, thoughts)
    thought, said = "", ""
    for piece in thinking:
        thought += piece
        screen.show(Reading(said, thought))
    for piece in content:
        said += piece
        screen.show(Reading(said, thought))
    assert answers.getvalue() == said.rstrip("\ufffd")
    assert thoughts.getvalue().rstrip("\n") == thought.rstrip("\ufffd").rstrip("\n")


def test_half_a_character_waits_for_its_rest():
    answers = io.StringIO()
    screen = Screen(answers, io.StringIO())
    for text in ("a\ufffd", "aé"):
        screen.show(Reading(text))
    assert answers.getvalue() == "aé"


def test_another_text_begins_on_a_new_line():
    answers = io.StringIO()
    screen = Screen(answers, io.StringIO())
    for text in ("a draft", "the answer"):
        screen.show(Reading(text))
    assert answers.getvalue() == "a draft\nthe answer"


def test_an_error_while_tokens_come_is_raised():
    tokens = TokenQueue()
    tokens.fail(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(tokens)


# ---- what is asked


def test_prompts_come_from_arguments_a_file_or_standard_input(tmp_path):
    text, rows = tmp_path / "prompt.txt", tmp_path / "prompts.jsonl"
    text.write_text("two\nlines")
    rows.write_text("\n".join(json.dumps({"prompt": word}) for word in ("x", "y")))
    read = generation.read_prompts
    assert read(["a", "b"], None, io.StringIO("c")) == ["a", "b"]
    assert read([], str(text), io.StringIO("c")) == ["two\nlines"]
    assert read(["a"], str(rows), io.StringIO("c")) == ["a", "x", "y"]
    assert read([], None, io.StringIO("c\nd")) == ["c\nd"]
    assert read([], None, io.StringIO("")) == read([], None, Terminal("x")) == []


@pytest.mark.parametrize("line", ["no json", '{"question": "x"}', "[1]", '{"prompt": 3}'])
def test_a_file_of_prompts_with_a_bad_line(tmp_path, line):
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": "x"}}\n{line}\n')
    with pytest.raises(ConfigError, match="prompts.jsonl:2: must be"):
        generation.read_prompts([], str(tmp_path / "prompts.jsonl"), io.StringIO())


def test_only_keys_of_sections_are_overrides():
    assert generate.is_override("grpo.temperature=0.5")
    for word in ("1.5=x", "a=b", "Is x.y = 3?", "x==y.z", "f(x.y=3)"):
        assert not generate.is_override(word)


# ---- the command


def test_an_answer_that_was_not_reached_is_told(capsys):
    code, out, err = run(capsys, *TINY, "--temperature", "0", "--max-new-tokens", "3", "Hello")
    assert code == 0 and out.strip() == "" and "ended before its answer began" in err


def test_each_prompt_is_answered_by_itself(capsys):
    asked = [*TINY, "--temperature", "0", "--max-new-tokens", "60"]
    code, both, _ = run(capsys, *asked, "Hello", "def matmul(A, B):")
    first, second = (run(capsys, *asked, text)[1] for text in ("Hello", "def matmul(A, B):"))
    assert code == 0 and first.strip() and both == first + second


def test_an_answer_to_a_task_is_run_and_graded(capsys):
    code, out, err = run(capsys, *TINY, "--run", "--seed", "1")
    assert code == 0 and out.strip()
    assert "user: Create a new fast matrix multiplication" in err
    for name in ("status ", "correct ", "cheating ", "reward    no_cheating: "):
        assert f"\n{name}" in err


def decode_in_steps(monkeypatch):
    """Have what a GPU has: a rollout that decodes step by step."""
    monkeypatch.setattr(generation.engine, "why_not", lambda request: None)
    monkeypatch.setattr(
        generation.engine,
        "try_graph",
        lambda model, request: generation.engine.make_graph_rollout(model, request, capture=False),
    )


def test_the_rollout_of_training_gives_the_same_answers(capsys, monkeypatch):
    words = [*TINY, "--temperature", "0", "How much is 15 * 20?", "How much is 7 * 3?"]
    code, by_generate, _ = run(capsys, *words)
    assert code == 0 and len(by_generate) > 20
    decode_in_steps(monkeypatch)
    code, in_steps, said = run(capsys, *words)
    assert code == 0 and in_steps == by_generate
    assert "rollout: CUDA graphs, gpt-oss's weights as they are packed" in said


def test_an_answer_that_is_stopped_leaves_the_rollout_empty(monkeypatch):
    decode_in_steps(monkeypatch)
    arguments = SimpleNamespace(
        reasoning_effort=None, temperature=0.0, seed=None, max_new_tokens=None, system=None
    )
    config = load_config(ROOT / "configs" / "tiny.yaml")
    conversation = generate.start(find_model("tiny"), config, arguments)
    tokens = conversation._stream(conversation.chat.ids("How much is 15 * 20?"), 50)
    first = [next(tokens) for _ in range(6)]
    tokens.close()
    assert conversation.rollout.unfinished == 0
    again = conversation._stream(conversation.chat.ids("How much is 15 * 20?"), 9)
    assert len(list(again)) == 9 and len(first) == 6


def test_a_conversation_keeps_its_history(capsys, monkeypatch):
    said = iter(["Hello", "", "/new", "x" * 3000, "Hello"])
    asked = []

    def answer(self, messages, show):
        asked.append([message["content"] for message in messages])
        return Reading("Hi")

    monkeypatch.setattr("builtins.input", lambda prompt: next(said, None) or stop())
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(generation.Conversation, "answer", answer)

    def stop():
        if any("x" * 3000 in contents for contents in asked) and len(asked) == 3:
            raise EOFError
        return ""

    code, _, _ = run(capsys, *TINY, "--system", "Be brief.")
    assert code == 0
    assert asked == [
        ["Be brief.", "Hello"],
        ["Be brief.", "x" * 3000],
        ["Be brief.", "x" * 3000, "Hi", "Hello"],
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["./nothing", "x"], "./nothing: no such folder"),
        ([*TINY, " "], "a prompt is empty"),
        ([*TINY, "--file", "/nothing"], "--file: /nothing cannot be read"),
        ([*TINY, "--temperature", "-1", "x"], "--temperature: must be 0 or more"),
        ([*TINY, "--max-new-tokens", "0", "x"], "--max-new-tokens: must be above 0"),
        ([*TINY, "--row", "1000000", "--run"], "--row: there are rows 0 to"),
        ([*TINY, "--task", "chess"], "--task: no task 'chess'"),
        ([*TINY, "word " * 900], "do not fit into model.max_seq_length 320"),
    ],
)
def test_mistakes_cost_one_line(arguments, said, capsys):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_a_row_with_tools_is_played_and_graded(capsys, monkeypatch):
    def make_rollout(model, tokenizer, *args, **kwargs):
        script = [harmony_call("python", code="15 * 23"), harmony_final("Answer: 345")]
        return ScriptedRollout(ToolFormat(Chat(tokenizer, "2025-08-05")), [script]), "scripted"

    monkeypatch.setattr(generation.engine, "make_rollout", make_rollout)
    code = generate.main(
        ["tiny", "--run", "--task", "reasoning", "--config", str(ROOT / "configs" / "tiny.yaml"),
         "task.tools=[python]", "model.max_seq_length=640"]
    )  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert '[call of python] {"code": "15 * 23"}\n[python, ok] 345\nAnswer: 345' in shown.out
    assert "calls     1" in shown.err and "correct   True" in shown.err


def test_an_opponent_that_the_model_plays_is_heard(capsys, monkeypatch):
    def make_rollout(model, tokenizer, *args, **kwargs):
        said = [harmony_final("Hello."), harmony_final("Well?")]
        return ScriptedRollout(ToolFormat(Chat(tokenizer, "2025-08-05")), [said]), "scripted"

    heard = []
    monkeypatch.setattr(generation.engine, "make_rollout", make_rollout)
    of_base = generation.engine.base_rollout
    monkeypatch.setattr(
        generation.engine, "base_rollout", lambda *args: heard.append(args) or of_base(*args)
    )
    code = generate.main(
        ["tiny", "--run", "--task", "prompt_injection_talk", "--config",
         str(ROOT / "configs" / "tiny.yaml"), "task.opponent=base", "task.opponent_tokens=8",
         "task.messages=2", "model.max_seq_length=640"]
    )  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert len(heard) == 2 and "turns     2" in shown.err
    assert shown.out.startswith("Hello.\nuser: ") and shown.out.endswith("Well?\n")
