"""Which rows are trained on and which are held out."""

import json

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import reward_functions
import tasks
from job.grading import Grader
from job.rows import mixed_rows, prompt_key, share_out
from tasks import jsonl, matmul, prompt_injection, reasoning


def jsonl_options(tmp_path, prompts, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": prompt, "answer": "4"}) + "\n" for prompt in prompts)
    )
    return jsonl.Options(type="jsonl", data=str(path), **options)


def texts(rows):
    return [row["prompt"][0]["content"] for row in rows]


def test_rows_in_turn_are_held_out_by_their_prompts(tmp_path):
    options = jsonl_options(tmp_path, ["one", "two", "three", "two"], num_rows=10, num_eval_rows=2)
    trained_on, held_out = mixed_rows([options])
    assert texts(held_out) == ["two", "three"]
    assert set(texts(trained_on)) == {"one"}


def test_all_rows_may_be_held_out_where_none_is_trained_on(tmp_path):
    options = jsonl_options(tmp_path, ["one", "two"], num_eval_rows=8)
    with pytest.raises(ValueError, match="leaves none of its 2 different prompts to train on"):
        mixed_rows([options])
    trained_on, held_out = mixed_rows([options], trains=False)
    assert trained_on == [] and texts(held_out) == ["one", "two"]


def test_prompts_that_differ_in_white_space_are_the_same(tmp_path):
    options = jsonl_options(tmp_path, ["one", "what  is\nit", "what is it", "two"], num_eval_rows=2)
    trained_on, held_out = mixed_rows([options])
    assert texts(held_out) == ["what  is\nit", "two"] and texts(trained_on) == ["one"]


def test_a_tasks_own_evaluation_loses_what_is_trained_on(capfd):
    tasks.note_once.cache_clear()
    problems = [{"question": "1 + 1", "answer": 2}, {"question": "1 + 2", "answer": 3}]
    options = reasoning.Options(
        type="reasoning", problems=problems[:1], eval_problems=problems, num_rows=4
    )
    trained_on, held_out = mixed_rows([options])
    assert len(trained_on) == 4 and [row["question"] for row in held_out] == ["1 + 2"]
    assert (
        "1 of its 2 rows for evaluation have prompts that are trained on" in capfd.readouterr().err
    )


def test_one_prompt_for_all_rows_is_evaluated_on_other_inputs():
    trained_on, held_out = mixed_rows([matmul.Options(type="matmul", num_rows=9, num_eval_rows=3)])
    assert (len(trained_on), len(held_out)) == (9, 3)


@pytest.mark.parametrize("name", tasks.names())
def test_what_is_held_out_is_unseen_in_every_task(name):
    options = tasks.load(name).Options(type=name, num_rows=6, num_eval_rows=1)
    trained_on, held_out = mixed_rows([options])
    assert held_out
    prompts = {prompt_key(row) for row in trained_on}
    if len(prompts) > 1 or name not in ("matmul", "game_2048"):
        assert not prompts & {prompt_key(row) for row in held_out}


@pytest.mark.parametrize("name", ["jsonl", "reasoning", "code"])
def test_one_prompt_alone_cannot_be_held_out(name, tmp_path):
    """Only a task that draws its inputs can be evaluated on the prompt that it trains on."""
    settings = {"num_rows": 8, "num_eval_rows": 2}
    if name == "jsonl":
        options = jsonl_options(tmp_path, ["one", " one"], **settings)
    else:
        task = tasks.load(name)
        options = task.Options(type=name, problems=task.PROBLEMS[:1], **settings)
    with pytest.raises(ValueError, match="none of its 1 different prompts"):
        mixed_rows([options])


@given(
    st.lists(st.sampled_from(["a", "b", "a ", "c", "d  e", "d e"]), min_size=4, max_size=12),
    st.integers(1, 30),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.3]),
)
def test_rows_that_repeat_and_are_cycled_never_leak(tmp_path_factory, prompts, rows, held, share):
    """However the rows repeat, and whichever key holds them out."""
    settings = {"num_rows": rows, "num_eval_rows": held, "eval_share": share}
    folder = tmp_path_factory.mktemp("rows")
    try:
        options = jsonl_options(folder, prompts, **settings)
        trained_on, evaluation = mixed_rows([options])
    except ValueError as error:
        assert "none of its" in str(error) or "no row to train on" in str(error)
        return
    seen = {prompt_key(row) for row in trained_on}
    assert trained_on and not seen & {prompt_key(row) for row in evaluation}
    assert len(evaluation) >= (held if rows >= len(prompts) else 0)


