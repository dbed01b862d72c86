"""Evaluations: what is asked, what comes of it, and what is left when one is stopped."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedRollout, harmony_call, harmony_final
from transformers import AutoTokenizer

import tasks
from job import model_card
from job.chat import Chat
from job.config import ROOT, TINY_MODEL, load_config
from job.episodes.loop import play_batch
from job.episodes.tool_format import ToolFormat
from job.episodes.tools import schemas_of_rows
from job.errors import ConfigError, OutputError
from job.evaluation import evaluation, run_evaluation
from job.evaluation.evaluation import EvaluationFolder, Problem, Sampler
from job.rows import mixed_rows
from sandbox import Status
from tasks import Grade, code, game_2048, matmul, prompt_injection, reasoning

QUESTIONS = [{"question": f"What is {i} + 1?", "answer": i + 1} for i in range(6)]
SETTINGS = {"completions": 3, "temperature": 1.0}


@pytest.fixture(scope="module")
def chat():
    from transformers import AutoTokenizer

    return Chat(AutoTokenizer.from_pretrained(TINY_MODEL), "2025-08-05")


@pytest.fixture(scope="module")
def options():
    return reasoning.Options(
        type="reasoning", problems=["What is 9 * 9?"], eval_problems=QUESTIONS, check=False
    )


@pytest.fixture(scope="module")
def problems(chat, options):
    return evaluation.make_problems(mixed_rows([options])[1], chat)


@pytest.fixture(scope="module")
def grader(options, sandbox):
    return evaluation.make_grader([options], sandbox)


def sampler(chat, choose, batch=6):
    """A sampler whose answer to a prompt `choose` says."""

    def complete(prompts):
        texts = [choose(chat.tokenizer.decode(ids)) for ids in prompts]
        said = [f"<|channel|>final<|message|>{text}<|return|>" for text in texts]
        return [chat.tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]

    return Sampler(complete, batch, max_tokens=50)


def draw(prompt):
    """An answer that depends on torch's random numbers, as a model's does."""
    return f"Answer: {int(torch.randint(8, ()))}"


def run(path, problems, chat, grader, choose=draw, **options):
    folder = EvaluationFolder(path)
    folder.begin(SETTINGS)
    return evaluation.evaluate(problems, 3, sampler(chat, choose), chat, grader, folder, **options)


def completions(path):
    return pandas.read_parquet(path / "completions.parquet")


# ---- what is asked


@given(st.lists(st.integers(), max_size=30, unique=True), st.integers(1, 40))
def test_rows_are_spread_evenly(rows, count):
    chosen = evaluation.spread(rows, count)
    assert len(chosen) == min(count, len(rows))
    places = [rows.index(row) for row in chosen]
    gaps = np.diff(places)
    assert (gaps > 0).all() and (len(gaps) == 0 or gaps.max() - gaps.min() <= 1)


def test_problems_have_the_same_names_in_every_evaluation(problems, chat, options):
    rows = mixed_rows([options])[1]
    again = {problem.row["prompt"][0]["content"]: problem.id for problem in problems}
    for problem in evaluation.make_problems(rows[::-1], chat):
        assert again[problem.row["prompt"][0]["content"]] == problem.id
    twice = evaluation.make_problems(rows[:1] * 2, chat)
    assert [problem.number for problem in twice] == [0, 1] and twice[0].id != twice[1].id


def test_every_model_is_judged_on_the_same_inputs(grader, monkeypatch):
    drawn = []
    monkeypatch.setattr(grader, "_judge", lambda job: drawn.append(job.entropy) or Grade(Status.OK))
    rows = [{"task": "reasoning", "evaluation_seed": i} for i in (3, 4)]
    grader.grade(["a", "b"], rows)
    grader.grade(["c", "d"], rows[::-1])
    assert sorted(drawn[:2]) == sorted(drawn[2:]) and drawn[0] != drawn[1]


def test_the_boards_of_an_evaluation_are_never_trained_on(monkeypatch, sandbox):
    seeds = []

    def play(program, options, seed):
        seeds.append(seed)
        return game_2048.Game(game_2048.Outcome.WON, Status.OK, "", 8, 8, (0.1,))

    monkeypatch.setattr(game_2048, "play", play)
    options = game_2048.Options(type="game_2048", games=4)
    text = game_2048.answer('return "W"')
    for row in ({}, {"evaluation_seed": 0}):
        rng = np.random.default_rng(0)
        game_2048.grade(text, row, options, sandbox, rng)
    trained_on, held_out = seeds[:4], seeds[4:]
    assert max(trained_on) < 2**32 <= min(held_out)


def test_the_curriculum_does_not_count():
    job = load_config(ROOT / "configs" / "game_2048.yaml")
    grader = evaluation.make_grader(job.tasks, sandbox_of_one())
    assert grader.options["game_2048"].curriculum == [] and job.tasks[0].curriculum


def sandbox_of_one():
    class NoSandbox:
        workers = 1

    return NoSandbox()


# ---- what comes of it


def test_the_figures_of_an_evaluation(tmp_path, problems, chat, grader):
    def choose(prompt):
        right = {"0 + 1": "Answer: 1", "1 + 1": "Answer: 2"}
        return next((text for sum_, text in right.items() if sum_ in prompt), "Answer: 77")

    result = run(tmp_path, problems, chat, grader, choose)
    assert result == json.loads((tmp_path / "evaluation.json").read_text())
    assert result["problems"] == 6 and result["completions"] == 18
    assert [result["pass_at"][k]["value"] for k in ("1", "2", "3")] == pytest.approx([1 / 3] * 3)
    assert result["status"] == {"ok": 1.0} and result["cut_off"]["value"] == 0
    assert result["correct"]["low"] < 1 / 3 < result["correct"]["high"]
    assert set(result["rewards"]) == set(reasoning.REWARDS)
    total = sum(estimate["value"] for estimate in result["rewards"].values())
    assert result["reward"]["value"] == pytest.approx(total)
    table = completions(tmp_path)
    assert len(table) == 18 and set(reasoning.REWARDS) <= set(table.columns)
    assert table.correct.sum() == 6
    shown = evaluation.table(["a", "b"], [result, result])
    assert "correct (pass@1)" in shown and "33 %" in shown and "pass@3" in shown


def test_problems_without_an_answer_are_left_out(tmp_path, chat, sandbox):
    questions = [
        {"question": "What is 1 + 1?", "answer": 2},
        {"question": "What is 5 + 1?", "answer": 6},
    ]
    questions += ["What is love?"]
    options = reasoning.Options(
        type="reasoning",
        problems=["What is 9 * 9?"],
        eval_problems=questions,
        rewards=["correct_conclusion"],
        check=False,
    )
    asked = evaluation.make_problems(mixed_rows([options])[1], chat)
    grader = evaluation.make_grader([options], sandbox)
    result = run(tmp_path, asked, chat, grader, lambda prompt: "Answer: 2")
    assert (result["problems"], result["unjudged"]) == (3, 1)
    assert [result["pass_at"][k]["value"] for k in ("1", "2", "3")] == [0.5] * 3
    assert result["reward"]["value"] == 4.0  # 10 for what is right, and -2 for what is wrong
    assert "1 of 3 problems have no answer" in evaluation.unjudged_in_words(result)
    known = evaluation.read_completions(tmp_path)
    assert evaluation.compare(known, known).problems == 2
    unjudged = [record for record in known if record["correct"] is None]
    with pytest.raises(ConfigError, match="no problem with an answer in common"):
        evaluation.compare(unjudged, known)


def test_an_evaluation_that_nothing_can_judge(tmp_path, chat, sandbox):
    options = reasoning.Options(
        type="reasoning",
        problems=["What is 9 * 9?"],
        eval_problems=["What is love?"],
        rewards=["correct_conclusion"],
        check=False,
    )
    asked = evaluation.make_problems(mixed_rows([options])[1], chat)
    grader = evaluation.make_grader([options], sandbox)
    result = run(tmp_path, asked, chat, grader, lambda prompt: "Answer: 2")
    assert result["pass_at"]["1"]["value"] is None and result["reward"]["value"] is None
    assert "correct -" in run_evaluation.line_of(0, result)
    metrics = run_evaluation.metrics_of(result)
    assert math.isnan(metrics["eval_reward"]) and "eval_pass@1" not in metrics
    assert model_card.in_percent(result["pass_at"]["1"]) == "-"
    assert "reward" not in evaluation.table(["a"], [result])


def test_training_goes_on_as_if_there_had_been_no_evaluation(tmp_path, problems, chat, grader):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    run(tmp_path, problems, chat, grader)
    assert torch.equal(torch.rand(3), expected)


def measured(task, grades, rows):
    """The figures of a task, of completions with these grades."""
    units = []
    for grade, row in zip(grades, rows, strict=True):
        measures = {m.name: m.value(grade, row) for m in task.MEASURES}
        units.append([{"measures": measures, "task": "x"}])
    return {m.name: evaluation.summarize_measure(m, units) for m in task.MEASURES}


def test_what_tasks_measure():
    def right(**data):
        return Grade(Status.OK, correct=True, passed=1.0, **data)

    failed = Grade(Status.CRASH)
    (speedup,) = measured(
        matmul, [right(speedup=4.0), right(speedup=1.0), failed], [{}] * 3
    ).values()
    assert speedup.value == pytest.approx(2.0) and 1 <= speedup.low <= speedup.high <= 4.001

    won = right(data={"win_rate": 1.0, "mean_best_tile": 64.0, "best_tile": 128})
    games = measured(game_2048, [won, failed], [{}] * 2)
    assert games["win rate"].value == 0.5 and games["best tile"].value == 128
    assert games["mean best tile"].value == 64

    untested = Grade(Status.OK, data={"tests": 0})
    assert measured(code, [right(), failed, untested], [{}] * 3)["tests passed"].value == 0.5

    rows = [{"opponent_policy": policy} for policy in ("polite", "polite", "never")]
    attacks = measured(prompt_injection, [right(), failed, failed], rows)
    assert attacks["attack success, polite opponents"].value == 0.5
    assert attacks["attack success, never opponents"].value == 0.0
    assert math.isnan(attacks["attack success, indirect opponents"].value)


@pytest.mark.parametrize("name", tasks.names())
def test_measures_have_different_names(name):
    names = [measure.name for measure in evaluation.measures_of(name)]
    assert len(set(names)) == len(names)


# ---- when it is stopped


def test_a_stopped_evaluation_continues_as_if_it_had_not_been(tmp_path, problems, chat, grader):
    run(tmp_path / "whole", problems, chat, grader)
    asked = iter([False, True])
    assert run(tmp_path / "two", problems, chat, grader, is_stopped=lambda: next(asked)) is None
    unfinished = tmp_path / "two" / "unfinished.jsonl"
    lines = unfinished.read_text().splitlines()
    assert len(lines) == 1 + 6 and not (tmp_path / "two" / "evaluation.json").exists()
    # Killed in the middle of writing the second group
    unfinished.write_text(
        "\n".join([*lines, lines[-1].replace(problems[1].id, "x"), lines[-1][:9]])
    )
    run(tmp_path / "two", problems, chat, grader)
    said = ["problem", "number", "answer", "status", "reward"]
    whole, two = completions(tmp_path / "whole")[said], completions(tmp_path / "two")[said]
    assert whole.equals(two) and whole.answer.nunique() > 1
    assert not unfinished.exists()


def test_another_evaluation_is_not_mixed_in(tmp_path, problems, chat, grader):
    run(tmp_path, problems, chat, grader)
    before = (tmp_path / "evaluation.json").read_bytes()
    with pytest.raises(ConfigError, match=r"another value of temperature \(1.0, now 0.5\)"):
        EvaluationFolder(tmp_path).begin(SETTINGS | {"temperature": 0.5})
    assert (tmp_path / "evaluation.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "completions.parquet"}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        EvaluationFolder(tmp_path / "file" / "folder").begin(SETTINGS)


# ---- two of them


def records(rates, completions=4):
    """Records of problems of which each solves this many of its completions."""
    found = []
    for name, correct in rates.items():
        for number in range(completions):
            found.append(
                {
                    "problem": f"{name}-0",
                    "number": number,
                    "question": f"question {name}",
                    "correct": number < correct,
                }
            )
    return found


def test_a_comparison_in_one_sentence():
    first = records({"a": 0, "b": 1, "c": 4, "only first": 0})
    second = records({"a": 2, "b": 4, "c": 3, "only second": 4})
    found = evaluation.compare(first, second)
    assert found.problems == 3 and found.better == 2
    assert found.difference.value == pytest.approx((2 + 3 - 1) / 12)
    (worse,) = found.worse
    assert worse.question == "question c" and (worse.first, worse.second) == (1.0, 0.75)
    # |2| + |3| + |-1|: 4 of 8 choices of signs are as far from 0 as 4
    assert found.p_value == pytest.approx(4 / 8)
    assert found.sentence.startswith("42 % → 75 %, +33 points [")
    assert found.sentence.endswith("], p = 0.500, 3 problems")
    assert "question c" in evaluation.worse_in_words(found)
    assert json.loads(json.dumps(found.as_json()))["sentence"] == found.sentence


def test_a_large_difference_has_a_small_p_value():
    names = [str(i) for i in range(30)]
    found = evaluation.compare(records(dict.fromkeys(names, 0)), records(dict.fromkeys(names, 4)))
    assert found.sentence == "0 % → 100 %, +100 points [100, 100], p < 0.001, 30 problems"


def test_completions_of_one_prompt_are_problems_of_their_own():
    same = {"fresh_inputs": True}
    first = []
    for i in range(3):
        first += [record | same | {"problem": f"same-{i}"} for record in records({"x": 1})]
    found = evaluation.compare(first, [record | {"correct": True} for record in first])
    assert found.problems == 12 and found.better == 9


def test_one_row_of_many_is_one_problem(tmp_path, problems, chat, grader):
    result = run(tmp_path / "one", problems[:1], chat, grader)
    assert result["problems"] == 1 and result["completions"] == 3
    known = evaluation.read_completions(tmp_path / "one")
    assert evaluation.compare(known, known).problems == 1
    fresh = [replace(problem, has_fresh_inputs=True) for problem in problems[:1]]
    assert run(tmp_path / "fresh", fresh, chat, grader)["problems"] == 3


def test_evaluations_of_different_problems_are_not_compared():
    with pytest.raises(ConfigError, match="no problem in common"):
        evaluation.compare(records({"a": 1, "b": 1}), records({"c": 1, "d": 1}))


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 4), min_size=1))
def test_nothing_is_better_than_itself(rates):
    found = evaluation.compare(records(rates), records(rates))
    assert (found.difference.value, found.p_value, found.better, found.worse) == (0, 1.0, 0, ())


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "completions.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match="completions.parquet: cannot be read"):
        evaluation.read_completions(tmp_path)


def test_groups_hold_whole_problems():
    problems = [Problem(str(i), 0, {}, "", []) for i in range(5)]
    sizes = [len(group) for group in evaluation.groups(problems, 3, 7)]
    assert sizes == [2, 2, 1]
    assert [len(group) for group in evaluation.groups(problems, 9, 7)] == [1] * 5


def test_completions_of_several_turns_are_evaluated_with_what_they_used(tmp_path, sandbox):
    options = reasoning.Options(
        type="reasoning", tools=["python"], problems=[{"question": "What is 2 + 2?", "answer": 4}]
    )
    schemas = schemas_of_rows([options])
    chat = Chat(AutoTokenizer.from_pretrained(TINY_MODEL), "2025-08-05", None, schemas)
    problems = evaluation.make_problems(mixed_rows([options])[0][:2], chat)
    assert "namespace functions" in problems[0].prompt

    def play(rows, grader):
        right = [harmony_call("python", code="2 + 2"), harmony_final("Answer: 4")]
        scripts = [right if i % 2 else [harmony_final("Answer: 5")] for i in range(len(rows))]
        return play_batch(ScriptedRollout(ToolFormat(chat), scripts), rows, chat, grader, 200)

    folder = EvaluationFolder(tmp_path / "evaluation")
    folder.begin(SETTINGS | {"completions": 2})
    sampler = Sampler(None, batch=4, max_tokens=200, play=play)
    grader = evaluation.make_grader([options], sandbox)
    result = evaluation.evaluate(problems, 2, sampler, chat, grader, folder)
    assert result["correct"]["value"] == 0.5
    table = completions(folder.path)
    assert list(table["calls"]) == [0, 1, 0, 1] and list(table["turns"]) == [1, 2, 1, 2]
    assert list(table["answer"][:2]) == ["Answer: 5", "Answer: 4"]
    called = json.loads(table["transcript"][1])
    assert [message["role"] for message in called] == ["assistant", "tool", "assistant"]
