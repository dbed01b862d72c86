"""plan.py and train.py --dry-run: what can be known before the weights are loaded."""

import shutil

import pytest
import torch
from transformers import Qwen2Config

from job import config, model, plan
from job.chat import Chat
from job.config import load_config as load
from job.errors import ConfigError

TINY = config.ROOT / "configs" / "tiny.yaml"


@pytest.fixture(scope="module")
def chat():
    return Chat(model.load_tokenizer(load(TINY).model), "2025-08-05")


def rows_of(tmp_path, *prompts):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{prompt}", "answer": 1}}\n' for prompt in prompts))
    return [
        "task.type=jsonl",
        f"task.data={path}",
        "grpo.per_device_train_batch_size=8",
        f"task.num_rows={len(prompts)}",
    ]


def test_long_prompts_are_refused_or_dropped(tmp_path, chat):
    overrides = rows_of(tmp_path, "one", "two", "three " * 30)
    longest = len(chat.prompt_ids([{"role": "user", "content": "three " * 30}], "low"))
    limit = ["grpo.max_prompt_length=100"]
    with pytest.raises(
        ConfigError, match=rf"100 leaves 100 tokens .* 1 of 3 rows .* \(the longest {longest}\)"
    ):
        plan.make_plan(load(TINY, overrides + limit), chat)
    made = plan.make_plan(load(TINY, [*overrides, *limit, "grpo.overlong_prompts=drop"]), chat)
    assert len(made.rows) == 2 and made.dropped == 1 and made.prompt_tokens < 100
    assert (
        "2 prompts of up to" in made.lines(load(TINY))[0]
        and "(1 longer ones dropped)" in made.lines(load(TINY))[0]
    )


@pytest.mark.parametrize("completion", ["112", "null"])
def test_a_prompt_that_is_too_long_names_the_length_that_is_enough(tmp_path, chat, completion):
    overrides = rows_of(tmp_path, "three " * 30, "three " * 30)
    overrides.append(f"grpo.max_completion_length={completion}")
    longest = len(chat.prompt_ids([{"role": "user", "content": "three " * 30}], "low"))
    needed = longest + 1 + (112 if completion == "112" else 1)
    with pytest.raises(ConfigError, match=f"; set model.max_seq_length to {needed} or more$"):
        plan.make_plan(load(TINY, [*overrides, f"model.max_seq_length={needed - 1}"]), chat)
    assert plan.make_plan(load(TINY, [*overrides, f"model.max_seq_length={needed}"]), chat)


def test_a_longer_prompt_may_need_two_keys_and_is_dropped_only_where_others_remain(tmp_path, chat):
    overrides = rows_of(tmp_path, "one", "three " * 30, "one")
    longest = len(chat.prompt_ids([{"role": "user", "content": "three " * 30}], "low"))
    needed = longest + 1 + 112
    short = [f"model.max_seq_length={needed - 1}", f"grpo.max_prompt_length={longest - 1}"]
    remedy = (
        f"set grpo.max_prompt_length to {longest} or more and model.max_seq_length to {needed} "
        "or more, or drop them with grpo.overlong_prompts: drop$"
    )
    with pytest.raises(ConfigError, match=remedy):
        plan.make_plan(load(TINY, overrides + short), chat)


def test_the_longest_prompt_leaves_the_room_for_completions(tmp_path, chat):
    job = load(TINY, [*rows_of(tmp_path, "one", "two words"), "grpo.max_completion_length=null"])
    made = plan.make_plan(job, chat)
    assert made.completion_tokens == job.model.max_seq_length - made.prompt_tokens - 1
    with pytest.raises(
        ConfigError, match="model.max_seq_length 200 less grpo.max_completion_length 112 leaves 87"
    ):
        plan.make_plan(load(TINY, ["model.max_seq_length=200"]), chat)


def test_too_few_rows_for_a_batch(tmp_path, chat):
    with pytest.raises(ConfigError, match="task.num_rows: 1 rows are fewer than the 2 prompts"):
        plan.make_plan(load(TINY, ["task.num_rows=1"]), chat)


def test_no_row_is_left_to_train_on(tmp_path, chat):
    with pytest.raises(
        ConfigError,
        match="jsonl: num_eval_rows 2 leaves none of its 2 different prompts to train on",
    ):
        plan.make_plan(load(TINY, [*rows_of(tmp_path, "one", "two"), "task.num_eval_rows=2"]), chat)