@pytest.mark.parametrize("name", ["reasoning", "code"])
def test_problems_that_repeat_and_are_cycled_never_leak(name):
    task = tasks.load(name)
    again = [*task.PROBLEMS, *task.PROBLEMS[:2], *task.PROBLEMS[-1:]]
    settings = {"num_rows": 3 * len(again) + 1, "num_eval_rows": 1, "eval_problems": again[:1]}
    options = task.Options(type=name, problems=again, **settings)
    trained_on, held_out = mixed_rows([options])
    seen = {prompt_key(row) for row in trained_on}
    assert len(held_out) == 1 and len(seen) == len(task.PROBLEMS) - 1
    assert not seen & {prompt_key(row) for row in held_out}


@pytest.mark.parametrize(
    "settings",
    [{"problems": ["a \ud800"]}, {"prompt_template": "\udfff {question}"}],
)
def test_half_a_letter_in_a_prompt_of_any_task_is_refused(settings):
    with pytest.raises(ValueError, match="half of a letter"):
        mixed_rows([reasoning.Options(type="reasoning", **settings)])


def test_what_one_task_holds_out_no_other_trains_on(tmp_path, capfd):
    tasks.note_once.cache_clear()
    own = jsonl_options(tmp_path, ["one", "two", "three"], num_rows=None, num_eval_rows=2)
    other = reasoning.Options(
        type="reasoning", problems=["three"], prompt_template="{question}", num_rows=2
    )
    trained_on, held_out = mixed_rows([own, other])
    assert "three" in texts(trained_on) and texts(held_out) == ["two"]
    assert "1 of 2 rows for evaluation have prompts that another task" in capfd.readouterr().err


def test_a_column_called_task_is_the_users(tmp_path, sandbox, monkeypatch):
    def told(completions, task, **kwargs):
        return [float(name == "theirs") for name in task]

    monkeypatch.setattr(reward_functions, "told", told, raising=False)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x", "answer": 1, "task": "theirs"}\n')  # a number here
    settings = {"rewards": ["told"], "num_rows": None}
    mixture = [
        jsonl.Options(type="jsonl", data=str(path), **settings),
        reasoning.Options(type="reasoning", num_rows=1, rewards=["correct_conclusion"]),
    ]
    rows = Dataset.from_list(mixed_rows(mixture)[0]).to_list()
    assert [row["task"] for row in rows] == ["theirs", "reasoning"]
    assert [tasks.type_of(row) for row in rows] == ["jsonl", "reasoning"]
    scored = Grader(mixture, sandbox, 0).score(["Answer: 345"] * 2, rows)
    assert [item.rewards for item in scored] == [
        {"told": 1.0, "correct_conclusion": None},
        {"told": None, "correct_conclusion": 10.0},
    ]


def test_tasks_whose_columns_hold_different_kinds_of_values_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x", "answer": 1, "problem": "theirs"}\n')
    mixture = [
        jsonl.Options(type="jsonl", data=str(path)),
        tasks.load("code").Options(type="code", num_rows=1),
    ]
    with pytest.raises(ValueError, match="column problem holds values of different kinds"):
        mixed_rows(mixture)


@pytest.mark.parametrize("name", sorted(tasks.RESERVED_COLUMNS))
def test_rows_of_any_task_may_not_take_a_name_of_ours(name):
    row = {"prompt": [{"role": "user", "content": "x"}], name: 1}
    with pytest.raises(ValueError, match="names that the trainer itself uses"):
        tasks.labelled(row, matmul.Options(type="matmul"))


def test_too_many_prompts_to_hold_out_are_refused(tmp_path):
    options = jsonl_options(tmp_path, ["one", "two", "one"], num_eval_rows=2)
    with pytest.raises(ValueError, match="none of its 2 different prompts"):
        mixed_rows([options])


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 10)), min_size=2, max_size=4),
)
def test_shares_follow_the_weights(parts):
    rows = [[{"part": i}] * count for i, (count, _) in enumerate(parts)]
    weights = [weight for _, weight in parts]
    total = sum(map(len, rows))
    for own, weight in zip(share_out(rows, weights), weights, strict=True):
        assert len(own) == max(round(total * weight / sum(weights)), 1)
        assert len({row["part"] for row in own}) == 1


def test_rows_of_prompt_injection_are_all_different():
    options = prompt_injection.Options(type="prompt_injection", num_rows=20, num_eval_rows=5)
    trained_on, held_out = mixed_rows([options])
    assert (len(trained_on), len(held_out)) == (15, 5)
