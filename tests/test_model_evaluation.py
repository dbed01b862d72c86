"""evaluate.py: which model is meant, which rows it is asked, and what is refused."""

import json
import shutil

import pandas
import pytest
import yaml
from scripted import ScriptedRollout, harmony_final

import evaluate
from job.chat import Chat
from job.config import ROOT, load_config
from job.episodes.tool_format import ToolFormat
from job.errors import ConfigError
from job.evaluation import model_evaluation
from job.evaluation.model_evaluation import Request, held_out_rows
from job.model import ModelSource, find_model, is_hub_id, load_for_inference, load_model
from job.rollout import engine
from job.run_folder import RunFolder

TINY = str(ROOT / "configs" / "tiny.yaml")


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """The output folder of a run with an adapter in final_model, which training did not change."""
    folder = tmp_path_factory.mktemp("run")
    problems = "task.problems=[What is 1 + 1?, What is 2 * 3?]"
    held_out = "task.eval_problems=[{question: What is 3 * 4?, answer: 12}]"
    keys = [f"grpo.output_dir={folder}", "task.type=reasoning", problems, held_out]
    job = load_config(TINY, keys)
    model, tokenizer = load_model(job.model, job.lora)
    with RunFolder(job) as opened:
        opened.begin(job, checkpoint=None)
        opened.save_final(model, tokenizer)
    return folder


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": "What is 2 * 3?", "answer": 6}, {"prompt": "What is 5 + 5?", "answer": 10}]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def run(capsys, *arguments):
    code = evaluate.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


# ---- which model


