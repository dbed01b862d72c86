"""config.py: one validated Config, or every mistake at once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tasks
from job import config
from job.config import load_config as load
from job.errors import ConfigError
from job.rows import mixed_rows
from job.schedules import RewardWeights

CONFIGS = sorted([config.ROOT / "config.yaml", *(config.ROOT / "configs").glob("*.yaml")])


def mistakes(path=None, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return caught.value.mistakes


def write(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads_and_starts_with_its_command(path):
    load(path)
    assert re.search(r"^#\s+bash .*train\.sh", path.read_text(), re.MULTILINE)


def test_settled_defaults():
    loaded = load()
    assert loaded.model.name == "unsloth/gpt-oss-20b"
    assert loaded.model.quantization == "auto"
    assert loaded.model.max_seq_length == 1024
    assert (loaded.lora.r, loaded.lora.lora_alpha, loaded.lora.random_state) == (8, 16, 3407)
    assert loaded.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    wanted = {
        "beta": 0.1,
        "temperature": 1.0,
        "learning_rate": 5e-5,
        "weight_decay": 0.01,
        "max_steps": 10,
    }
    wanted |= {
        "num_generations": 8,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
    }
    wanted |= {"optim": "adamw_8bit", "save_steps": 10, "logging_steps": 1, "warmup_steps": 0.1}
    assert wanted.items() <= dict(loaded.grpo).items()
    assert "max_completion_length" not in loaded.grpo  # null: worked out from the longest prompt


def test_loading_imports_no_torch():
    code = "import sys; from job.config import load_config; load_config()"
    code += "; print([m for m in ('torch', 'trl', 'transformers') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=config.ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_resolved_config_loads_back_the_same(tmp_path):
    first = load(
        None, ["grpo.max_steps=3", "task.prompt=say 5: {x}", "lora.target_modules=all-linear"]
    )
    config.save(first, tmp_path / "resolved.yaml")
    assert load(tmp_path / "resolved.yaml") == first


def test_what_changed_since_a_config_was_saved(tmp_path):
    rewards = {
        "task.rewards={style: {0: 0.0, 100: 1.0}}": [],
        "task.rewards={style: {0: 0.0, 100: 2.0}}": ["2.0, was 1.0"],
    }
    for override, changes in rewards.items():
        config.save(load(None, ["task.type=code", *list(rewards)[:1]]), tmp_path / "saved.yaml")
        keys = [
            "task.type=code",
            override,
            "grpo.output_dir=elsewhere",
            "grpo.resume_from_checkpoint=auto",
        ]
        found = config.changed_since(load(None, keys), tmp_path / "saved.yaml")
        assert found == [f"task.rewards.style.100: {change}" for change in changes]
    config.save(load(None, ["grpo.learning_rate=1e-3"]), tmp_path / "saved.yaml")
    found = config.changed_since(load(None, ["grpo.algorithm=dapo"]), tmp_path / "saved.yaml")
    assert (
        "grpo.learning_rate: 5e-05, was 0.001" in found
        and "grpo.algorithm: dapo, was None" in found
    )
    (tmp_path / "saved.yaml").write_text("model: {")
    assert config.changed_since(load(), tmp_path / "saved.yaml") == []
    assert config.changed_since(load(), tmp_path / "missing.yaml") == []


def test_schedules_and_curricula_load_back_the_same(tmp_path):
    text = (
        "task:\n  rewards:\n    style: {0: 0.0, '100': 1}\n    reward_functions:clarity: 0.5\n"
        "  curriculum: [{step: 0, timing_pairs: 2}, {step: 50}]\n"
    )
    first = load(write(tmp_path, text))
    assert first.tasks[0].rewards == {"style": {0: 0.0, "100": 1}, "reward_functions:clarity": 0.5}
    config.save(first, tmp_path / "resolved.yaml")
    again = load(tmp_path / "resolved.yaml")
    assert again == first and again.tasks[0].rewards == first.tasks[0].rewards
    assert RewardWeights(again.tasks[0].rewards).at(50)["style"] == 0.5
    assert tasks.at_step(again.tasks[0], 0).timing_pairs == 2


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("task.rewards={style: {0: 0, 9: 0.5}}", "task", "rewards", {"style": {0: 0, 9: 0.5}}),
        (
            "task.curriculum=[{step: 3, timing_pairs: 2}]",
            "task",
            "curriculum",
            [{"step": 3, "timing_pairs": 2}],
        ),
        ("grpo.learning_rate=5e-5", "grpo", "learning_rate", 5e-5),
        ("grpo.learning_rate=2E-4", "grpo", "learning_rate", 2e-4),
        ("grpo.max_steps=7", "grpo", "max_steps", 7),
        ("grpo.log_completions=false", "grpo", "log_completions", False),
        ("grpo.report_to=none", "grpo", "report_to", "none"),
        ("grpo.report_to=[]", "grpo", "report_to", []),
        ("model.quantization=bnb-4bit", "model", "quantization", "bnb-4bit"),
        ("lora.target_modules=[q_proj,v_proj]", "lora", "target_modules", ["q_proj", "v_proj"]),
        ("task.rewards={function_works: 0.5}", "task", "rewards", {"function_works": 0.5}),
        ("model.name=Qwen/Qwen2.5-0.5B-Instruct", "model", "name", "Qwen/Qwen2.5-0.5B-Instruct"),
    ],
)
def test_overrides(override, section, key, value):
    loaded = load(None, [override])
    part = loaded.tasks[0] if section == "task" else getattr(loaded, section)
    assert (part[key] if section == "grpo" else getattr(part, key)) == value


def test_scientific_notation_in_yaml_is_a_number(tmp_path):
    assert load(write(tmp_path, "grpo:\n  learning_rate: 5e-5\n")).grpo["learning_rate"] == 5e-5


def test_five_mistakes_are_all_reported(tmp_path):
    path = write(
        tmp_path,
        "model:\n  backend: unslot\nlora:\n  beta: 1\n"
        "grpo:\n  max_step: 3\n  learning_rate: fast\n  num_generations: 7\n",
    )
    found = "\n".join(mistakes(path))
    for expected in (
        "model.backend: Invalid value 'unslot', expected one of ['auto', 'unsloth', "
        "'transformers']",
        "grpo.max_step: no such key; did you mean grpo.max_steps?",
        "grpo.learning_rate: Value 'fast' of type 'str' could not be converted to Float",
        "grpo.num_generations: groups of 7",
        "lora.beta: no such key; did you mean grpo.beta?",
    ):
        assert expected in found
    assert len(found.splitlines()) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1,\n b: }", "not valid YAML"),
        ("- a\n- b\n", "must hold sections"),
        ("just text", "just text: no such section"),
        ("grpoo:\n  beta: 1\n", "grpoo: no such section; did you mean grpo"),
        ("grpo: 5\n", "grpo: must hold keys and values, as in `key: value`, not 5"),
        (
            "grpo:\nmax_steps: 5\n",
            "max_steps: no such section; as a key of grpo, indent it below `grpo:`; there are",
        ),
        ("grpo:\n\tmax_steps: 5\n", "line 2, column 1; YAML indents with spaces, not with tabs"),
        ("task:\n  type: matmull\n", "task.type: no task 'matmull'; did you mean matmul"),
        ("task:\n  type: [a]\n", "task.type: no task"),
        (
            "model:\n  name: /no/such/folder\n",
            "model.name: /no/such/folder is not a folder with a model",
        ),
        ("lora:\n  r: 0\n", "lora.r: must be above 0"),
        ("grpo:\n  num_generations: 1\n", "must be at least 2"),
        ("grpo:\n  report_to: [tensorbord]\n", "no tracker 'tensorbord'; did you mean tensorboard"),
        (
            "task:\n  rewards: [function_work]\n",
            "no function 'function_work' in reward_functions; did you mean function_works",
        ),
        ("task:\n  rewards: ['no.such.module:f']\n", "module no.such.module cannot be imported"),
        (
            "task:\n  rewards: {style: {}}\n",
            r"^task.rewards.style: a schedule must name at least one step",
        ),
        (
            "task:\n  rewards: {style: {0: 1, soon: 2}}\n",
            r"^task.rewards.style: a step must be .* not 'soon'",
        ),
        (
            "task:\n  rewards: {style: {0: 1, 5: .inf}}\n",
            r"^task.rewards.style: must be a finite number.* not inf",
        ),
        ("task:\n  rewards: {style: '???'}\n", "^task.rewards.style: missing"),
        ("task:\n  curriculum: 7\n", "^task.curriculum: "),
        (
            "task:\n  curriculum: [{timing_pairs: 1}]\n",
            r"^task.curriculum\[0\].step: must be .* not None",
        ),
        (
            "task:\n  curriculum: [{step: 4}, {step: 4}]\n",
            r"^task.curriculum\[1\].step: must be a whole number from 5 on, not 4",
        ),
        (
            "task:\n  curriculum: [{step: 0, timing_pair: 1}]\n",
            r"^task.curriculum\[0\].timing_pair: cannot change",
        ),
        (
            "task:\n  curriculum: [{step: 0, timing_pairs: x}]\n",
            r"^task.curriculum\[0\].timing_pairs: Value 'x'",
        ),
        (
            "task:\n  curriculum: [{step: 0, timing_pairs: 0}]\n",
            r"^task.curriculum\[0\]: 1 <= timing_pairs",
        ),
        (
            "task:\n  curriculum: [{step: 0, timing_pairs: '???'}]\n",
            r"^task.curriculum\[0\].timing_pairs: ",
        ),
        ("task:\n  type: code\n  curriculum: [{step: 0, show_tests: 1}]\n", "of code can: nothing"),
        ("task:\n  reasoning_effort: huge\n", "task.reasoning_effort: Invalid value 'huge'"),
        ("task:\n  timing_min_size: 9\n  timing_max_size: 8\n", "task: .*timing_min_size"),
        ("grpo:\n  output_dir: null\n", "grpo.output_dir: missing"),
        ("model:\n  name: null\n", "model.name"),
    ],
)
def test_one_mistake(tmp_path, text, expected):
    assert re.search(expected, "\n".join(mistakes(write(tmp_path, text))))


@pytest.mark.parametrize(
    "text",
    ["costs ${no_such}", "${oc.env:HOME}", "a: b", "100 %", "# not a comment", r"\n ${a} \${b}"],
)
def test_prompts_are_taken_literally(tmp_path, text):
    path = write(tmp_path, yaml.safe_dump({"task": {"prompt": text}}))
    assert load(path).tasks[0].prompt == text
    config.save(load(path), tmp_path / "resolved.yaml")
    assert load(tmp_path / "resolved.yaml").tasks[0].prompt == text


ODD_VALUES = [
    "null",
    "[]",
    "{}",
    "5",
    "-1",
    "0",
    ".nan",
    ".inf",
    "true",
    "text",
    "[1, {a: b}]",
    "9" * 5000,
    "???",
]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: value[:9])
@pytest.mark.parametrize(
    "key",
    [
        "model.name",
        "model.dtype",
        "model.load_in_4bit",
        "model.quantization",
        "lora.r",
        "lora.target_modules",
        "grpo.report_to",
        "grpo.max_steps",
        "grpo.beta",
        "grpo.num_generations",
        "grpo.output_dir",
        "grpo.reward_weights",
        "grpo.eval_strategy",
        "task.type",
        "task.rewards",
        "task.num_rows",
        "task.curriculum",
        "task.prompt",
        "sandbox.workers",
        "sandbox.timeout_s",
        "sandbox.memory_mb",
        "sandbox.require",
    ],
)
def test_odd_values_load_or_are_config_errors(key, value):
    try:
        load(None, [f"{key}={value}"])
    except ConfigError as error:
        assert all(error.mistakes)


@pytest.mark.parametrize(
    "text",
    [
        "lora: null\nmodel:\n  lora_rank: 4\n",
        "lora: []\nmodel:\n  lora_rank: 4\n",
        "model: null\n",
        "",
        "5: 5\n",
    ],
)
def test_odd_sections_load_or_are_config_errors(tmp_path, text):
    try:
        load(write(tmp_path, text))
    except ConfigError as error:
        assert all(error.mistakes)


def test_a_key_set_to_null_stays_null(tmp_path):
    config.save(load(None, ["grpo.warmup_steps=null"]), tmp_path / "resolved.yaml")
    assert "warmup_steps" not in load(tmp_path / "resolved.yaml").grpo
    config.save(
        load(None, ["grpo.algorithm=dapo", "grpo.epsilon_high=null"]), tmp_path / "resolved.yaml"
    )
    assert "epsilon_high" not in load(tmp_path / "resolved.yaml").grpo


def test_bare_no_and_booleans_are_the_words_that_they_stand_for(tmp_path):
    text = (
        "grpo: {save_strategy: no, logging_strategy: no, algorithm: dr_grpo, "
        "scale_rewards: false}\n"
    )
    loaded = load(write(tmp_path, text))
    assert (loaded.grpo["save_strategy"], loaded.grpo["logging_strategy"]) == ("no", "no")
    assert loaded.grpo["scale_rewards"] == "none" and not loaded.notices
    assert load(None, ["grpo.scale_rewards=true"]).grpo["scale_rewards"] == "group"


@pytest.mark.parametrize(
    "override", ["grpo.max_steps", "max_steps=1", "=1", ".a=1", "grpo.=1", "", "grpo.max_steps=[1"]
)
def test_malformed_override_is_named(override):
    assert repr(override) in "\n".join(mistakes(None, [override]))


def test_unreadable_files(tmp_path):
    assert "no such file" in mistakes(tmp_path / "none.yaml")[0]
    assert "cannot be read" in mistakes(tmp_path)[0]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01" * 9)
    assert mistakes(tmp_path / "binary.yaml")


def test_seed_keys_are_mapped_with_a_notice(tmp_path):
    path = write(
        tmp_path,
        "model:\n  lora_rank: 4\ngrpo:\n  warmup_ratio: 0.2\n  max_prompt_length: 9\n"
        "task:\n  type: code_generation\n",
    )
    loaded = load(path)
    assert (loaded.lora.r, loaded.grpo["warmup_steps"], loaded.tasks[0].type) == (4, 0.2, "matmul")
    assert "max_prompt_length" not in loaded.grpo and loaded.grpo_extra.max_prompt_length == 9
    assert len(loaded.notices) == 3 and all(
        "grpo." in n or "lora." in n or "task." in n for n in loaded.notices
    )


@pytest.mark.parametrize(
    ("name", "four_bit", "means"),
    [
        ("unsloth/gpt-oss-20b", True, "bnb-4bit"),  # the copy that its adapters were trained on
        ("openai/gpt-oss-120b", True, "bnb-4bit"),
        ("Qwen/Qwen3-4B", True, "auto"),
        ("tiny", True, "auto"),
        ("unsloth/gpt-oss-20b", False, "none"),
    ],
)
def test_load_in_4bit_means_what_it_meant(tmp_path, name, four_bit, means):
    path = write(tmp_path, f"model:\n  load_in_4bit: {four_bit}\n")
    loaded = load(path, [f"model.name={name}"])
    assert loaded.model.quantization == means
    assert any("is now model.quantization" in notice for notice in loaded.notices)
    # A later layer wins over an earlier one, whichever of the two keys it writes.
    assert load(path, ["model.quantization=mxfp4"]).model.quantization == "mxfp4"
    path = write(tmp_path, "model:\n  quantization: mxfp4\n")
    assert load(path, ["model.load_in_4bit=false"]).model.quantization == "none"


@pytest.mark.parametrize("four_bit", [True, False])
@pytest.mark.parametrize("quantization", ["auto", "mxfp4", "bnb-4bit", "none"])
def test_load_in_4bit_beside_quantization_agrees_or_is_a_mistake(tmp_path, four_bit, quantization):
    text = f"model:\n  load_in_4bit: {four_bit}\n  quantization: {quantization}\n"
    path = write(tmp_path, text)
    if four_bit != (quantization == "none"):
        assert load(path).model.quantization == quantization
    else:
        (mistake,) = mistakes(path)
        assert "model.load_in_4bit" in mistake and f"model.quantization: {quantization}" in mistake


def test_a_run_that_saved_load_in_4bit_is_unchanged(tmp_path):
    loaded = load(None, ["model.quantization=bnb-4bit"])
    config.save(loaded, tmp_path / "resolved.yaml")
    saved = (tmp_path / "resolved.yaml").read_text()
    old = write(tmp_path, saved.replace("quantization: bnb-4bit", "load_in_4bit: true"))
    assert "load_in_4bit" in old.read_text()
    assert config.changed_since(loaded, old) == []
    tiny = load(config.ROOT / "configs" / "tiny.yaml")
    config.save(tiny, tmp_path / "resolved.yaml")
    saved = (tmp_path / "resolved.yaml").read_text()
    old.write_text(saved.replace("quantization: none", "load_in_4bit: true"))
    assert config.changed_since(tiny, old) == []
    old.write_text("[]")
    assert config.changed_since(tiny, old) == []


BROKEN = yaml.safe_load((Path(__file__).parent / "data" / "broken_configs.yaml").read_text())


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: " ".join(broken["overrides"]))
def test_what_cannot_run_is_refused_with_the_nearest_that_can(monkeypatch, broken):
    monkeypatch.setenv("WORLD_SIZE", str(broken.get("processes", 1)))
    assert broken["says"] in "\n".join(mistakes(None, broken["overrides"]))


SORT_TASK = (
    "from dataclasses import dataclass\nfrom tasks import Options as Shared\n"
    "REWARDS = ['function_works']\n"
    "REFERENCE, SLOWER, WRONG, CHEAT = '', [], [], []\ndef grade(*arguments): pass\n"
    "@dataclass(frozen=True)\nclass Options(Shared):\n    length: int = 5\n"
    "PROMPT = [{'role': 'user', 'content': 'Sort.'}]\n"
    "def rows(options):\n    return [{'prompt': PROMPT, 'size': i} for i in range(3)]\n"
)


@pytest.fixture
def sort_task(tmp_path, monkeypatch):
    (tmp_path / "sort_task.py").write_text(SORT_TASK)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])


def test_several_tasks_are_mixed_by_weight(tmp_path, sort_task):
    text = (
        "task:\n- {type: matmul, num_rows: 6, weight: 3}\n"
        "- {type: sort_task, num_rows: 6, length: 2}\n"
    )
    loaded = load(write(tmp_path, text))
    assert [options.type for options in loaded.tasks] == ["matmul", "sort_task"]
    rows, evaluation = mixed_rows(loaded.tasks)
    assert evaluation == []
    assert [row["task"] for row in rows] == ["matmul"] * 7 + ["sort_task"] * 2
    assert (
        all(set(row) == {"prompt", "task", "reasoning_effort", "size"} for row in rows)
        and rows[0]["size"] is None
    )
    config.save(loaded, tmp_path / "resolved.yaml")
    assert load(tmp_path / "resolved.yaml") == loaded


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (
            "task:\n- {type: matmul}\n- {type: matmul}\n",
            [],
            r"task\[0\].type: matmul is in the list more than once",
        ),
        (
            "task:\n- {type: matmul, num_row: 5}\n",
            [],
            r"task\[0\].num_row: no such key; did you mean task\[0\].num_rows",
        ),
        ("task:\n- {type: matmul, weight: 0}\n", [], r"task\[0\].weight: must be above 0"),
        ("task:\n- matmul\n", [], r"task\[0\]: must hold keys and values"),
        (
            "task:\n- {type: matmul}\n",
            ["task.num_rows=5"],
            "task.num_rows: there are several tasks",
        ),
        ("task: matmul\n", [], "task: must hold keys and values, or a list"),
        (
            "task:\n  rewards: {function_works: much}\n",
            [],
            "task.rewards.function_works: must be a finite number",
        ),
        (
            "task:\n- {type: matmul, rewards: {style: {0: 1, 9: 2}}}\n"
            "- {type: code, rewards: {style: {0: 1, 9: 3}}}\n",
            [],
            r"task\[1\].rewards.style: another weight than in another task",
        ),
    ],
)
def test_mistakes_in_a_mixture(tmp_path, text, overrides, expected):
    assert re.search(expected, "\n".join(mistakes(write(tmp_path, text), overrides)))


def test_changing_the_task_drops_the_other_tasks_own_keys(tmp_path, sort_task):
    own = "  timing_pairs: 3\n  curriculum: [{step: 0, timing_pairs: 2}]\n"
    path = write(tmp_path, f"task:\n  type: matmul\n{own}  num_rows: 7\n")
    loaded = load(path, ["task.type=sort_task", "task.length=6"])
    assert (loaded.tasks[0].length, loaded.tasks[0].num_rows, loaded.tasks[0].curriculum) == (
        6,
        7,
        [],
    )
    assert "task.length: no such key" in mistakes(path, ["task.length=6"])[0]


@pytest.mark.parametrize("text", ["007", "yes", "#tag", "1e5", "1:30", "off", "[a]"])
def test_a_text_is_taken_as_it_is_written(text):
    assert load(None, [f"grpo.run_name={text}"]).grpo["run_name"] == text


def test_a_number_that_yaml_reads_as_octal_is_refused():
    for text in ("010", "-0012", "0_17"):
        with pytest.raises(ConfigError, match="reads .* as the octal number"):
            load(None, [f"grpo.max_steps={text}"])
    assert load(None, ["grpo.seed=0"]).grpo["seed"] == 0
    assert load(None, ["grpo.learning_rate=0.01"]).grpo["learning_rate"] == 0.01


def test_modules_with_commas_between_them_are_a_list_that_was_meant():
    with pytest.raises(ConfigError, match=r"for several modules write \[q_proj, v_proj\]"):
        load(None, ["lora.target_modules=q_proj,v_proj"])
