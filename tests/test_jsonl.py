"""tasks/jsonl.py: rows are checked one by one, keep their columns, and are split without leaks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import reward_functions
import tasks
from job import config
from job.errors import ConfigError
from job.grading import Grader
from job.reward_check import check_rewards
from job.rows import mixed_rows
from sandbox import verifier
from tasks import jsonl
from tasks.data import columns, sources
from tasks.data.mistakes import Mistakes
from tasks.jsonl import Options

ROOT = Path(__file__).parent.parent


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def options(path, **settings):
    return Options(type="jsonl", data=str(path), **settings)


def test_the_rows_of_the_seed(tmp_path):
    path = write(
        tmp_path / "seed.jsonl",
        {
            "prompt": [{"role": "user", "content": "Calculate 15 * 23"}],
            "answer": 345,
            "reasoning_effort": "low",
        },
        {
            "prompt": [{"role": "user", "content": "Prove it"}],
            "answer": 0,
            "reasoning_effort": "high",
            "topic": "proof",
        },
        {"prompt": "What is 2+2?", "answer": 4},
    )
    rows, _ = mixed_rows([options(path, num_rows=None, reasoning_effort="medium")])
    assert [row["reasoning_effort"] for row in rows] == ["low", "high", "medium"]
    assert [row["answer"] for row in rows] == [345, 0, 4] and [row["topic"] for row in rows] == [
        None,
        "proof",
        None,
    ]
    assert rows[2]["prompt"] == [{"role": "user", "content": "What is 2+2?"}]
    assert Dataset.from_list(rows).to_list() == rows
    assert len(jsonl.rows(options(path, num_rows=7))) == 7


def test_every_column_reaches_the_reward_functions(tmp_path, sandbox, monkeypatch):
    def topic_named(completions, topic, answer, reasoning_effort):
        assert answer == [["a", "b"]] and reasoning_effort == ["low"]
        return [
            float(name in completion[0]["content"])
            for completion, name in zip(completions, topic, strict=True)
        ]

    monkeypatch.setattr(reward_functions, "topic_named", topic_named, raising=False)
    path = write(tmp_path / "a.jsonl", {"prompt": "x", "answer": ["a", "b"], "topic": "cats"})
    job = config.load_config(
        None, ["task.type=jsonl", f"task.data={path}", "task.rewards=[topic_named]"]
    )
    (row,) = Dataset.from_list(mixed_rows(job.tasks)[0][:1]).to_list()
    reward = Grader(job.tasks, sandbox, 0).reward_functions()[0]
    columns = {name: [value] for name, value in row.items() if name != "prompt"}
    completions = [[{"role": "assistant", "content": "about cats"}]]
    assert reward(
        completions=completions, prompts=[row["prompt"]], completion_ids=[[]], **columns
    ) == [1.0]
    assert "no right and wrong answers are known" in check_rewards(job.tasks[0], sandbox)[1]


def test_the_default_reward_compares_with_the_answer(sandbox):
    settings = Options(type="jsonl")
    texts = {"Answer: 345": 10.0, "Answer: 345.0": 10.0, "Answer: 344": -2.0, "": -2.0}
    grades = [
        jsonl.grade(text, {"answer": 345}, settings, sandbox, np.random.default_rng(0))
        for text in texts
    ]
    assert reward_functions.correct_conclusion([None] * 4, grades=grades) == list(texts.values())


@pytest.mark.parametrize("answers", [(0, 0), (None, None), (0,), (["a"], ["b"])])
def test_a_placeholder_is_no_answer(tmp_path, answers):
    path = write(tmp_path / "a.jsonl", *({"prompt": "x", "answer": answer} for answer in answers))
    with pytest.raises(ValueError, match="name reward functions in task.rewards"):
        options(path)
    rows = jsonl.rows(options(path, rewards=["clarity"], num_rows=None))
    assert [row.get("answer") for row in rows] == [
        None if answer == 0 else answer for answer in answers
    ]


def test_rows_without_an_answer_are_named(tmp_path, capsys):
    rows = [{"prompt": f"{i}?", "answer": "" if i in (2, 3, 5, 7) else "1"} for i in range(9)]
    one = write(tmp_path / "one.jsonl", *rows[:3])
    tasks.note_once.cache_clear()
    options(one)
    assert (
        f"one.jsonl: 1 of 3 rows has no answer ({one}:3): correct_conclusion gives no reward "
        "there, so nothing is learned from it"
    ) in capsys.readouterr().err
    four = write(tmp_path / "four.jsonl", *rows)
    options(four, rewards=["correct_conclusion", "clarity"])
    err = capsys.readouterr().err
    assert f"4 of 9 rows have no answer ({four}:3, 4, 6, ...)" in err
    assert "so only the other rewards count" in err
    options(four, rewards=["clarity"])
    assert "no answer" not in capsys.readouterr().err


def test_rewards_that_all_need_an_answer_are_refused_without_one(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "x", "answer": " "})
    with pytest.raises(ValueError, match="no row of .* has an answer to compare with"):
        options(path, rewards=["correct_conclusion"])
    assert options(path, rewards=["correct_conclusion", "clarity"])


def test_a_zero_that_is_text_is_an_answer(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "x", "answer": "0"})
    assert jsonl.rows(options(path, num_rows=None))[0]["answer"] == "0"


def test_numbers_and_texts_may_mix_in_answers_only(tmp_path):
    mixed = [
        {"prompt": "x", "answer": 1},
        {"prompt": "x", "answer": "1/2"},
        {"prompt": "x", "answer": True},
        {"prompt": "x"},
    ]
    rows = jsonl.rows(options(write(tmp_path / "a.jsonl", *mixed), num_rows=None))
    assert [row["answer"] for row in rows] == ["1", "1/2", "yes", None]
    path = write(
        tmp_path / "b.jsonl", {"prompt": "x", "answer": 1}, {"prompt": "x", "answer": ["a"]}
    )
    with pytest.raises(ValueError, match="column answer: its values are of different kinds"):
        options(path)


@pytest.mark.parametrize(
    "values",
    [
        [1, "one"],
        [{"a": 1}, {"b": [2]}],
        [[1], None, "x"],
        [2**70, 1],
        [[], {}],
        [2**53 + 1, 0.5],
    ],
)
def test_a_column_that_no_table_holds_is_passed_on_as_json(tmp_path, capsys, values):
    tasks.note_once.cache_clear()
    rows = [{"prompt": "x", "answer": 1, "n": value, "kept": [1]} for value in values]
    settings = options(write(tmp_path / "b.jsonl", *rows), num_rows=None)
    read = jsonl.rows(settings)
    texts = [row["n"] for row in read]
    assert [None if text is None else json.loads(text) for text in texts] == values
    assert [row["kept"] for row in read] == [[1]] * len(values)
    assert jsonl.json_columns(settings) == ("n",)
    assert "n: of different kinds" in capsys.readouterr().err
    assert [row["n"] for row in Dataset.from_list(read).to_list()] == texts


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nope", "not JSON"), ("[" * 100_000, "not JSON"), ("[1]", "must be an object, not list"),
        ("{}", "no prompt"), ({"prompt": []}, "list of messages"),
        ({"prompt": 3}, "list of messages"), ({"prompt": ""}, "list of messages"),
        ({"prompt": ["x"]}, r"prompt\[0\] must have role and content"),
        ({"prompt": [USER, {"role": "user"}]}, r"prompt\[1\] must have"),
        (
            {"prompt": [{**USER, "thinking": "y"}]},
            r"prompt\[0\] must have role and content, and nothing else",
        ),
        ({"prompt": [{**USER, "role": "bot"}]}, "role must be one of system"),
        ({"prompt": [{**USER, "content": [1]}]}, "content must be text"),
        (
            {"prompt": [USER, {"role": "assistant", "content": "y"}]},
            "ends with an assistant message",
        ),
        (
            {"prompt": "x", "reasoning_effort": "max"},
            "reasoning_effort must be one of low, medium, high, not 'max'",
        ),
        ({"prompt": "x", "grades": 1}, r"\['grades'\] have names that the trainer itself uses"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", {"prompt": "fine", "answer": 1}, "", row)
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: .*{message}"):
        options(path)


def test_mistakes_are_grouped_and_come_as_a_config_error(tmp_path):
    lines = [{"prompt": "x"}, *["nope"] * 30, {"answer": 1}, {"answer": 2}]
    path = write(tmp_path / "a.jsonl", *lines)
    with pytest.raises(ConfigError) as error:
        config.load_config(None, ["task.type=jsonl", f"task.data={path}"])
    first, second = error.value.mistakes
    assert first.startswith(f"task.data: {path}:2: ") and "(30 rows: 2, 3, 4, ...)" in first
    assert "(2 rows: 32, 33)" in second
    assert "the columns are ['answer']" in second and "task.columns, as in {prompt: " in second


SOLVED = {"prompt": "x", "answer": "She has 3 + 4 of them.\n#### 7"}
UNCLEAR = {"prompt": "y", "answer": "She has 3 of them.\nThen 4."}


def test_rows_whose_answer_cannot_be_read_are_named_and_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", SOLVED, "", UNCLEAR, UNCLEAR)
    with pytest.raises(ConfigError) as error:
        config.load_config(None, ["task.type=jsonl", f"task.data={path}"])
    message = str(error.value)
    assert "a.jsonl:3: the answer cannot be read" in message and "(2 rows: 3, 4)" in message
    assert "2 of 3 rows" in message and "unreadable_answers: drop" in message
    assert message.count(str(path)) == 1  # a long path is not said again and again


def test_rows_whose_answer_cannot_be_read_can_be_dropped(tmp_path, capsys, sandbox):
    path = write(tmp_path / "a.jsonl", UNCLEAR, SOLVED)
    tasks.note_once.cache_clear()
    settings = options(path, unreadable_answers="drop", num_rows=None)
    (row,) = jsonl.rows(settings)
    assert row["answer"] == SOLVED["answer"]  # the column itself is never changed
    assert jsonl.grade("Answer: 7", row, settings, sandbox, None).correct
    assert not jsonl.grade("Answer: 3", row, settings, sandbox, None).correct
    assert "1 of 2 rows" in capsys.readouterr().err
    assert check_rewards(settings, sandbox)


def test_answers_that_no_reward_compares_may_be_anything(tmp_path):
    path = write(tmp_path / "a.jsonl", UNCLEAR)
    assert len(jsonl.rows(options(path, rewards=["clarity"], num_rows=None))) == 1


def test_a_missing_math_verify_is_told_where_answers_are_compared(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", SOLVED)
    monkeypatch.setattr(verifier, "installed", lambda: False)
    with pytest.raises(ValueError, match="math-verify is not installed"):
        options(path)
    assert options(path, rewards=["clarity"])


def test_the_question_is_no_answer(sandbox):
    settings = Options(type="jsonl")
    row = {"answer": "0.75", "prompt": [{"role": "user", "content": "What is 3 / 4?"}]}
    right = {
        "3/4": False,
        "3 ÷ 4": False,
        "What is 3 / 4?": False,
        "0.75": True,
        "3 / 4 = 0.75": True,
    }
    for text, correct in right.items():
        assert jsonl.grade(text, row, settings, sandbox, None).correct is correct, text


def test_several_files_and_a_changed_one(tmp_path):
    write(tmp_path / "b.jsonl", {"prompt": "second", "answer": 2})
    write(tmp_path / "a.jsonl", {"prompt": "first", "answer": 1})
    settings = options(tmp_path / "*.jsonl", num_rows=None)
    assert [row["answer"] for row in jsonl.rows(settings)] == [1, 2]
    write(tmp_path / "b.jsonl", {"prompt": "second", "answer": 2}, {"prompt": "third", "answer": 3})
    assert [row["answer"] for row in jsonl.rows(settings)] == [1, 2, 3]


@pytest.mark.parametrize(
    "data", ["no/such/file.jsonl", "nothing.json", "/no/such", "*.nothing", "./x/y", ""]
)
def test_a_missing_file_is_told(data):
    with pytest.raises(ValueError, match="data: there is no file"):
        Options(type="jsonl", data=data)


def test_an_empty_file_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds no row to train on"):
        options(write(tmp_path / "a.jsonl"))


@given(st.floats(0.0, 0.95), st.integers(2, 40))
def test_the_split_is_stable_and_leaks_no_prompt(share, count):
    placed = ((str(i), {"prompt": f"q{i % 30}", "answer": i}) for i in range(count))
    rows = columns.read_table(placed, columns.Wishes(), "rows", Mistakes()).rows
    split = jsonl.hold_out(rows, share)
    assert split == jsonl.hold_out(rows, share)
    training, held_out = split
    assert sorted(row["answer"] for part in split for row in part) == list(range(count))
    assert not {str(row["prompt"]) for row in training} & {str(row["prompt"]) for row in held_out}
    assert bool(held_out) == (share > 0)


def test_rows_held_out_are_not_trained_on(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"prompt": f"q{i}", "answer": i} for i in range(10)))
    settings = options(path, num_rows=None, eval_share=0.2)
    assert len(jsonl.rows(settings)) == 8 and len(jsonl.eval_rows(settings)) == 2
    assert jsonl.eval_rows(options(path)) == []


def test_cut_rows_are_told_once(tmp_path, capsys):
    tasks.note_once.cache_clear()
    path = write(tmp_path / "a.jsonl", *({"prompt": f"q{i}", "answer": i} for i in range(10)))
    for _ in range(2):
        assert len(jsonl.rows(options(path, num_rows=4))) == 4
    assert capsys.readouterr().err.count("the first 4 of 10 rows") == 1


@pytest.fixture(autouse=True)
def no_rows_of_other_tests():
    """What a test lets the Hub hold is not there for the next test."""
    yield
    sources.load_split.cache_clear()
    sources.described_rows.cache_clear()
    jsonl.read_split.cache_clear()
    jsonl.row_count.cache_clear()


def test_a_dataset_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return [{"prompt": f"{split} question", "answer": 7}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    settings = Options(
        type="jsonl", data="some/questions", split="train[:10]", eval_split="test", num_rows=None
    )
    assert jsonl.rows(settings)[0]["prompt"][0]["content"] == "train[:10] question"
    assert jsonl.eval_rows(settings)[0]["prompt"][0]["content"] == "test question"
    assert sorted(asked) == [("some/questions", "test"), ("some/questions", "train[:10]")]


def test_unreadable_answers_in_a_dataset_of_the_hub_are_named(monkeypatch):
    dataset = [SOLVED, UNCLEAR, SOLVED]
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: dataset)
    with pytest.raises(ValueError, match=r"some/questions\[train\]:1: the answer cannot be read"):
        Options(type="jsonl", data="some/questions")


def test_a_dataset_that_cannot_be_had_is_told():
    with pytest.raises(
        ValueError, match="data: no file some/questions, and the Hub does not give it"
    ):
        Options(type="jsonl", data="some/questions")


def test_the_configuration(sandbox, tmp_path):
    job = config.load_config(ROOT / "configs" / "jsonl.yaml")
    assert job.tasks[0].num_rows is None
    rows = jsonl.rows(job.tasks[0]) + jsonl.eval_rows(job.tasks[0])
    assert len(rows) == len(
        (ROOT / job.tasks[0].data).read_text().splitlines()
    ) and jsonl.eval_rows(job.tasks[0])
    assert check_rewards(job.tasks[0], sandbox)
    config.save(job, tmp_path / "saved.yaml")
    assert config.load_config(tmp_path / "saved.yaml") == job


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_share": 1.0},
        {"eval_share": -0.1},
        {"free_characters": 0},
        {"eval_split": "x"},
        {"split": "x"},
    ],
)
def test_mistakes_in_options(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Options(type="jsonl", **settings)


def test_the_repository_is_where_paths_begin(tmp_path):
    code = "from tasks import jsonl; print(jsonl.Options(type='jsonl').data)"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout == "configs/arithmetic.jsonl\n"


@pytest.mark.parametrize(
    ("completion", "without", "required"),
    [
        ("15 * 23 = 345", True, False),
        ("15 * 23 = 345\nAnswer: 345", True, True),
        ("345", True, False),
    ],
)
def test_a_marker_may_be_required(sandbox, completion, without, required):
    row = {"prompt": "What is 15 * 23? End with a line `Answer: N`.", "answer": 345}
    for expected, options in (
        (without, Options(type="jsonl")),
        (required, Options(type="jsonl", require_marker=True)),
    ):
        (grade,) = Grader([options], sandbox, seed=0).grade([completion], [row])
        assert grade.correct is expected


def test_a_line_that_is_not_utf_8_is_named_and_not_read_with_other_characters(tmp_path):
    path = tmp_path / "latin.jsonl"
    good = json.dumps({"prompt": "Was kostet ein Brötchen?", "answer": 1}, ensure_ascii=False)
    path.write_bytes(good.encode() + b"\n" + good.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=r"latin.jsonl:2: not UTF-8: byte 0xf6 at column 30"):
        mixed_rows([options(path)])