def test_what_a_name_stands_for(trained_run, tmp_path):
    final_model = trained_run / "final_model"
    assert find_model(str(trained_run)).folder == find_model(str(final_model)).folder == final_model
    assert find_model(str(trained_run)).run_config == trained_run / "config.yaml"
    assert find_model("tiny_model").folder == ROOT / "tiny_model"  # from anywhere
    assert not find_model("tiny_model").is_adapter
    for number in (9, 10):
        checkpoint = tmp_path / f"checkpoint-{number}"
        checkpoint.mkdir()
        (checkpoint / "adapter_config.json").write_text("{}")
        (checkpoint / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()  # a save that was killed
    assert find_model(str(tmp_path)).folder.name == "checkpoint-10"
    assert find_model("owner/model") == ModelSource("owner/model")


@pytest.mark.parametrize(
    "name", ["./nothing", "/nothing/here", "a/b/c", "nothing", "tests/nothing"]
)
def test_a_path_to_nothing_is_no_model_on_the_hub(name):
    assert not is_hub_id(name) and not is_hub_id("gpt-oss-grpo/tiny")
    with pytest.raises(ConfigError, match=f"{name}: no such folder"):
        find_model(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ConfigError, match="holds no model"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("lora", ["lora.r=4", "lora.target_parameters=null"])
def test_an_adapter_of_another_shape_is_refused(trained_run, lora):
    source = find_model(str(trained_run))
    with pytest.raises(ConfigError, match="final_model: the adapter does not fit"):
        load_for_inference(source, source.config(overrides=[lora]))


def test_a_damaged_adapter_is_refused(trained_run, tmp_path):
    for file in (trained_run / "final_model").glob("adapter*"):
        (tmp_path / file.name).write_bytes(file.read_bytes()[:2000])
    source = find_model(str(tmp_path))
    with pytest.raises(ConfigError, match="or its file is damaged"):
        load_for_inference(source, source.config([TINY]))


# ---- which rows


def rows(name, **request):
    source = find_model(str(name))
    asked = model_evaluation.rows_to_evaluate([source], Request(**request))
    questions = [row["prompt"][-1]["content"] for row in asked.rows]
    return questions, [options.type for options in asked.judging.tasks]


def test_a_run_is_asked_what_it_holds_out(trained_run, data, capsys):
    (question,), types = rows(trained_run)
    assert "What is 3 * 4?" in question and types == ["reasoning"]
    assert "was trained on" not in capsys.readouterr().err
    assert rows(trained_run, data=str(data)) == (["What is 2 * 3?", "What is 5 + 5?"], ["jsonl"])
    assert rows(trained_run, data=str(data), task="reasoning")[1] == ["reasoning"]
    repeated, types = rows(trained_run, task="matmul", rows=5)
    assert len(repeated) == 5 and len(set(repeated)) == 1 and types == ["matmul"]


def test_rows_of_a_file_need_no_data_of_the_run(trained_run, data, tmp_path, capsys):
    shutil.copytree(trained_run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["task"] = {"type": "jsonl", "data": str(data), "num_eval_rows": 1}
    content["evaluate"]["every"] = 2
    config.write_text(yaml.safe_dump(content))
    source = find_model(str(tmp_path / "run"))
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "What is 7 * 8?", "solution": 56}\n')
    for _ in range(2):
        asked = model_evaluation.rows_to_evaluate([source], Request(data=str(other)))
        assert len(asked.rows) == 1
        assert model_evaluation.config_of_model(source, Request()).evaluate.every == 2
        assert data.name not in capsys.readouterr().err
        data.unlink(missing_ok=True)  # and the second time it is gone


def test_prompts_that_were_trained_on_are_told(trained_run, capsys):
    overrides = ["task.eval_problems=[]", "task.problems=[What is 1 + 1?, 'What is 4?']"]
    rows(trained_run, overrides=[*overrides, "task.num_eval_rows=1"])
    assert "was trained on" not in capsys.readouterr().err
    overrides[1] = "task.problems=['What is 4?', What is 1 + 1?]"
    rows(trained_run, overrides=[*overrides, "task.num_eval_rows=1"])
    assert "was trained on 1 of these 1 prompts" in capsys.readouterr().err


# ---- the command


def test_two_models_on_the_same_problems(trained_run, tmp_path, capsys):
    command = ["base", trained_run, "--output", tmp_path, "--completions", "3", "--batch", "2"]
    code, out, err = run(capsys, *command)
    assert code == 0, err
    # The adapter of this run changes nothing, so both give the same completions
    assert "+0 points [0, 0], p = 1.000, 1 problem" in out.splitlines()[-1]
    assert "pass@2" in out and "pass@3" in out and "0 problems got better, 0 worse" in out
    folders = sorted(path for path in tmp_path.iterdir())
    assert len(folders) == 2 and all((folder / "evaluation.json").is_file() for folder in folders)
    times = [(folder / "evaluation.json").stat().st_mtime_ns for folder in folders]
    code, out, _ = run(capsys, *command)
    assert code == 0 and out.count("holds this evaluation already") == 2
    assert times == [(folder / "evaluation.json").stat().st_mtime_ns for folder in folders]
    code, out, _ = run(capsys, *folders)  # finished evaluations, without any model
    assert code == 0 and "+0 points" in out
    code, _, err = run(capsys, *command, "grpo.temperature=0.5")
    assert code == 2 and "another value of sampling" in err


def test_evaluations_of_other_rows_have_folders_of_their_own():
    source = find_model("tiny")
    judging = load_config(TINY, ["task.type=reasoning"])
    names = []
    for asked in ({}, {"rows": 10}, {"rows": 20}, {"data": "/a/mine.jsonl", "rows": 10}):
        request = Request(**asked)
        names.append(model_evaluation.output_folder(source, judging, request, False).name)
    assert names == [
        "tiny-reasoning",
        "tiny-reasoning-10-rows",
        "tiny-reasoning-20-rows",
        "tiny-reasoning-mine-10-rows",
    ]


def test_a_folder_of_other_rows_is_refused_before_a_model_is_loaded(
    data, tmp_path, capsys, monkeypatch
):
    ask = ["tiny", "--data", data, "--completions", "1", "--max-new-tokens", "2"]
    code, _, err = run(capsys, *ask, "--output", tmp_path / "one", "--rows", "1")
    assert code == 0, err
    # The same folder as the second of two models has now
    (tmp_path / "two").mkdir()
    (tmp_path / "one").rename(tmp_path / "two" / "tiny-jsonl-mine")
    monkeypatch.setattr(model_evaluation, "load_for_inference", None)
    code, _, err = run(capsys, "tiny_model", *ask, "--output", tmp_path / "two")
    assert code == 2 and "holds an evaluation of other rows (1, now 2)" in err
    assert "--output" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base"], "base: of which model?"),
        (["tiny", "--task", "reasonin"], "--task: no task 'reasonin'"),
        (["tiny", "--task", "reasoning"], "task: reasoning holds no rows out; set"),
        (["tiny", "--data", "nothing.jsonl"], "--data: there is no file nothing.jsonl"),
        (["tiny", "--temperature", "0"], "--completions 1"),
        (["a", "b", "c"], "name one model or two, not 3"),
        (["tiny", "model.max_seq_length=30"], "model.max_seq_length: 30 leaves"),
        (["tiny", "grpo.sedd=1"], "grpo.sedd: no such key"),
        (["tiny", "--output", "/dev/null/x"], "/dev/null/x: cannot be written"),
    ],
)
def test_mistakes_cost_one_line_each(arguments, said, capsys):
    code, out, err = run(capsys, *arguments)
    assert code in (2, 4) and out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said in line and "Traceback" not in err


