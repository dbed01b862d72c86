"""What a config may not say, and what it says in vain.

Where the check of a key belongs:
    one key of a section of ours     `__post_init__` of the section's dataclass: Model, Lora and
                                     SandboxOptions in config.py, Options in watchdog.py, Options
                                     in interruption.py, Options in grpo_keys.py, Options of each
                                     task
    one key of GRPOConfig            the tables at the head of this file, because its dataclass
                                     is TRL's
    several keys                     a function here, one for each subject
    a key and the prompts            plan.py, which measures them
    a key and the model's files      model.py, which reads them
    what a library refuses late      plan.rehearse, which tries it on one weight

So a new key goes into its dataclass with its default in config.yaml, and its check into
`__post_init__`. Every check says the full name of the key, what was allowed and, where there is
one, the nearest value that works. (`__post_init__` begins its message with "key: "; the section is
added.)
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

import tasks
from job import rewards
from job.batches import Get, batch_mistakes, evaluates
from job.errors import among, how_to_install
from job.grpo_keys import ALGORITHMS, enumerations
from job.rollout import engine
from job.schedules import corners as corners_of

# ---- One key of GRPOConfig: what its number must be

ABOVE_0 = (
    "learning_rate", "temperature", "per_device_train_batch_size", "gradient_accumulation_steps",
    "save_steps", "logging_steps", "max_completion_length", "num_generations",
    "steps_per_generation", "generation_batch_size", "num_iterations", "num_train_epochs",
    "num_generations_eval", "per_device_eval_batch_size", "eval_steps", "delta",
    "repetition_penalty", "pad_to_multiple_of", "sapo_temperature_neg", "sapo_temperature_pos",
)  # fmt: skip
FROM_0 = (
    "beta", "epsilon", "epsilon_high", "weight_decay", "warmup_steps", "max_grad_norm",
    "adam_epsilon", "top_k", "neftune_noise_alpha", "eval_delay", "vespo_k_neg", "vespo_k_pos",
    "vespo_lambda_neg", "vespo_lambda_pos", "router_aux_loss_coef",
)  # fmt: skip
FINITE = (
    "entropy_coef", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target",
)  # fmt: skip

# (whether a number fits, that in words, the keys)
RANGES: tuple[tuple[Callable[[float], bool], str, tuple[str, ...]], ...] = (
    (lambda x: 0 < x < math.inf, "be above 0 and finite", ABOVE_0),
    (lambda x: 0 <= x < math.inf, "be 0 or more, and finite", FROM_0),
    (lambda x: 0 <= x < 1, "be at least 0 and below 1", ("adam_beta1", "adam_beta2")),
    (lambda x: 0 <= x <= 1, "lie between 0 and 1", ("top_p", "min_p", "top_entropy_quantile")),
    (lambda x: 0 <= x < 2**32, f"lie between 0 and {2**32 - 1}", ("seed", "data_seed")),
    (math.isfinite, "be finite", FINITE),
)

# ---- One key of GRPOConfig: what must be a mapping

MAPPINGS = (
    "chat_template_kwargs",
    "generation_kwargs",
    "lr_scheduler_kwargs",
    "gradient_checkpointing_kwargs",
    "liger_kernel_config",
    "transformers_continuous_batching_config",
)

# ---- Keys that ask for an engine other than ours or generate

OTHER_ENGINES = (
    "use_vllm",
    "use_transformers_continuous_batching",
    "use_transformers_paged",
)

# ---- One key of GRPOConfig: (key, whether its value does harm here, what to do instead)

HARMFUL: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "reward_weights",
        lambda value: value is not None,
        "write the weights under task.rewards: {name: weight}",
    ),
    (
        "sync_ref_model",
        bool,
        "TRL has no reference model to move beside a LoRA adapter; leave it out",
    ),
    (
        "remove_unused_columns",
        bool,
        "would take answer, task and reasoning_effort from every row; leave it out",
    ),
    (
        "disable_tqdm",
        lambda value: value is False,
        "there is one progress bar, and it shows on a terminal; leave it out",
    ),
    (
        "auto_find_batch_size",
        bool,
        "a smaller batch would cut groups; lower per_device_train_batch_size instead",
    ),
)

# ---- Keys inside mappings of GRPOConfig

# What torch.utils.checkpoint takes
CHECKPOINTING_KEYS = (
    "use_reentrant",
    "preserve_rng_state",
    "determinism_check",
    "debug",
    "early_stop",
)
# What has a key of its own in GRPOConfig, which the loss reads as well
SAMPLING_KEYS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "cache_implementation",
)
HARMFUL_GENERATION_KEYS = {
    **{key: f"write grpo.{key}, from which the loss is worked out, too" for key in SAMPLING_KEYS},
    "max_new_tokens": "write grpo.max_completion_length, from which the plan is made",
    "max_length": "write grpo.max_completion_length, from which the plan is made",
    "do_sample": "GRPO learns from samples; leave it out",
    "num_beams": "GRPO learns from samples; leave it out",
    "num_return_sequences": "write grpo.num_generations",
    "stop_strings": "TRL does not hand on the tokenizer that this needs",
}
# The values that those keys have anyway, which do no harm
NEUTRAL = {"do_sample": True, "num_beams": 1, "num_return_sequences": 1}

TRACKERS = ["tensorboard", "wandb", "trackio", "mlflow", "none"]
# key -> (module, package) that it needs and requirements.txt does not install
OPTIONAL_PACKAGES = {
    "use_liger_kernel": ("liger_kernel", "liger-kernel"),
}

# vLLM schedules rows itself; with shards, all processes would have to decode equally often
TAKE_NO_TURNS = ("use_vllm", "fsdp", "deepspeed")
VLLM_UNDER_UNSLOTH = (
    "grpo.use_vllm: Unsloth has no vLLM for gpt-oss, and this job starts none under it for other "
    "models; leave it out, or take a dense model and model.backend: transformers"
)

# Schedulers that transformers calls without lr_scheduler_kwargs
PLAIN_SCHEDULERS = ("constant", "constant_with_warmup")


def impossible(
    tree: Mapping[str, Any], task_names: Sequence[str], world_size: int
) -> Iterator[str]:
    """What is well-formed, key by key, and still cannot run: one sentence for each mistake.

    Args:
        tree: the sections of the config as OmegaConf nodes, tasks by their names.
        task_names: "task", or "task[0]", "task[1]", ... for several.
    """

    def get(path: str) -> Any:
        section, key = path.rsplit(".", 1)
        if OmegaConf.is_missing(tree[section], key):
            return None
        return tree[section][key]

    def get_grpo(key: str) -> Any:
        return get(f"grpo.{key}")

    yield from number_mistakes(get_grpo)
    yield from choice_mistakes(get_grpo)
    yield from harmful_values(get_grpo)
    yield from mapping_mistakes(get_grpo)
    yield from inner_mistakes(get_grpo)
    yield from algorithm_mistakes(get_grpo)
    yield from schedule_mistakes(get_grpo)
    yield from batch_mistakes(get_grpo, world_size)
    yield from process_mistakes(get, world_size)
    yield from secret_mistakes(get_grpo)
    yield from package_mistakes(get_grpo)
    yield from vllm_mistakes(get)
    yield from turn_mistakes(get, task_names)
    yield from rollout_mistakes(get)
    yield from tracker_mistakes(get_grpo)
    yield from adapter_mistakes(get)
    yield from length_mistakes(get)
    yield from held_out_mistakes(get, task_names)
    yield from evaluation_clashes(get)
    yield from reward_mistakes(get, task_names)
    yield from checkpoint_mistakes(get)


def checkpoint_mistakes(get: Get) -> Iterator[str]:
    """Checkpoints that are wanted again and are not kept."""
    again = get("grpo.resume_from_checkpoint") or get("train.requeue")
    if get("grpo.save_only_model") and again:
        yield (
            "grpo.save_only_model: such checkpoints have no optimizer, so a run cannot be resumed "
            "from them; leave it out, or grpo.resume_from_checkpoint and train.requeue"
        )
    if get("train.keep_best") and not get("grpo.save_total_limit"):
        yield "train.keep_best: all checkpoints are kept; set grpo.save_total_limit as well"


# ---- One key of GRPOConfig


def number_mistakes(get: Get) -> Iterator[str]:
    """Numbers outside the range of their key."""
    for fits, words, keys in RANGES:
        for key in keys:
            value = get(key)
            if isinstance(value, int | float) and not fits(value):
                yield f"grpo.{key}: must {words}, not {value}"
    if get("max_steps") == 0 or number(get, "max_steps") < -1:
        yield "grpo.max_steps: must be above 0, or -1 to train for num_train_epochs"


def choice_mistakes(get: Get) -> Iterator[str]:
    """Values that the installed libraries do not know."""
    for key, values in enumerations().items():
        value = get(key)
        if value is None or str(value) in values:
            continue
        hint = among(str(value), sorted(values))
        if key == "loss_type" and str(value) in ALGORITHMS:
            hint = f"; GSPO is grpo.algorithm: gspo; there are {sorted(values)}"
        yield f"grpo.{key}: there is no {value!r}{hint}"


def harmful_values(get: Get) -> Iterator[str]:
    """Values that GRPOConfig takes and that would harm this job."""
    for key, does_harm, why in HARMFUL:
        if does_harm(get(key)):
            yield f"grpo.{key}: {why}"
    if not get("output_dir"):
        yield "grpo.output_dir: missing; name a folder"


def mapping_mistakes(get: Get) -> Iterator[str]:
    """Keys that must hold mappings."""
    for key in MAPPINGS:
        value = get(key)
        if value is not None and not OmegaConf.is_dict(value):
            yield f"grpo.{key}: must hold keys and values, not {value!r}"


def inner_mistakes(get: Get) -> Iterator[str]:
    """Keys inside the mappings."""
    if "reasoning_effort" in mapping(get, "chat_template_kwargs"):
        yield (
            "grpo.chat_template_kwargs: reasoning_effort belongs to each row; "
            "write task.reasoning_effort"
        )
    for key in mapping(get, "gradient_checkpointing_kwargs"):
        if key not in CHECKPOINTING_KEYS:
            yield (
                f"grpo.gradient_checkpointing_kwargs.{key}: no such key"
                f"{among(key, CHECKPOINTING_KEYS)}"
            )
    for key, value in mapping(get, "generation_kwargs").items():
        if key in HARMFUL_GENERATION_KEYS and value != NEUTRAL.get(key):
            yield f"grpo.generation_kwargs.{key}: {HARMFUL_GENERATION_KEYS[key]}"


def number(get: Get, key: str) -> float:
    """The value of a key that holds a number; 0 if it is left out."""
    value = get(key)
    if value is None:
        return 0
    return value


def mapping(get: Get, key: str) -> Mapping[str, Any]:
    """The value of a key that should be a mapping; empty if it is not."""
    value = get(key)
    if OmegaConf.is_dict(value):
        return value
    return {}


# ---- Several keys


def algorithm_mistakes(get: Get) -> Iterator[str]:
    """Losses that lack a key without which they are another loss."""
    loss = get("loss_type")
    level = get("importance_sampling_level")
    if loss == "cispo" and get("epsilon_high") is None:
        yield (
            "grpo.epsilon_high: cispo caps the weight of a token there (not at 1 + epsilon_high), "
            "and without one at epsilon; set 5.0, or grpo.algorithm: cispo, which does"
        )
    if loss == "luspo" and level != "sequence":
        yield "grpo.importance_sampling_level: luspo needs sequence; grpo.algorithm: luspo sets it"


def schedule_mistakes(get: Get) -> Iterator[str]:
    """Keys about when things happen, and in what precision, that contradict each other."""
    can_tell_best = get("metric_for_best_model") and evaluates(get)
    if get("save_strategy") == "best" and not can_tell_best:
        yield (
            "grpo.save_strategy: best needs metric_for_best_model and eval_strategy; "
            "steps needs neither"
        )
    max_steps = number(get, "max_steps")
    if get("num_train_epochs") is not None and max_steps > 0:
        yield (
            f"grpo.num_train_epochs: grpo.max_steps {max_steps} wins over it; "
            "set grpo.max_steps to -1"
        )
    if get("bf16") and get("fp16"):
        yield "grpo.bf16: set either this or fp16, not both; model.dtype sets the right one"


def process_mistakes(get: Get, world_size: int) -> Iterator[str]:
    """Keys that need several processes."""
    if not get("grpo.fsdp"):
        return
    if world_size == 1:
        yield (
            "grpo.fsdp: shards a model over several processes; "
            "leave it out, or start them with --gpus"
        )
    if get("model.backend") != "transformers":
        yield "grpo.fsdp: Unsloth cannot shard a model; it needs model.backend: transformers"
    optimizer = str(get("grpo.optim"))
    if "8bit" in optimizer or optimizer.startswith(("paged_", "ademamix")):
        yield (
            f"grpo.optim: {optimizer} is of bitsandbytes, which cannot step on the shards of "
            "grpo.fsdp; use adamw_torch"
        )


def secret_mistakes(get: Get) -> Iterator[str]:
    """Tokens in the config, which is written to the output folder and shown by `ps`."""
    if get("hub_token"):
        yield (
            "grpo.hub_token: a token does not belong into the config, which a run saves; "
            "set HF_TOKEN, or HF_TOKEN_PATH to a file that holds it"
        )


def package_mistakes(get: Get) -> Iterator[str]:
    """Packages that a key needs and that are not installed."""
    for key, (module, package) in OPTIONAL_PACKAGES.items():
        if get(key) and not is_installed(module):
            how = how_to_install(package)
            yield f"grpo.{key}: {package} is not installed; {how}, or leave it out"


def vllm_mistakes(get: Get) -> Iterator[str]:
    """vLLM where it cannot decode. With model.backend: auto, model.check_vllm looks for a GPU."""
    if not get("grpo.use_vllm"):
        return
    if get("model.backend") == "unsloth":
        yield VLLM_UNDER_UNSLOTH
    elif not is_installed("vllm"):
        yield (
            "grpo.use_vllm: vllm is not installed; leave it out, or, for a dense model with "
            f"model.backend: transformers, {how_to_install('vllm')}"
        )


def turn_mistakes(get: Get, task_names: Sequence[str]) -> Iterator[str]:
    """Completions of several turns where they cannot be decoded."""
    for name in task_names:
        task = tasks.load(get(f"{name}.type"))
        if not (get(f"{name}.tools") or tasks.is_of_turns(task)):
            continue
        for key in TAKE_NO_TURNS:
            if get(f"grpo.{key}"):
                yield (
                    f"grpo.{key}: cannot decode the completions of {name}.type "
                    f"{get(f'{name}.type')}, which take several turns; leave it out"
                )


def rollout_mistakes(get: Get) -> Iterator[str]:
    """CUDA graphs where another way of decoding is asked for, or keys that they do not know."""
    if get("rollout.engine") != "graph":
        return
    for key in OTHER_ENGINES:
        if get(f"grpo.{key}"):
            yield f"rollout.engine: graph, but grpo.{key} asks for another; write one of them"
    for key in mapping(lambda name: get(f"grpo.{name}"), "generation_kwargs"):
        if key not in engine.NEUTRAL and key not in engine.IGNORED:
            yield (
                f"grpo.generation_kwargs.{key}: is not known to rollout.engine: graph; "
                "write rollout.engine: generate, or leave it out"
            )


def tracker_mistakes(get: Get) -> Iterator[str]:
    """Trackers of metrics that there are not, or not here."""
    trackers = get("report_to")
    if not trackers:
        return
    if isinstance(trackers, str):
        trackers = [trackers]
    if not is_texts(trackers):
        yield f"grpo.report_to: must be a name or a list of names, not {trackers!r}"
        return
    for tracker in trackers:
        if tracker not in TRACKERS:
            yield f"grpo.report_to: no tracker {tracker!r}{among(str(tracker), TRACKERS)}"
        elif tracker != "none" and not is_installed(tracker):
            yield (
                f"grpo.report_to: {tracker} is not installed, and requirements.txt does not pin "
                f"it; {how_to_install(tracker)}, or leave it out"
            )


def adapter_mistakes(get: Get) -> Iterator[str]:
    """An adapter of nothing, or of something that PEFT cannot adapt so."""
    modules, parameters = get("lora.target_modules"), get("lora.target_parameters")
    no_modules = OmegaConf.is_list(modules) and not modules
    if no_modules and not parameters:
        yield (
            "lora.target_modules: is empty, and so is lora.target_parameters; "
            "name at least one module"
        )
    if get("lora.lora_dropout") and parameters:
        yield (
            "lora.lora_dropout: PEFT cannot drop out of what lora.target_parameters adapts; "
            "set it to 0"
        )


def length_mistakes(get: Get) -> Iterator[str]:
    """Prompt and completion must fit into max_seq_length, with one token to spare."""
    total = number(get, "model.max_seq_length")
    completion = number(get, "grpo.max_completion_length")
    prompt = number(get, "grpo.max_prompt_length")
    shortest = max(completion, 1)
    if completion and completion + 2 > total:
        yield (
            f"grpo.max_completion_length: {completion} tokens and a prompt do not fit into "
            f"model.max_seq_length {total}; at most {total - 2}"
        )
    elif shortest + prompt + 1 > total:
        yield (
            f"grpo.max_completion_length: {shortest} tokens after a prompt of "
            f"grpo.max_prompt_length {prompt} does not fit into model.max_seq_length {total}; "
            f"at most {total - prompt - 1}"
        )


def held_out_mistakes(get: Get, task_names: Sequence[str]) -> Iterator[str]:
    """An evaluation without rows to evaluate on."""
    for name in task_names:
        task = tasks.load(get(f"{name}.type"))
        if get(f"{name}.num_eval_rows") or hasattr(task, "eval_rows"):
            return
    for key in ("eval_strategy", "eval_on_start"):
        value = get(f"grpo.{key}")
        if value and value != "no":
            yield f"grpo.{key}: there is nothing to evaluate on; set task.num_eval_rows"
    if get("evaluate.every"):
        yield "evaluate.every: there is nothing to evaluate on; set task.num_eval_rows"


def evaluation_clashes(get: Get) -> Iterator[str]:
    """Two keys that both say when to evaluate."""
    every = get("evaluate.every")
    if not every:
        return
    for key in ("grpo.eval_strategy", "grpo.eval_steps"):
        value = get(key)
        if value and value != "no":
            yield (
                f"evaluate.every: {every} and {key} both say when to evaluate; keep evaluate.every"
            )
            return


def reward_mistakes(get: Get, task_names: Sequence[str]) -> Iterator[str]:
    """Reward functions that do not exist, names that clash in the metrics, and wrong weights."""
    logged_as: dict[str, str] = {}  # name in the metrics -> reward function
    weights: dict[str, list[tuple[int, float]]] = {}  # reward function -> corners of its weight
    for name in task_names:
        chosen = get(f"{name}.rewards")
        if OmegaConf.is_config(chosen):
            chosen = OmegaConf.to_container(chosen, resolve=False)
        if chosen in ([], {}):
            yield f"{name}.rewards: is empty; null takes the task's own"
        elif chosen and not isinstance(chosen, dict) and not is_texts(chosen):
            yield (
                f"{name}.rewards: must be a list of names or a mapping of names to weights, "
                f"not {chosen!r}"
            )
            continue
        for reward, weight in tasks.reward_weights(get(f"{name}.type"), chosen).items():
            yield from reward_name_mistakes(name, str(reward), logged_as)
            yield from weight_mistakes(name, str(reward), weight, weights)


def reward_name_mistakes(task: str, reward: str, logged_as: dict[str, str]) -> Iterator[str]:
    """Adds the function to `logged_as`, the functions so far by their names in the metrics."""
    short = reward.rpartition(":")[2]
    if logged_as.setdefault(short, reward) != reward:
        yield (
            f"{task}.rewards: {reward} would be logged under the name of another function; "
            "rename it"
        )
    try:
        rewards.resolve(reward)
    except ValueError as error:
        yield f"{task}.rewards: {error}"


def weight_mistakes(
    task: str, reward: str, weight: Any, weights: dict[str, list[tuple[int, float]]]
) -> Iterator[str]:
    """Adds the weight to `weights`, those of all functions so far."""
    try:
        corners = corners_of(weight)
    except ValueError as error:
        yield f"{task}.rewards.{reward}: {error}"
        return
    if weights.setdefault(reward, corners) != corners:
        yield (
            f"{task}.rewards.{reward}: another weight than in another task; one weight serves all "
            "tasks: write it in each (a task without rewards has 1 for all of its own)"
        )


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(item, str) for item in value)


# ---- What is said in vain

# Beginnings of keys that do nothing without another key, which is named first.
NEEDS = {
    "use_vllm": ("vllm_",),
    "use_adaptive_entropy": ("entropy_coef_", "entropy_target"),
    "sync_ref_model": ("ref_model_",),
    "use_liger_kernel": ("liger_kernel_config",),
    "push_to_hub": ("hub_",),
    "fsdp": ("fsdp_config",),
}
# Keys that never do anything in this job
WITHOUT_EFFECT = {
    "label_smoothing_factor": "GRPO has a loss of its own",
    "train_sampling_strategy": "TRL's order keeps groups together; grpo.shuffle_dataset chooses it",
    "length_column_name": "rows are not grouped by length",
    "max_tool_calling_iterations": "no tools are called",
    "include_for_metrics": "GRPO's metrics are TRL's own",
    "batch_eval_metrics": "GRPO's metrics are TRL's own",
    "data_seed": "TRL draws rows by grpo.seed",
    "model_init_kwargs": "the model is loaded as the model: section says",
    "trust_remote_code": "the model is loaded as the model: section says",
}


def in_vain(grpo: Mapping[str, Any]) -> Iterator[str]:
    """A notice for each key of the `grpo:` section that does nothing beside the other keys."""
    reasons = reasons_in_vain(grpo)
    for key in grpo:
        for beginning, reason in reasons.items():
            if key.startswith(beginning):
                yield f"grpo.{key}: has no effect {reason}"


def reasons_in_vain(grpo: Mapping[str, Any]) -> dict[str, str]:
    """Beginning of a key -> why keys that begin so do nothing beside the other keys."""
    reasons = {}
    for key, why in WITHOUT_EFFECT.items():
        reasons[key] = f"here: {why}"
    for needed, beginnings in NEEDS.items():
        if not grpo.get(needed):
            reasons |= dict.fromkeys(beginnings, f"without {needed}")
    reasons |= loss_reasons(grpo.get)
    reasons |= evaluation_reasons(grpo.get)
    reasons |= optimizer_reasons(grpo.get)
    reasons |= model_reasons(grpo.get)
    return reasons


def loss_reasons(get: Callable[..., Any]) -> dict[str, str]:
    reasons = {}
    loss = get("loss_type")
    for name in ("sapo", "vespo"):
        if loss != name:
            reasons[f"{name}_"] = f"without loss_type {name}"
    if loss in ("cispo", "sapo", "vespo"):
        reasons["delta"] = f"with loss_type {loss}"
    if loss == "vespo" and get("importance_sampling_level") != "token":
        reasons["importance_sampling_level"] = "with loss_type vespo, which weighs sequences"
    return reasons


def evaluation_reasons(get: Callable[..., Any]) -> dict[str, str]:
    if evaluates(get):
        return {}
    idle = ["eval_steps", "eval_delay", "eval_accumulation_steps"]
    if not get("eval_on_start"):
        idle += ["per_device_eval_batch_size", "num_generations_eval"]
    return dict.fromkeys(idle, "without eval_strategy")


def optimizer_reasons(get: Callable[..., Any]) -> dict[str, str]:
    reasons = {}
    scheduler = get("lr_scheduler_type", "linear")
    if scheduler == "constant" and get("warmup_steps"):
        reasons["warmup_steps"] = "with lr_scheduler_type constant; constant_with_warmup has one"
    if scheduler in PLAIN_SCHEDULERS:
        reasons["lr_scheduler_kwargs"] = f"with lr_scheduler_type {scheduler}"
    optimizer = get("optim", "")
    if "galore" not in optimizer and "apollo" not in optimizer:
        reasons["optim_target_modules"] = "without a GaLore or APOLLO optimizer"
    return reasons


def model_reasons(get: Callable[..., Any]) -> dict[str, str]:
    reasons = {}
    is_batched = get("use_transformers_continuous_batching") or get("use_transformers_paged")
    if not is_batched:
        reasons["transformers_continuous_batching_config"] = (
            "without use_transformers_continuous_batching"
        )
    if not get("gradient_checkpointing", True):
        reasons["gradient_checkpointing_kwargs"] = "without gradient_checkpointing"
    return reasons