def test_no_row_is_left_to_evaluate_on(tmp_path, chat):
    dropping = ["task.num_eval_rows=1", "grpo.max_prompt_length=100", "grpo.overlong_prompts=drop"]
    with pytest.raises(
        ConfigError, match="task.num_eval_rows: .* leaves none of the 1 rows to evaluate on"
    ):
        plan.make_plan(
            load(TINY, [*rows_of(tmp_path, "one", "two", "three " * 30), *dropping]), chat
        )


def test_the_total_of_a_run_by_epochs(tmp_path, chat):
    job = load(
        TINY, [*rows_of(tmp_path, "one", "two"), "grpo.max_steps=-1", "grpo.num_train_epochs=2"]
    )
    made = plan.make_plan(job, chat)
    tokens = 32 * (made.prompt_tokens + 112)
    assert (
        made.lines(job)[-1]
        == f"all 2 epochs: 32 completions, at most {tokens:,} tokens with prompts"
    )


def test_the_plan_says_what_resampling_may_add(chat):
    job = load(TINY, ["grpo.zero_std_groups=resample", "grpo.max_resampling_tries=5"])
    assert "up to 5 generate calls" in plan.make_plan(job, chat).lines(job)[-1]


def test_a_dry_run_writes_nothing_and_shows_a_prompt_of_each_task(tmp_path, run_job):
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        "task:\n"
        "- {type: matmul, num_rows: 8}\n"
        "- {type: reasoning, num_rows: 8, reasoning_effort: high}\n"
    )
    run = run_job(
        "--dry-run",
        "--config",
        TINY,
        "--config",
        str(mixture),
        f"grpo.output_dir={tmp_path / 'run'}",
    )
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "run").exists()
    assert "prompt of matmul:" in run.stdout and "prompt of reasoning:" in run.stdout
    assert run.stdout.count("Reasoning: low") == run.stdout.count("Reasoning: high") == 1
    assert run.stdout.count("Current date: 2025-08-05") == 2
    assert "16 completions of 2 prompts" in run.stdout and "GiB" in run.stdout


def test_a_dry_run_finds_mistakes(run_job):
    run = run_job(
        "--dry-run", "--config", TINY, "model.max_seq_length=100", "grpo.max_completion_length=50"
    )
    assert run.returncode == 2 and "leaves 49 tokens for a prompt" in run.stderr


@pytest.mark.parametrize("mode", [["--dry-run"], []])
@pytest.mark.parametrize(
    "override",
    [
        "grpo.save_steps=2.5",
        "grpo.load_best_model_at_end=true",
        "grpo.deepspeed=/no/such/file.json",
    ],
)
def test_what_only_grpo_config_knows_is_found_before_the_weights_are_fetched(
    override, mode, run_job, monkeypatch
):
    monkeypatch.setattr(model, "load_model", lambda *_: pytest.fail("the model was loaded"))
    run = run_job(*mode, "--config", TINY, override)
    assert run.returncode == 2 and "error: grpo: " in run.stderr and "Traceback" not in run.stderr