def test_a_damaged_evaluation_is_refused(tmp_path, capsys):
    (tmp_path / "completions.parquet").write_bytes(b"")
    for content in ("", "[]", "{}", '{"settings": 1}'):
        (tmp_path / "evaluation.json").write_text(content)
        code, _, err = run(capsys, tmp_path, "tiny")
        assert code == 2 and "evaluation.json: missing or damaged" in err


def test_bad_rows_are_named_with_their_lines(tmp_path, capsys):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "x"}\nno json\n{"question": "y"}\n')
    code, _, err = run(capsys, "tiny", "--data", file, "--task", "code")
    assert code == 2
    assert "bad.jsonl:2: not JSON" in err and "bad.jsonl:3: no prompt" in err


def test_ctrl_c_leaves_what_was_evaluated(monkeypatch, capsys):
    def stop(models, request):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate_models", stop)
    code, _, err = run(capsys, "tiny")
    assert code == 130 and "the same command continues" in err


def test_all_prompts_may_be_evaluated_where_nothing_is_trained():
    keys = ["task.type=reasoning", "task.num_rows=8", "task.num_eval_rows=8"]
    job = load_config(None, keys)
    rows, fresh = held_out_rows(job, None)
    assert len(rows) == len(job.tasks[0].problems) and not fresh


def test_the_same_base_plays_before_and_after_training(trained_run, tmp_path, capsys, monkeypatch):
    """The model says what is written; the base answers by itself, without the adapter."""
    asked = []
    of_base = engine.base_rollout

    def base_rollout(model, complete):
        def watched(prompts):
            asked.append((len(prompts), model.get_model_status().enabled))
            return complete(prompts)

        return of_base(model, watched)

    def make_rollout(model, tokenizer, *args, **kwargs):
        scripts = [[harmony_final("Hello."), harmony_final("Well?")] for _ in range(2)]
        return ScriptedRollout(ToolFormat(Chat(tokenizer, "2025-08-05")), scripts), "scripted"

    monkeypatch.setattr(engine, "base_rollout", base_rollout)
    monkeypatch.setattr(engine, "make_rollout", make_rollout)
    talk = (
        trained_run, "--task", "prompt_injection_talk", "--rows", 2, "--completions", 1,
        "--output", tmp_path / "talks", "task.opponent=base", "task.opponent_tokens=8",
        "task.messages=2", "task.num_eval_rows=2", "model.max_seq_length=640",
    )  # fmt: skip
    code, _, err = run(capsys, *talk)
    assert code == 0, err
    assert asked == [(2, False), (2, False)]
    table = pandas.read_parquet(tmp_path / "talks" / "completions.parquet")
    assert list(table["turns"]) == [2, 2]
    # Another opponent is another evaluation
    code, _, err = run(capsys, *(word for word in talk if word != "task.opponent=base"))
    assert code == 2 and "talks holds an evaluation with another value of task" in err
