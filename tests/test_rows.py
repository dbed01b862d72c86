"""Which rows are trained on and which are held out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks
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