def test_the_plan_shows_what_an_algorithm_sets(chat):
    job = load(TINY, ["grpo.algorithm=gspo", "grpo.epsilon=0.001"])
    (line,) = [
        line for line in plan.make_plan(job, chat).lines(job) if line.startswith("algorithm")
    ]
    assert line.startswith("algorithm gspo: loss_type grpo, importance_sampling_level sequence, ")
    assert "epsilon 0.001, epsilon_high 0.0004" in line and "zero_std_groups keep" in line


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_dry_run_for_processes_that_nobody_started(processes, run_job, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.delenv("RANK", raising=False)
    run = run_job("--dry-run", "--config", TINY)
    assert run.returncode == 0, run.stderr
    # The batch of the config, whatever the number of processes
    assert "an optimizer step: 16 completions of 2 prompts, 8 each; " in run.stdout
    assert f"each of {processes} devices takes {16 // processes} completions" in run.stdout
    assert "was changed to" not in run.stderr
    run = run_job("--config", TINY)
    assert run.returncode == 2 and "RANK is not set: start the job with torchrun" in run.stderr


def test_a_template_variable_that_nothing_reads_is_named(run_job):
    run = run_job(
        "--dry-run",
        "--config",
        TINY,
        "grpo.chat_template_kwargs={enable_thinkin: false, model_identity: I}",
    )
    assert run.returncode == 0, run.stderr
    assert (
        "note: grpo.chat_template_kwargs.enable_thinkin: the chat template of tiny does not read it"
        in run.stdout
    )
    assert "model_identity:" not in run.stdout


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "lora.target_modules=[q_proj, k_prj]",
            "lora.target_modules: the model has no k_prj; did you mean k_proj?",
        ),
        ("lora.target_parameters=[mlp.expert.down_proj]", "did you mean mlp.experts.down_proj?"),
        (
            "grpo.resume_from_checkpoint=/nowhere",
            "grpo.resume_from_checkpoint: /nowhere is neither",
        ),
        ("lora.bias=all", "lora.bias: all cannot be combined with grpo.beta above 0"),
    ],
)
def test_a_dry_run_finds_what_the_model_cannot_have(override, says, run_job):
    run = run_job("--dry-run", "--config", TINY, override)
    assert run.returncode == 2 and says in run.stderr


def test_a_dense_model_has_no_router_to_balance(tmp_path, run_job):
    shutil.copytree(
        config.TINY_MODEL, tmp_path / "dense", ignore=shutil.ignore_patterns("*.safetensors")
    )
    Qwen2Config(num_hidden_layers=1).save_pretrained(tmp_path / "dense")
    job = [
        "--dry-run",
        "--config",
        TINY,
        "lora.target_parameters=null",
        "grpo.router_aux_loss_coef=0.1",
    ]
    assert run_job(*job).returncode == 0
    run = run_job(*job, f"model.name={tmp_path / 'dense'}")
    assert (
        run.returncode == 2
        and "grpo.router_aux_loss_coef: " in run.stderr
        and "no experts" in run.stderr
    )
    assert run_job(*job[:-1], f"model.name={tmp_path / 'dense'}").returncode == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"optim": "stable_adamw"}, "grpo.optim, optim_args: .*pip install"),
        ({"optim_args": "fast"}, "grpo.optim, optim_args: "),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "grpo.lr_scheduler_type, .*num_decay_steps"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "grpo.lr_scheduler_type, .*foo"),
        ({"dataloader_num_workers": -1}, "grpo.dataloader_.*non-negative"),
        (
            {"accelerator_config": {"dispatch_batches": True}},
            "grpo.accelerator_config: dispatch_batches",
        ),
        ({"torch_compile_mode": "fast"}, "grpo.torch_compile.*mode=fast"),
        ({"cache_implementation": "fast"}, "grpo.cache_implementation: .*fast"),
        (
            {"generation_kwargs": {"bad_word_ids": [[3]]}},
            "no such key bad_word_ids; did you mean bad_words_ids",
        ),
    ],
)
def test_what_the_libraries_refuse_later_is_refused_in_the_rehearsal(values, says):
    from trl import GRPOConfig

    plan.rehearse(
        GRPOConfig(
            bf16=False, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 0.0}
        )
    )
    with pytest.raises(ConfigError, match=says):
        plan.rehearse(GRPOConfig(bf16=False, **values))


def test_what_is_not_for_the_rehearsal_to_refuse(monkeypatch):
    """vLLM's own sampling keys, and an optimizer that takes the model, not its weights (LOMO)."""
    from transformers import Trainer
    from trl import GRPOConfig

    arguments = GRPOConfig(
        bf16=False, generation_kwargs={"presence_penalty": 0.5, "stop": ["\n\n"]}
    )
    with pytest.raises(ConfigError, match="no such key presence_penalty"):
        plan.rehearse(arguments)
    arguments.use_vllm = True
    plan.rehearse(arguments)

    class Lomo(torch.optim.SGD):
        def __init__(self, model, lr):
            super().__init__(model.parameters(), lr)

    monkeypatch.setattr(
        Trainer,
        "get_optimizer_cls_and_kwargs",
        lambda arguments, model: (Lomo, {"lr": 0.1, "model": model}),
    )
    plan.rehearse(arguments)
