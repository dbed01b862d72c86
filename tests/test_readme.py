"""README.md: what it shows is loaded, run or compared."""

import ast
import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

import reward_functions
import tasks
from job import config, grpo_keys, watchdog
from sandbox import Status
from tasks import Grade

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """The fenced blocks of one language; a fence inside a block is indented there."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def example_functions(monkeypatch):
    """The functions that the README's Python blocks define, as if they had been added to reward_functions.py."""
    for block in blocks("python"):
        namespace = {}
        exec(compile(ast.parse(block), "README.md", "exec"), namespace)
        for name, value in namespace.items():
            if callable(value):
                monkeypatch.setattr(reward_functions, name, value, raising=False)
    return reward_functions


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_yaml_block_is_a_config(block, example_functions, tmp_path):
    (tmp_path / "block.yaml").write_text(block)
    config.load_config(tmp_path / "block.yaml")


def test_the_example_reward_function(example_functions):
    grades = [Grade(Status.OK, correct=True, code="x"), Grade(Status.CRASH, code="x")]
    assert example_functions.short_answer([None, None], grades=grades) == [1.0, 0.0]


def test_every_key_of_the_config_is_explained():
    job = config.load_config()
    sections = {"model": job.model, "lora": job.lora, "sandbox": job.sandbox}
    keys = {
        f"{section}.{key}"
        for section, options in sections.items()
        for key in options.__dataclass_fields__
    }
    keys |= {f"task.{key}" for key in tasks.Options.__dataclass_fields__} | {
        f"grpo.{key}" for key in grpo_keys.OWN_KEYS
    }
    rarely_touched = {
        "lora.lora_dropout",
        "lora.bias",
        "lora.target_parameters",
        "lora.random_state",
    }
    assert {key for key in keys - rarely_touched if f"`{key}`" not in README} == set()


def test_every_algorithm_stands_in_the_table_as_it_is():
    for name, keys in grpo_keys.ALGORITHMS.items():
        row = re.search(rf"^\| `{name}` \|(.*)$", README, re.MULTILINE)[1].split("|")
        _, loss_type, level, scale, beta, epsilon, others = (cell.strip() for cell in row[:7])
        assert (
            loss_type.split("`")[1] == keys["loss_type"]
            and level == keys["importance_sampling_level"]
        )
        assert scale.split(":")[0] == keys["scale_rewards"] and float(beta) == keys["beta"]
        high = keys["epsilon_high"]
        low, shown_high = epsilon.split(", ")
        assert float(low) == keys["epsilon"] and (
            shown_high == "-" if high is None else float(shown_high) == high
        )
        special = ("mask_truncated_completions", "zero_std_groups", "multi_objective_aggregation")
        different = [key for key in special if keys[key] != grpo_keys.COMMON[key]]
        assert re.findall(r"`(\w+): ", others) == different


def test_every_diagnosis_is_explained():
    for field in dataclasses.fields(watchdog.Options):
        assert re.search(rf"^\| .*`(watchdog\.)?{field.name}`.* \|", README, re.MULTILINE), (
            field.name
        )


def test_every_grade_status_and_reward_is_explained():
    for status in Status:
        assert f"`{status}`" in README
    for name in reward_functions.__all__:
        assert re.search(rf"^\| .*`{name}`.* \|", README, re.MULTILINE), name


def test_every_file_that_it_links_to_exists():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_shell_commands_name_scripts_that_exist():
    for command in re.findall(r"\bbash ((?:[\w./]+/)?[\w.]+\.sh)", README):
        assert (ROOT / command).is_file(), command


@pytest.mark.parametrize("script", ["build.sh", "train.sh"])
def test_help_answers(script):
    result = subprocess.run(["bash", ROOT / script, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "usage" in result.stdout
