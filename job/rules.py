"""What a config may not say, and what it says in vain.

Where the check of a key stands:
    one key of a section of ours        `__post_init__` of the section's dataclass: Model, Lora and SandboxOptions in
                                        config.py, Options in watchdog.py, Options of each task
    one key of GRPOConfig               the tables at the head of this file, because its dataclass is TRL's
    several keys                        a function here, one for each subject
    a key and the prompts               plan.py, which measures them
    a key and the model's files         model.py, which reads them
    what a library refuses late         plan.rehearse, which tries it on one weight

So a new key goes into its dataclass with its default in config.yaml, and its check into `__post_init__`. Every check
says the full name of the key, what was allowed and, where there is one, the nearest value that works.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

import tasks
from job import rewards
from job.batches import Get, batch_mistakes, evaluates
from job.errors import nearest
from job.grpo_keys import ALGORITHMS, enumerations
from job.schedules import corners as corners_of

# ---- one key of GRPOConfig: what its number must be

RANGES: tuple[tuple[Callable[[float], bool], str, tuple[str, ...]], ...] = (
    (lambda x: 0 < x < math.inf, "be above 0 and finite",
     ("learning_rate", "temperature", "per_device_train_batch_size", "gradient_accumulation_steps", "save_steps",
      "logging_steps", "max_completion_length", "num_generations", "steps_per_generation", "generation_batch_size",
      "num_iterations", "num_train_epochs", "num_generations_eval", "per_device_eval_batch_size", "eval_steps",
      "delta", "repetition_penalty", "pad_to_multiple_of", "sapo_temperature_neg", "sapo_temperature_pos")),
    (lambda x: 0 <= x < math.inf, "be 0 or more, and finite",
     ("beta", "epsilon", "epsilon_high", "weight_decay", "warmup_steps", "max_grad_norm", "adam_epsilon", "top_k",
      "neftune_noise_alpha", "eval_delay", "vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos",
      "router_aux_loss_coef")),
    (lambda x: 0 <= x < 1, "be at least 0 and below 1", ("adam_beta1", "adam_beta2")),
    (lambda x: 0 <= x <= 1, "lie between 0 and 1", ("top_p", "min_p", "top_entropy_quantile")),
    (lambda x: 0 <= x < 2**32, f"lie between 0 and {2**32 - 1}", ("seed", "data_seed")),
    (math.isfinite, "be finite",
     ("entropy_coef", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")),
)  # fmt: skip

# ---- one key of GRPOConfig: what must be a mapping

MAPPINGS = ("chat_template_kwargs", "generation_kwargs", "lr_scheduler_kwargs", "gradient_checkpointing_kwargs",
            "liger_kernel_config", "transformers_continuous_batching_config")  # fmt: skip

# ---- one key of GRPOConfig: values that do harm here, and why

HARMFUL: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("reward_weights", lambda value: value is not None, "write the weights under task.rewards: {name: weight}"),
    ("sync_ref_model", bool, "TRL has no reference model to move beside a LoRA adapter; leave it out"),
    ("remove_unused_columns", bool, "would take answer, task and reasoning_effort from every row; leave it out"),
    ("disable_tqdm", lambda value: value is False, "there is one progress bar, and it shows on a terminal; leave it "
     "out"),
    ("auto_find_batch_size", bool, "a smaller batch would cut groups; lower per_device_train_batch_size instead"),
)  # fmt: skip

# ---- keys inside mappings of GRPOConfig

CHECKPOINTING_KEYS = (
    "use_reentrant",
    "preserve_rng_state",
    "determinism_check",
    "debug",
    "early_stop",
)  # of torch
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
    "max_new_tokens": "write grpo.max_completion_length, which the plan reckons with",
    "max_length": "write grpo.max_completion_length, which the plan reckons with",
    "do_sample": "GRPO learns from samples; leave it out",
    "num_beams": "GRPO learns from samples; leave it out",
    "num_return_sequences": "write grpo.num_generations",
    "stop_strings": "TRL does not hand on the tokenizer that this needs",
}
# The values that those keys have without being written
NEUTRAL = {"do_sample": True, "num_beams": 1, "num_return_sequences": 1}

TRACKERS = ["tensorboard", "wandb", "trackio", "mlflow", "none"]
OPTIONAL_PACKAGES = {
    "use_vllm": ("vllm", "vllm"),
    "use_liger_kernel": ("liger_kernel", "liger-kernel"),
}

PLAIN_SCHEDULERS = ("constant", "constant_with_warmup")  # transformers hands nothing on to these


def impossible(
    tree: Mapping[str, Any], task_names: Sequence[str], world_size: int
) -> Iterator[str]:
    """What is well-formed, key by key, and still cannot run: one sentence a mistake.

    Args:
        tree: the sections of the config as OmegaConf nodes, tasks by their names.
        task_names: "task", or "task[0]", "task[1]", ... for several.
    """

    def get(path: str) -> Any:
        section, key = path.rsplit(".", 1)
        return None if OmegaConf.is_missing(tree[section], key) else tree[section][key]

    def get_grpo(key: str) -> Any:
        return get(f"grpo.{key}")

    yield from number_mistakes(get_grpo)
    yield from choice_mistakes(get_grpo)
    yield from harmful_values(get_grpo)
    yield from mapping_mistakes(get_grpo)
    yield from algorithm_mistakes(get_grpo)
    yield from schedule_mistakes(get_grpo)
    yield from batch_mistakes(get_grpo, world_size)
    yield from process_mistakes(get_grpo, world_size)
    yield from package_mistakes(get_grpo)
    yield from tracker_mistakes(get_grpo)
    yield from adapter_mistakes(get)
    yield from length_mistakes(get)
    yield from evaluation_mistakes(get, task_names)
    yield from reward_mistakes(get, task_names)


def number_mistakes(get: Get) -> Iterator[str]:
    for fits, words, keys in RANGES:
        for key in keys:
            value = get(key)
            if isinstance(value, int | float) and not fits(value):
                yield f"grpo.{key}: must {words}, not {value}"
    max_steps = get("max_steps")
    if max_steps is not None and max_steps < 1 and max_steps != -1:
        yield "grpo.max_steps: must be above 0, or -1 to train for num_train_epochs"


def choice_mistakes(get: Get) -> Iterator[str]:
    """Values that the installed libraries do not know."""
    for key, values in enumerations().items():
        value = get(key)
        if value is None or str(value) in values:
            continue
        hint = nearest(str(value), values)
        if key == "loss_type" and str(value) in ALGORITHMS:
            hint = "; GSPO is grpo.algorithm: gspo"
        yield f"grpo.{key}: there is no {value!r}{hint}; there are {sorted(values)}"


def harmful_values(get: Get) -> Iterator[str]:
    for key, does_harm, why in HARMFUL:
        if does_harm(get(key)):
            yield f"grpo.{key}: {why}"
    if not get("output_dir"):
        yield "grpo.output_dir: missing; name a folder"


def mapping_mistakes(get: Get) -> Iterator[str]:
    for key in MAPPINGS:
        value = get(key)
        if value is not None and not OmegaConf.is_dict(value):
            yield f"grpo.{key}: must hold keys and values, not {value!r}"
    if "reasoning_effort" in mapping(get, "chat_template_kwargs"):
        yield "grpo.chat_template_kwargs: reasoning_effort belongs to each row; write task.reasoning_effort"
    for key in mapping(get, "gradient_checkpointing_kwargs"):
        if key not in CHECKPOINTING_KEYS:
            hint = nearest(key, CHECKPOINTING_KEYS)
            allowed = list(CHECKPOINTING_KEYS)
            yield f"grpo.gradient_checkpointing_kwargs.{key}: no such key{hint}; there are {allowed}"
    for key, value in mapping(get, "generation_kwargs").items():
        if key in HARMFUL_GENERATION_KEYS and value != NEUTRAL.get(key):
            yield f"grpo.generation_kwargs.{key}: {HARMFUL_GENERATION_KEYS[key]}"


def mapping(get: Get, key: str) -> Mapping[str, Any]:
    """The value of a key that should be a mapping; empty if it is not."""
    value = get(key)
    return value if OmegaConf.is_dict(value) else {}


def algorithm_mistakes(get: Get) -> Iterator[str]:
    if get("loss_type") == "cispo" and get("epsilon_high") is None:
        yield (
            "grpo.epsilon_high: cispo caps the weight of a token there (not at 1 + epsilon_high), and without one at "
            "epsilon; set 5.0, or grpo.algorithm: cispo, which does"
        )
    if get("loss_type") == "luspo" and get("importance_sampling_level") != "sequence":
        yield "grpo.importance_sampling_level: luspo needs sequence; grpo.algorithm: luspo sets it"


def schedule_mistakes(get: Get) -> Iterator[str]:
    """Keys about when things happen, and in what precision, that contradict each other."""
    if get("save_strategy") == "best" and not (get("metric_for_best_model") and evaluates(get)):
        yield "grpo.save_strategy: best needs metric_for_best_model and eval_strategy; steps needs neither"
    max_steps = get("max_steps") or -1
    if get("num_train_epochs") is not None and max_steps > 0:
        yield f"grpo.num_train_epochs: grpo.max_steps {max_steps} wins over it; set grpo.max_steps to -1"
    if get("bf16") and get("fp16"):
        yield "grpo.bf16: set either this or fp16, not both; model.dtype sets the right one"


def process_mistakes(get: Get, world_size: int) -> Iterator[str]:
    if get("fsdp") and world_size == 1:
        yield "grpo.fsdp: shards a model over several processes; leave it out, or start them by torchrun"


def package_mistakes(get: Get) -> Iterator[str]:
    for key, (module, package) in OPTIONAL_PACKAGES.items():
        if get(key) and importlib.util.find_spec(module) is None:
            yield f"grpo.{key}: {package} is not installed; pip install {package}, or leave it out"


def tracker_mistakes(get: Get) -> Iterator[str]:
    trackers = get("report_to") or []
    if isinstance(trackers, str):
        trackers = [trackers]
    if not is_texts(trackers):
        yield f"grpo.report_to: must be a name or a list of names, not {trackers!r}"
        return
    for tracker in trackers:
        if tracker not in TRACKERS:
            yield f"grpo.report_to: no tracker {tracker!r}{nearest(str(tracker), TRACKERS)}; there are {TRACKERS}"
        elif tracker != "none" and importlib.util.find_spec(tracker) is None:
            yield f"grpo.report_to: {tracker} is not installed; pip install {tracker}, or leave it out"


def adapter_mistakes(get: Get) -> Iterator[str]:
    modules, parameters = get("lora.target_modules"), get("lora.target_parameters")
    if OmegaConf.is_list(modules) and not modules and not parameters:
        yield "lora.target_modules: is empty, and so is lora.target_parameters; name at least one module"
    if get("lora.lora_dropout") and parameters:
        yield "lora.lora_dropout: PEFT cannot drop out of what lora.target_parameters adapts; set it to 0"


def length_mistakes(get: Get) -> Iterator[str]:
    """Prompt and completion must fit into max_seq_length, with one token to spare."""
    total = get("model.max_seq_length") or 0
    completion = get("grpo.max_completion_length") or 0
    prompt = get("grpo.max_prompt_length") or 0
    if completion and completion + 2 > total:
        yield (
            f"grpo.max_completion_length: {completion} tokens and a prompt do not fit into model.max_seq_length "
            f"{total}; at most {total - 2}"
        )
    elif max(completion, 1) + prompt + 1 > total:
        yield (
            f"grpo.max_completion_length: {completion or 1} tokens after a prompt of grpo.max_prompt_length {prompt} "
            f"does not fit into model.max_seq_length {total}; at most {total - prompt - 1}"
        )


def evaluation_mistakes(get: Get, task_names: Sequence[str]) -> Iterator[str]:
    held_out = False
    for name in task_names:
        if get(f"{name}.num_eval_rows") or hasattr(tasks.load(get(f"{name}.type")), "eval_rows"):
            held_out = True
    for key in ("eval_strategy", "eval_on_start"):
        if (get(f"grpo.{key}") or "no") != "no" and not held_out:
            yield f"grpo.{key}: there is nothing to evaluate on; set task.num_eval_rows"


def reward_mistakes(get: Get, task_names: Sequence[str]) -> Iterator[str]:
    weights: dict[str, list[tuple[int, float]]] = {}  # of all tasks so far
    logged_as: dict[str, str] = {}  # name in the metrics -> reward function
    for name in task_names:
        chosen = get(f"{name}.rewards")
        if OmegaConf.is_config(chosen):
            chosen = OmegaConf.to_container(chosen, resolve=False)
            if not chosen:
                yield f"{name}.rewards: is empty; null takes the task's own"
        if chosen and not is_texts(chosen) and not isinstance(chosen, dict):
            yield f"{name}.rewards: must be a list of names or a mapping of names to weights, not {chosen!r}"
            continue
        for reward, weight in tasks.reward_weights(get(f"{name}.type"), chosen).items():
            reward = str(reward)
            if logged_as.setdefault(reward.rpartition(":")[2], reward) != reward:
                yield f"{name}.rewards: {reward} would be logged under the name of another function; rename it"
            try:
                rewards.resolve(reward)
            except ValueError as error:
                yield f"{name}.rewards: {error}{nearest(reward, rewards.names())}"
            try:
                corners = corners_of(weight)
            except ValueError as error:
                yield f"{name}.rewards.{reward}: {error}"
                continue
            if weights.setdefault(reward, corners) != corners:
                yield (
                    f"{name}.rewards.{reward}: another weight than in another task; one weight serves all tasks: "
                    "write it in each (a task without rewards has 1 for all of its own)"
                )


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(item, str) for item in value)


def in_vain(grpo: Mapping[str, Any]) -> Iterator[str]:
    """A notice for each key of the `grpo:` section that is set and, beside the others, does nothing."""
    for key in grpo:
        for beginning, reason in reasons_in_vain(grpo).items():
            if key.startswith(beginning):
                yield f"grpo.{key}: has no effect {reason}"


# Keys by their beginning that need another key of the section, which is named first.
NEEDS = {
    "use_vllm": ("vllm_",),
    "use_adaptive_entropy": ("entropy_coef_", "entropy_target"),
    "sync_ref_model": ("ref_model_",),
    "use_liger_kernel": ("liger_kernel_config",),
    "push_to_hub": ("hub_",),
    "fsdp": ("fsdp_config",),
}
# Keys that do nothing in this job.
IDLE = {
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


def reasons_in_vain(grpo: Mapping[str, Any]) -> dict[str, str]:
    """Beginning of a key -> why the keys that begin so do nothing beside the other keys of this section."""
    get = grpo.get
    reasons = {key: f"here: {why}" for key, why in IDLE.items()}
    for needed, beginnings in NEEDS.items():
        if not get(needed):
            reasons |= dict.fromkeys(beginnings, f"without {needed}")

    loss = get("loss_type")
    for name in ("sapo", "vespo"):
        if loss != name:
            reasons[f"{name}_"] = f"without loss_type {name}"
    if loss in ("cispo", "sapo", "vespo"):
        reasons["delta"] = f"with loss_type {loss}"
    if loss == "vespo" and get("importance_sampling_level") != "token":
        reasons["importance_sampling_level"] = "with loss_type vespo, which weighs sequences"

    if not evaluates(get):
        reasons |= dict.fromkeys(
            ("eval_steps", "eval_delay", "eval_accumulation_steps"), "without eval_strategy"
        )
        if not get("eval_on_start"):
            reasons |= dict.fromkeys(
                ("per_device_eval_batch_size", "num_generations_eval"), "without eval_strategy"
            )

    scheduler = get("lr_scheduler_type", "linear")
    if scheduler == "constant" and get("warmup_steps"):
        reasons["warmup_steps"] = "with lr_scheduler_type constant; constant_with_warmup has one"
    if scheduler in PLAIN_SCHEDULERS:
        reasons["lr_scheduler_kwargs"] = f"with lr_scheduler_type {scheduler}"

    optimizer = get("optim", "")
    if "galore" not in optimizer and "apollo" not in optimizer:
        reasons["optim_target_modules"] = "without a GaLore or APOLLO optimizer"
    if not get("use_transformers_continuous_batching") and not get("use_transformers_paged"):
        reasons["transformers_continuous_batching_config"] = (
            "without use_transformers_continuous_batching"
        )
    if not get("gradient_checkpointing", True):
        reasons["gradient_checkpointing_kwargs"] = "without gradient_checkpointing"
    return reasons
