"""watchdog.py: each diagnosis on made-up metrics, none on good ones, and runs that go wrong."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks
from job import config
from job.callbacks import MetricsFile, Watch
from job.errors import ConfigError
from job.schedules import RewardWeights
from job.watchdog import (
    CHECKS,
    EXPLAINED_BY,
    Watchdog,
    distinct_share,
    echo_share,
    is_echo,
    repetitive_share,
)

ROOT = Path(__file__).parent.parent
DEFAULTS = config.load_config().watchdog
WINDOW = 4
OPTIONS = dataclasses.replace(DEFAULTS, window=WINDOW)
WEIGHTS = {"correctness_check": 1.0, "my_rewards:style": 1.0}
CALM = {
    "loss": 0.01,
    "grad_norm": 0.1,
    "kl": 0.02,
    "completions/clipped_ratio": 0.1,
    "completions/reached_final": 0.8,
    "completions/distinct": 0.8,
    "completions/echo": 0.0,
    "completions/repetitive": 0.0,
    "frac_reward_zero_std": 0.2,
    "reward": 0.0,
    "rewards/correctness_check/mean": 0.0,
    "rewards/style/mean": 0.0,
    "grades/correct": 0.25,
    "rollout/logp_difference": 0.01,
}
TRIGGERS = {
    "nan": {"loss": math.nan},
    "truncated": {"completions/clipped_ratio": 1.0},
    "zero_variance": {"frac_reward_zero_std": 1.0},
    "kl_limit": {"kl": 1.5},
    "one_component": {"reward": 5.0, "rewards/style/mean": 5.0},
    "repetitive": {"completions/repetitive": 0.75},
    "no_final": {"completions/reached_final": 0.0},
    "collapse": {"completions/distinct": 0.0},
    "echo": {"reward": 5.0, "completions/echo": 0.9, "grades/correct": 0.9},
    "logp_difference": {"rollout/logp_difference": 0.5},
}


def watch(*stretches, options=OPTIONS, weights=WEIGHTS, **kwargs):
    """Feed stretches of (count, changed metrics).

    Returns what started, as (step, name), and what is active at the end.
    """
    dog, started, step = Watchdog(options, RewardWeights(weights), **kwargs), [], 0
    for count, changed in stretches:
        for _ in range(count):
            step += 1
            for diagnosis in dog.observe(step, CALM | changed):
                assert (
                    diagnosis.paragraph.startswith(f"step {step}: ")
                    and "\n" not in diagnosis.paragraph
                )
                started.append((step, diagnosis.name))
    return started, dog.active


def test_every_diagnosis_has_a_trigger_here():
    assert set(TRIGGERS) == set(CHECKS) and set(EXPLAINED_BY) <= set(CHECKS)


@pytest.mark.parametrize("name", TRIGGERS)
def test_it_starts_once_ends_and_starts_again(name):
    bad = TRIGGERS[name]
    (first,), active = watch((WINDOW, {}), (20, bad))
    assert first[1] == name and active == [name]
    assert watch((WINDOW, {}), (20, bad), (20, {})) == ([first], [])
    (again, later), active = watch((WINDOW, {}), (20, bad), (20, {}), (20, bad))
    assert again == first and later[1] == name and later[0] > 2 * WINDOW + 20 and active == [name]


def test_a_scheduled_weight_is_no_rise_of_the_reward():
    """While a weight changes nothing is compared; a rise after that is."""
    weights = {"correctness_check": 1.0, "style": {0: 0.0, 20: 1.0}}
    bad = TRIGGERS["one_component"]
    assert watch((WINDOW, {}), (20, bad), weights=weights) == ([], [])
    started, _ = watch((WINDOW, {}), (20 + WINDOW, {}), (20, bad), weights=weights)
    assert [name for _, name in started] == ["one_component"]
    slow = {"correctness_check": 1.0, "style": {0: 1.0, 100_000: 1.001}}
    started, _ = watch((WINDOW, {}), (20, bad), weights=slow)
    assert [name for _, name in started] == ["one_component"]


@pytest.mark.parametrize("name", TRIGGERS)
def test_null_is_never_and_one_bad_step_is_only_enough_for_nan(name):
    options = dataclasses.replace(OPTIONS, **{name: None})
    assert watch((WINDOW, {}), (20, TRIGGERS[name]), options=options) == ([], [])
    started, _ = watch((10, {}), (1, TRIGGERS[name]), (10, {}))
    assert started == ([(11, "nan")] if name == "nan" else [])


@pytest.mark.parametrize("name", sorted(set(TRIGGERS) - {"nan", "one_component", "echo"}))
def test_nothing_is_said_before_the_window_is_full(name):
    assert watch((WINDOW - 1, TRIGGERS[name])) == ([], [])
    assert watch((WINDOW, TRIGGERS[name])) == ([(WINDOW, name)], [name])


@pytest.mark.parametrize("name", sorted(set(TRIGGERS) - {"nan", "one_component", "echo"}))
def test_steps_that_do_not_log_a_signal_are_passed_over(name):
    (signal,) = TRIGGERS[name]
    dog, started = Watchdog(OPTIONS, RewardWeights(WEIGHTS)), []
    for step in range(1, 2 * WINDOW + 1):
        logs = {key: value for key, value in CALM.items() if key != signal}
        logs |= TRIGGERS[name] if step % 2 == 0 else {signal: None} if step % 4 == 1 else {}
        started += [(step, diagnosis.name) for diagnosis in dog.observe(step, logs)]
    assert started == [(2 * WINDOW, name)]


def test_flickering_is_not_shown_again_and_again():
    stretches = [
        (1, {"completions/clipped_ratio": share})
        for share in [1.0] * WINDOW + [0.7, 1.0, 1.0, 1.0, 1.0] * 5
    ]
    assert watch(*stretches)[0] == [(WINDOW, "truncated")]


PAIRS = [(effect, cause) for effect, of in EXPLAINED_BY.items() for cause in sorted(of)]


@pytest.mark.parametrize(("effect", "cause"), PAIRS)
def test_what_follows_from_another_trouble_is_left_out(effect, cause):
    assert watch((WINDOW, TRIGGERS[effect] | TRIGGERS[cause])) == ([(WINDOW, cause)], [cause])
    without = dataclasses.replace(OPTIONS, **{cause: None})
    assert watch((WINDOW, TRIGGERS[effect] | TRIGGERS[cause]), options=without) == (
        [(WINDOW, effect)],
        [effect],
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_nan_is_seen_at_once_or_after_so_many_steps(name, value):
    assert watch((2, {}), (1, {name: value})) == ([(3, "nan")], ["nan"])
    patient = dataclasses.replace(OPTIONS, nan=3)
    assert watch((2, {name: value}), (1, {}), (2, {name: value}), options=patient) == ([], [])
    assert watch((3, {name: value}), options=patient) == ([(3, "nan")], ["nan"])


def test_a_gradient_scaler_may_skip_steps():
    assert watch((WINDOW - 1, {"grad_norm": math.inf}), (1, {}), float16=True) == ([], [])
    assert watch((WINDOW, {"grad_norm": math.inf}), float16=True) == ([(WINDOW, "nan")], ["nan"])
    assert watch((1, {"loss": math.nan}), float16=True) == ([(1, "nan")], ["nan"])


def test_an_outlier_of_kl_is_no_runaway_and_an_infinite_one_counts():
    assert watch((WINDOW, {}), (1, {"kl": 1e9}), (WINDOW, {})) == ([], [])
    assert watch((WINDOW, {"kl": math.inf}))[1] == ["kl_limit"]


RISING_STYLE = {"reward": 5.0, "rewards/style/mean": 5.0}


@pytest.mark.parametrize(
    ("before", "after", "weights"),
    [
        ({}, RISING_STYLE | {"grades/correct": 0.4}, WEIGHTS),  # correctness rises too
        ({}, {"reward": -5.0, "rewards/style/mean": -5.0}, WEIGHTS),  # it falls
        # Two functions share the rise
        (
            {},
            {"reward": 5.0, "rewards/style/mean": 3.0, "rewards/correctness_check/mean": 2.0},
            WEIGHTS,
        ),
        # Little left to gain there: faster, not righter
        ({"grades/correct": 0.9}, RISING_STYLE | {"grades/correct": 0.9}, WEIGHTS),
        ({}, RISING_STYLE, {"style": 1.0}),  # the only function
        ({}, RISING_STYLE, {"style": 1.0, "other": 0.0}),
        ({}, {"reward": 5.0, "rewards/no_cheating/mean": 5.0}, {"no_cheating": 1.0, "style": 1.0}),
        ({}, RISING_STYLE | {"grades/correct": None}, WEIGHTS),  # nobody knows
    ],
)
def test_a_rise_that_is_not_one_functions_alone_or_no_bad_news(before, after, weights):
    assert watch((WINDOW, before), (WINDOW, after), weights=weights) == ([], [])


def test_the_rise_of_one_function_must_stand_out_from_the_noise_of_the_steps():
    noise = [
        (1, {"reward": 5.0 * (i % 2), "rewards/style/mean": 5.0 * (i % 2)}) for i in range(WINDOW)
    ]
    louder = [
        (1, {"reward": 5.0 * (i % 2 + 1), "rewards/style/mean": 5.0 * (i % 2 + 1)})
        for i in range(WINDOW)
    ]
    assert watch(*noise, *louder) == ([], [])
    assert watch(*noise, (WINDOW, {"reward": 50.0, "rewards/style/mean": 50.0}))[1] == [
        "one_component"
    ]


def test_what_is_learned_within_the_first_window_is_no_noise():
    ramp = [(1, {"reward": 10.0 * i, "rewards/style/mean": 10.0 * i}) for i in range(WINDOW)]
    assert watch(*ramp, (WINDOW, {"reward": 40.0, "rewards/style/mean": 40.0}))[1] == [
        "one_component"
    ]


def test_high_correctness_that_falls_while_another_reward_rises():
    before, after = {"grades/correct": 0.9}, RISING_STYLE | {"grades/correct": 0.6}
    assert watch((WINDOW, before), (WINDOW, after))[1] == ["one_component"]


def test_weights_count():
    after = {"reward": 1.0, "rewards/style/mean": 0.1, "rewards/correctness_check/mean": 0.1}
    assert watch((WINDOW, {}), (WINDOW, after))[1] == []
    heavy = {"correctness_check": 0.1, "style": 10.0}
    assert watch((WINDOW, {}), (WINDOW, after), weights=heavy)[1] == ["one_component"]


def test_in_a_mixture_steps_without_a_judgement_of_the_function_say_nothing():
    none, judged = {"rewards/style/mean": None}, {"reward": 5.0, "rewards/style/mean": 5.0}
    half = WINDOW // 2
    assert watch((half, none), (half, {}), (half, judged), (half, judged | none))[1] == [
        "one_component"
    ]
    assert watch((WINDOW, none), (WINDOW, judged))[1] == []


shares = st.floats(0, 1)
good_steps = st.fixed_dictionaries(
    {
        "loss": st.floats(-10, 10),
        "grad_norm": st.floats(0, 1e6),
        "kl": st.floats(0, 1),
        "completions/clipped_ratio": st.floats(0, 0.9),
        "completions/distinct": st.floats(0.2, 1),
        "completions/repetitive": st.floats(0, 0.4),
        "frac_reward_zero_std": st.floats(0, 0.9),
        "rewards/style/mean": st.none() | st.floats(0, 1),
        "grades/correct": shares,
    },
    optional={"completions/reached_final": st.floats(0.1, 1), "eval_loss": st.just(math.nan)},
)


@given(st.lists(good_steps, max_size=40), st.integers(2, 6))
def test_good_streams_are_never_diagnosed(steps, window):
    """The reward follows the share of correct completions; a second function adds little."""
    dog = Watchdog(dataclasses.replace(OPTIONS, window=window), RewardWeights(WEIGHTS))
    for step, logs in enumerate(steps, start=1):
        works = 12 * logs["grades/correct"] - 2
        logs |= {"rewards/correctness_check/mean": works, "reward": works}
        assert dog.observe(step, logs) == [] and dog.active == []


wild = st.none() | st.floats(width=32) | st.just(0.0)


@given(st.lists(st.dictionaries(st.sampled_from(sorted(CALM)), wild), max_size=30))
def test_no_stream_makes_it_raise_and_a_diagnosis_that_starts_is_active(steps):
    dog = Watchdog(OPTIONS, RewardWeights(WEIGHTS))
    for step, logs in enumerate(steps, start=1):
        assert (
            {diagnosis.name for diagnosis in dog.observe(step, logs)}
            <= set(dog.active)
            <= set(CHECKS)
        )


def test_distinct_share():
    assert distinct_share(["a", "b", "c"]) == 1.0
    assert distinct_share(["a"] * 8) == 0.0 and distinct_share([""] * 2) == 0.0
    assert distinct_share(["a", "a", "b"]) == 0.5
    assert distinct_share([]) == distinct_share(["a"]) == 1.0


@given(st.lists(st.text(max_size=3), max_size=12))
def test_shares_are_shares(texts):
    assert 0 <= distinct_share(texts) <= 1 and repetitive_share(texts) == 0  # short texts never are


@pytest.mark.parametrize(
    "text",
    [
        "the " * 100,
        "ab" * 300,
        "\n" * 400,
        "I will multiply them. " * 40,
        "数" * 500,
        "\ud800" * 400,
    ]
    + [
        "An honest beginning: "
        + " ".join(map(str, range(300)))
        + "so we compute the product of the matrices, " * 60
    ],
)
def test_loops_are_repetitive(text):
    assert repetitive_share([text]) == 1.0 and repetitive_share([text, "x = 1"]) == 0.5


HONEST_KINDS = ("legit", "honest_wrong", "honest_slow", "honest")


def test_honest_answers_are_not_repetitive():
    texts = []
    for path in sorted((ROOT / "tests" / "data").glob("completions*.jsonl")):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        texts += [
            row["completion"]
            for row in rows
            if row.get("category", row.get("kind")) in HONEST_KINDS
        ]
    for task in map(tasks.load, tasks.names()):
        if hasattr(task, "REFERENCE"):  # other tasks know whole episodes
            texts += [task.REFERENCE, *task.SLOWER, *task.WRONG]
    texts += [
        path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.py"), *ROOT.glob("tasks/*.py"))
    ]
    assert len(texts) > 100 and repetitive_share(texts) == 0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("window=1", "watchdog.window: must be at least 2"),
        ("truncated=1.5", "watchdog.truncated: must be a share"),
        ("collapse=.nan", "watchdog.collapse: must be a share"),
        ("kl_limit=0", "watchdog.kl_limit: must be above 0"),
        ("logp_difference=-1", "watchdog.logp_difference: must be above 0"),
        ("nan=0", "watchdog.nan: must be above 0"),
        ("on=sometimes", "watchdog.on: "),
        ("on=true", "watchdog.on: "),
        ("windows=3", "watchdog.windows: no such key; did you mean watchdog.window?"),
    ],
)
def test_mistakes_in_its_section_are_named(override, expected):
    with pytest.raises(ConfigError) as caught:
        config.load_config(None, [f"watchdog.{override}"])
    assert len(caught.value.mistakes) == 1 and caught.value.mistakes[0].startswith(expected)


@pytest.mark.parametrize("text", ["on: off", "on: 'off'", "'on': off"])
def test_on_and_off_are_words_though_yaml_reads_booleans(tmp_path, text):
    (tmp_path / "job.yaml").write_text(f"watchdog:\n  {text}\n  kl_limit: null\n")
    loaded = config.load_config(tmp_path / "job.yaml")
    assert (
        loaded.watchdog.on == "off" and loaded.watchdog.kl_limit is None and DEFAULTS.on == "warn"
    )
    config.save(loaded, tmp_path / "resolved.yaml")
    assert config.load_config(tmp_path / "resolved.yaml") == loaded
    assert config.load_config(None, ["watchdog.on=off"]).watchdog.on == "off"


def follow(tmp_path, on, logs, process_zero=True):
    """Two steps of these logs through the callbacks, in the order of train.py."""
    watch = Watch(Watchdog(dataclasses.replace(OPTIONS, on=on, window=2), RewardWeights(WEIGHTS)))
    file = MetricsFile(tmp_path / "metrics.jsonl")
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    for step in (1, 2):
        state = SimpleNamespace(global_step=step, is_world_process_zero=process_zero)
        entry = dict(logs)
        for callback in (watch, file):
            callback.on_log(SimpleNamespace(world_size=1), state, control, logs=entry)
    lines = file.path.read_text().splitlines() if file.path.exists() else []
    return watch, control, [json.loads(line).get("watchdog") for line in lines]


CUT_OFF = CALM | TRIGGERS["truncated"]


def test_a_warning_is_shown_and_written_down(tmp_path, capsys):
    watch, control, written = follow(tmp_path, "warn", CUT_OFF)
    assert (
        written == [None, ["truncated"]]
        and not control.should_training_stop
        and watch.stopped_by == []
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("watchdog: truncated: step 2: 100% of the completions")
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line == f"watchdog: truncated: {last['diagnoses']['truncated']}"


def test_off_is_silent_and_only_the_main_process_speaks(tmp_path, capsys):
    assert follow(tmp_path, "off", CUT_OFF)[2] == [None, None]
    watch, control, _ = follow(tmp_path, "stop", CUT_OFF, process_zero=False)
    assert control.should_training_stop and watch.stopped_by == ["truncated"]
    assert capsys.readouterr().out == ""


def test_what_is_no_training_step_is_not_looked_at(tmp_path):
    assert (
        follow(tmp_path, "stop", {"train_loss": math.nan, "eval_loss": math.nan})[0].watchdog.active
        == []
    )


SCRIPTED = '''
import os

from transformers import AutoTokenizer


TOKENIZER = AutoTokenizer.from_pretrained("tiny_model")
TARGET = """analysisPure Python only.assistantfinal```python
def matmul(A, B):
    return [[sum(x * y for x, y in zip(row, col)) for col in zip(*B)] for row in A]
```"""


def constant(completions, **kwargs):
    return [1.0] * len(completions)


def aimless(completions, **kwargs):
    return [float(i % 2) for i in range(len(completions))]


def enormous(completions, **kwargs):
    return [3e38 * (-1) ** i for i in range(len(completions))]


def without_sum(completions, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [float("matmul" in text and "sum(" not in text) for text in texts]


def one_text(completions, completion_ids, **kwargs):
    texts = TOKENIZER.batch_decode(completion_ids, skip_special_tokens=True)
    alike = [len(os.path.commonprefix([text, TARGET])) for text in texts]
    # What a completion says after the target is punished
    return [float(2 * same - len(text)) for same, text in zip(alike, texts)]
'''
PATHOLOGICAL = {
    "truncated": ["grpo.max_completion_length=4"],
    "zero_variance": ["task.rewards=['scripted:constant']"],
    "kl_limit": [
        "task.rewards=['scripted:aimless']",
        "grpo.learning_rate=0.05",
        "grpo.max_completion_length=48",
    ],
    "nan": ["task.rewards=['scripted:enormous']", "grpo.scale_rewards=none"],
    "one_component": [
        "task.rewards={function_works: 1, correctness_check: 1, 'scripted:without_sum': 100}",
        "grpo.learning_rate=4e-3",
        "grpo.max_completion_length=96",
        "watchdog.window=4",
        "grpo.per_device_train_batch_size=16",
        "grpo.num_generations=8",
    ],
    "collapse": [
        "task.rewards=['scripted:one_text']",
        "grpo.learning_rate=2e-3",
        "grpo.temperature=0.3",
        "grpo.beta=0",
        "grpo.per_device_train_batch_size=8",
        "grpo.num_generations=8",
    ],
    "no_final": [],  # the model is another
    # The same token for ever
    "repetitive": ["grpo.generation_kwargs={sequence_bias: [[[304], 100.0]]}"],
}


@pytest.fixture
def speechless(tmp_path):
    """The tiny model, but it ends where it should go on from the analysis to the final channel."""
    tokenizer = AutoTokenizer.from_pretrained(config.TINY_MODEL)
    model = AutoModelForCausalLM.from_pretrained(config.TINY_MODEL)
    end, stop, analysis, final = tokenizer.convert_tokens_to_ids(
        ["<|end|>", "<|return|>", "analysis", "final"]
    )
    with torch.no_grad():
        matrix = model.get_output_embeddings().weight
        matrix[[end, stop]] = matrix[[stop, end]]
        matrix[final] = -matrix[analysis]
    model.save_pretrained(tmp_path / "speechless")
    tokenizer.save_pretrained(tmp_path / "speechless")
    return tmp_path / "speechless"


@pytest.fixture
def run(tmp_path, run_job, monkeypatch):
    (tmp_path / "scripted.py").write_text(SCRIPTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scripted", raising=False)
    job = ["--config", "configs/tiny.yaml", f"grpo.output_dir={tmp_path / 'run'}"]
    job += ["grpo.per_device_train_batch_size=4", "grpo.num_generations=4", "task.timing_pairs=1"]
    job += ["evaluate.before=false", "evaluate.after=false"]
    job += [
        "task.check=false",
        "grpo.report_to=[]",
        "grpo.max_steps=40",
        "watchdog.on=stop",
        "watchdog.window=3",
    ]

    def run(*overrides):
        result = run_job(*job, *overrides)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        return result, [json.loads(line) for line in lines]

    return run


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_a_run_that_goes_wrong_stops_with_its_own_diagnosis(tmp_path, run, name, request):
    model = [f"model.name={request.getfixturevalue('speechless')}"] if name == "no_final" else []
    result, metrics = run(*model, *PATHOLOGICAL[name])
    assert result.returncode == 7, result.stdout + result.stderr
    shown = [line for line in result.stdout.splitlines() if line.startswith("watchdog: ")]
    assert len(shown) == 1 and shown[0].startswith(f"watchdog: {name}: step {len(metrics)}: ")
    assert [line.get("watchdog") for line in metrics] == [None] * (len(metrics) - 1) + [[name]]
    assert f"stopped after step {len(metrics)} by the watchdog: {name}\n" in result.stdout
    assert (tmp_path / "run" / f"checkpoint-{len(metrics)}" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "final_model").exists()


EXPLODING = ["grpo.learning_rate=1e30", "grpo.max_completion_length=16", "grpo.save_steps=1"]


@pytest.mark.parametrize("on", ["stop", "warn", "off"])
def test_weights_that_explode_are_never_saved_though_they_cannot_be_sampled_from(tmp_path, run, on):
    result, metrics = run(*EXPLODING, f"watchdog.on={on}", "grpo.max_steps=5")
    assert result.returncode == 7 and metrics[-1]["loss"] is None
    assert metrics[-1].get("watchdog") == (None if on == "off" else ["nan"])
    assert "no checkpoint is saved: the weights are not finite" in result.stdout
    assert ("loss becomes null in metrics.jsonl" in result.stdout) == (on != "stop")
    saved = [
        json.loads(path.read_text())
        for path in (tmp_path / "run").glob("checkpoint-*/trainer_state.json")
    ]
    assert all(state["log_history"][-1]["loss"] is not None for state in saved)
    assert not (tmp_path / "run" / "final_model").exists()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("5 * 5", True),
        ("So it is\n\nAnswer: 5*5", True),
        ("What is 5 * 5?", True),
        ("the ANSWER", True),
        ("25", False),
        ("Answer: 25", False),
        ("5", False),  # one word may be right
        ("5 * 6", False),
        ("5 * 5 = 25", False),
        ("", False),
    ],
)
def test_an_echo_is_a_piece_of_the_prompt(answer, expected):
    assert is_echo(answer, "What is  5 * 5?\nEnd with the answer.") is expected


def test_the_share_of_echoes_is_of_all_answers():
    assert echo_share(["1 + 1", "2"], ["What is 1 + 1?"] * 2) == 0.5
    assert echo_share([], []) == 0.0


def test_answers_that_were_pieces_of_the_prompt_from_the_start_are_no_echo():
    choices = {"completions/echo": 0.9}
    assert watch((4, choices), (8, choices | {"reward": 5.0, "grades/correct": 0.9}))[0] == []
