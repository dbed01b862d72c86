"""What the `grpo:` section of the config may hold: every field of the installed GRPOConfig, five keys of our own, and
named algorithms; what its enumerations allow, and the arithmetic of its batches.

Nothing here imports torch or TRL, whose source is read instead: Unsloth must be imported before TRL, and a misspelt key
should cost a moment.
"""

import ast
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from job.errors import nearest

# Each algorithm sets all of these keys, so that a change from one to another leaves nothing of the first behind.
COMMON = {
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "scale_rewards": "group",
    "multi_objective_aggregation": "sum_then_normalize",
    "beta": 0.0,
    "epsilon": 0.2,
    "epsilon_high": None,
    "mask_truncated_completions": False,
    "zero_std_groups": "keep",
}
# By the papers and TRL's documentation of them; README.md has the table with their links.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": COMMON | {"beta": 0.04},
    "dr_grpo": COMMON | {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": COMMON
    | {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True, "zero_std_groups": "resample"},
    "gspo": COMMON | {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "bnpo": COMMON | {"loss_type": "bnpo"},
    "cispo": COMMON | {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": COMMON | {"loss_type": "sapo"},
    "luspo": COMMON
    | {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 2e-3, "epsilon_high": 2.5e-3},
    "vespo": COMMON | {"loss_type": "vespo"},
    "gdpo": COMMON | {"multi_objective_aggregation": "normalize_then_sum"},
}


@dataclass(frozen=True)
class Options:
    """The keys of the `grpo:` section that are not TRL's."""

    algorithm: str | None = None  # one of ALGORITHMS: sets its keys, unless they are written beside it
    zero_std_groups: Literal["keep", "skip", "resample"] = MISSING
    max_resampling_tries: int = MISSING
    max_prompt_length: int | None = None  # tokens; null: what max_completion_length leaves of model.max_seq_length
    overlong_prompts: Literal["refuse", "drop"] = MISSING


PLAIN_SCHEDULERS = ("constant", "constant_with_warmup")  # transformers hands nothing on to these
LOG_LEVELS = ("passive", "detail", "debug", "info", "warning", "error", "critical")  # of transformers
CHECKPOINTING_KEYS = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")  # of torch
# What stands under grpo.generation_kwargs and does harm there, and why.
GENERATION_KEYS = {
    **{key: f"write grpo.{key}, from which the loss is worked out, too" for key in
       ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")},
    **dict.fromkeys(("max_new_tokens", "max_length"), "write grpo.max_completion_length, which the plan reckons with"),
    **dict.fromkeys(("do_sample", "num_beams"), "GRPO learns from samples; leave it out"),
    "num_return_sequences": "write grpo.num_generations",
    "stop_strings": "TRL does not hand on the tokenizer that this needs",
}  # fmt: skip
NEUTRAL = {"do_sample": True, "num_beams": 1, "num_return_sequences": 1}  # what they are without being written
OWN_KEYS = tuple(field.name for field in fields(Options))

ENUMERATIONS = ("loss_type", "importance_sampling_level", "multi_objective_aggregation", "scale_rewards",
                "vllm_mode", "vllm_importance_sampling_mode")  # fmt: skip


# What numbers must be: the test, the same in words, and the keys.
RANGES: tuple[tuple[Callable[[float], bool], str, tuple[str, ...]], ...] = (
    (lambda x: 0 <= x < 1, "be at least 0 and below 1", ("adam_beta1", "adam_beta2")),
    (lambda x: 0 <= x <= 1, "lie between 0 and 1", ("top_p", "min_p", "top_entropy_quantile")),
    (lambda x: 0 <= x < 2**32, f"lie between 0 and {2**32 - 1}", ("seed", "data_seed")),
    (math.isfinite, "be finite",
     ("entropy_coef", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")),
    (lambda x: 0 < x < math.inf, "be above 0 and finite",
     ("delta", "repetition_penalty", "pad_to_multiple_of", "sapo_temperature_neg", "sapo_temperature_pos")),
    (lambda x: 0 <= x < math.inf, "be 0 or more, and finite",
     ("beta", "epsilon", "epsilon_high", "weight_decay", "warmup_steps", "max_grad_norm", "adam_epsilon", "top_k",
      "neftune_noise_alpha", "eval_delay", "vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos",
      "router_aux_loss_coef")),
)  # fmt: skip


@dataclass(frozen=True)
class BatchPlan:
    """How many completions and prompts there are at each level. Counts are over all processes unless they say
    otherwise."""

    world_size: int
    per_device_batch: int  # sequences in one backward pass of one process
    accumulation: int  # backward passes per optimizer step
    steps_per_generation: int  # backward passes that one generate call feeds
    num_generations: int  # completions of one prompt
    num_iterations: int  # times that each generated batch is trained on

    @property
    def generate_call(self) -> int:
        """Completions that one process decodes at once."""
        return self.per_device_batch * self.steps_per_generation

    @property
    def optimizer_step(self) -> int:
        """Completions that one optimizer step learns from."""
        return self.per_device_batch * self.accumulation * self.world_size

    def lines(self, max_steps: int, prompt_tokens: int, completion_tokens: int) -> list[str]:
        """The plan in words; lengths are the longest possible ones."""
        per_device = self.optimizer_step // self.world_size
        each = f"each of {self.world_size} devices takes {self._batch(per_device)}, " * (self.world_size > 1)
        calls = self.accumulation / (self.steps_per_generation * self.num_iterations)
        lines = [
            f"an optimizer step: {self._batch(self.optimizer_step)}, {self.num_generations} each; {each}"
            f"{self.per_device_batch} a backward pass",
            f"a generate call: {self._batch(self.generate_call)} a device, up to {completion_tokens} tokens each after "
            f"prompts of up to {prompt_tokens}; {plural(calls, 'call')} an optimizer step",
        ]
        if max_steps > 0:
            completions = math.ceil(max_steps * calls) * self.generate_call * self.world_size
            tokens = completions * (prompt_tokens + completion_tokens)
            lines.append(f"all {max_steps} steps: {completions:,} completions, at most {tokens:,} tokens with prompts")
        return lines

    def _batch(self, completions: int) -> str:
        return f"{plural(completions, 'completion')} of {plural(completions / self.num_generations, 'prompt')}"


def plural(count: float, noun: str) -> str:
    return f"{count:g} {noun}{'s' * (count != 1)}"


def batch_plan(grpo: Mapping[str, Any], world_size: int) -> BatchPlan:
    """The plan of a `grpo:` section that batch_mistakes finds nothing wrong with; defaults are TRL's."""
    per_device = grpo.get("per_device_train_batch_size") or 8
    accumulation = grpo.get("gradient_accumulation_steps") or 1
    generation_batch = grpo.get("generation_batch_size")
    return BatchPlan(
        world_size,
        per_device,
        accumulation,
        generation_batch // (per_device * world_size)
        if generation_batch
        else grpo.get("steps_per_generation") or accumulation,
        grpo.get("num_generations") or 8,
        grpo.get("num_iterations") or 1,
    )


def batch_mistakes(get: Callable[[str], Any], world_size: int) -> Iterator[str]:
    """GRPO compares the completions of one prompt, so whole groups must fit into what is generated at once.

    Args:
        get: value of a key of the `grpo:` section, or None.
        world_size: number of processes.
    """
    num_generations = get("num_generations") or 8
    per_device, accumulation = get("per_device_train_batch_size") or 8, get("gradient_accumulation_steps") or 1
    if num_generations < 2:
        yield f"grpo.num_generations: must be at least 2 (an advantage compares completions), not {num_generations}"
        return
    if min(per_device, accumulation) < 1:
        return  # said elsewhere
    generation_batch, steps = get("generation_batch_size"), get("steps_per_generation")
    if generation_batch and steps:
        yield "grpo.generation_batch_size: set either this or steps_per_generation, not both"
        return
    one_step = per_device * world_size
    remedy = "steps_per_generation" if steps else "gradient_accumulation_steps"
    if generation_batch:
        unit = math.lcm(num_generations, one_step)
        if generation_batch % unit:
            yield (
                f"grpo.generation_batch_size: {generation_batch} is not a multiple of both num_generations "
                f"({num_generations}) and per_device_train_batch_size x processes ({per_device} x {world_size}); "
                f"the nearest that fits is {nearest_multiple(generation_batch, unit)}"
            )
    else:
        units = steps or accumulation
        batch = one_step * units
        if batch % num_generations:
            least = num_generations // math.gcd(num_generations, one_step)
            smaller = nearest_divisor(num_generations, batch)
            yield (
                f"grpo.num_generations: groups of {num_generations} do not fill a generation batch of {batch} "
                f"completions (per_device_train_batch_size {per_device} x processes {world_size} x {remedy} {units}); "
                f"the nearest that fits is {remedy} {nearest_multiple(units, least)}"
                + (f", or num_generations {smaller}" if smaller else "")
            )
    if get("zero_std_groups") == "resample":
        per_process = (generation_batch or one_step * (steps or accumulation)) // world_size
        if per_process % num_generations:
            if generation_batch:
                unit = math.lcm(num_generations, per_device) * world_size
                fitting = f"generation_batch_size {nearest_multiple(generation_batch, unit)}"
            else:
                least = num_generations // math.gcd(num_generations, per_device)
                fitting = f"{remedy} {nearest_multiple(steps or accumulation, least)}"
            yield (
                f"grpo.zero_std_groups: resample needs whole groups on each process, but {per_process} completions a "
                f"process are not a multiple of num_generations ({num_generations}); use skip, or {fitting}"
            )
    if get("fsdp") and world_size == 1:
        yield "grpo.fsdp: shards a model over several processes; leave it out, or start them by torchrun"
    if evaluates(get) or get("eval_on_start"):
        group = get("num_generations_eval") or num_generations
        per_device_eval = get("per_device_eval_batch_size") or 8
        if per_device_eval * world_size % group:
            least = group // math.gcd(group, world_size)
            yield (
                f"grpo.per_device_eval_batch_size: {per_device_eval} x {world_size} processes is not a multiple of the "
                f"{group} completions of a prompt; the nearest that fits is {nearest_multiple(per_device_eval, least)}"
            )


def evaluates(get: Callable[[str], Any]) -> bool:
    """Whether the run stops now and then to evaluate; `get` as in batch_mistakes."""
    return (get("eval_strategy") or "no") != "no"


def in_vain(section: Mapping[str, Any]) -> Iterator[str]:
    """A notice for each key that is set and, beside the others, does nothing."""
    loss, scheduler = section.get("loss_type"), section.get("lr_scheduler_type", "linear")
    evaluating = evaluates(section.get)
    own_level = section.get("importance_sampling_level") == "token"
    warms_up, constant = section.get("warmup_steps"), scheduler == "constant"
    targets = any(name in section.get("optim", "") for name in ("galore", "apollo"))
    checkpointing = section.get("gradient_checkpointing", True)
    batches = section.get("use_transformers_continuous_batching") or section.get("use_transformers_paged")
    reasons = (  # keys by their beginning, why they do nothing, and whether they do something all the same
        ("sapo_", "without loss_type sapo", section.get("loss_type") == "sapo"),
        ("vespo_", "without loss_type vespo", section.get("loss_type") == "vespo"),
        ("vllm_", "without use_vllm", section.get("use_vllm")),
        ("entropy_coef_", "without use_adaptive_entropy", section.get("use_adaptive_entropy")),
        ("entropy_target", "without use_adaptive_entropy", section.get("use_adaptive_entropy")),
        ("ref_model_", "without sync_ref_model", section.get("sync_ref_model")),
        *(
            (key, "without eval_strategy", evaluating)
            for key in ("eval_steps", "eval_delay", "eval_accumulation_steps")
        ),
        ("per_device_eval_batch_size", "without eval_strategy", evaluating or section.get("eval_on_start")),
        ("num_generations_eval", "without eval_strategy", evaluating or section.get("eval_on_start")),
        ("delta", f"with loss_type {loss}", loss not in ("cispo", "sapo", "vespo")),
        ("importance_sampling_level", "with loss_type vespo, which weighs sequences", loss != "vespo" or own_level),
        ("warmup_steps", "with lr_scheduler_type constant; constant_with_warmup has one", not (warms_up and constant)),
        ("lr_scheduler_kwargs", f"with lr_scheduler_type {scheduler}", scheduler not in PLAIN_SCHEDULERS),
        ("optim_target_modules", "without a GaLore or APOLLO optimizer", targets),
        ("liger_kernel_config", "without use_liger_kernel", section.get("use_liger_kernel")),
        ("transformers_continuous_batching_config", "without use_transformers_continuous_batching", batches),
        ("gradient_checkpointing_kwargs", "without gradient_checkpointing", checkpointing),
        ("hub_", "without push_to_hub", section.get("push_to_hub")),
        ("fsdp_config", "without fsdp", section.get("fsdp")),
        ("label_smoothing_factor", "here: GRPO has a loss of its own", False),
        ("train_sampling_strategy", "here: TRL's order keeps groups together; grpo.shuffle_dataset chooses it", False),
        ("length_column_name", "here: rows are not grouped by length", False),
        ("max_tool_calling_iterations", "here: no tools are called", False),
        ("include_for_metrics", "here: GRPO's metrics are TRL's own", False),
        ("batch_eval_metrics", "here: GRPO's metrics are TRL's own", False),
        ("data_seed", "here: TRL draws rows by grpo.seed", False),
        ("model_init_kwargs", "here: the model is loaded as the model: section says", False),
        ("trust_remote_code", "here: the model is loaded as the model: section says", False),
    )
    for key in section:
        for beginning, reason, does_something in reasons:
            if key.startswith(beginning) and not does_something:
                yield f"grpo.{key}: has no effect {reason}"


def nearest_multiple(number: int, unit: int) -> int:
    """The multiple of `unit`, above 0, that is nearest to `number`."""
    return max(round(number / unit), 1) * unit


def nearest_divisor(number: int, whole: int) -> int | None:
    """The divisor of `whole` from 2 on that is nearest to `number`."""
    return min((d for d in range(2, whole + 1) if whole % d == 0), key=lambda d: abs(d - number), default=None)


def value_mistakes(get: Callable[[str], Any]) -> Iterator[str]:
    """Values that the installed libraries do not know, and pairs of keys that contradict each other."""
    allowed = enumerations()
    for key, values in allowed.items():
        value = get(key)
        if value is None or str(value) in values:
            continue
        gspo = "; GSPO is grpo.algorithm: gspo" if key == "loss_type" and str(value) in ALGORITHMS else ""
        yield f"grpo.{key}: there is no {value!r}{gspo or nearest(str(value), values)}; there are {sorted(values)}"
    algorithm = get("algorithm")
    if algorithm is not None and algorithm not in ALGORITHMS:
        hint = nearest(str(algorithm), ALGORITHMS)
        yield f"grpo.algorithm: there is no {algorithm!r}{hint}; there are {list(ALGORITHMS)}"
    if get("loss_type") == "cispo" and get("epsilon_high") is None:
        yield (
            "grpo.epsilon_high: cispo caps the weight of a token there (not at 1 + epsilon_high), and without one at "
            "epsilon; set 5.0, or grpo.algorithm: cispo, which does"
        )
    if get("loss_type") == "luspo" and get("importance_sampling_level") != "sequence":
        yield "grpo.importance_sampling_level: luspo needs sequence; grpo.algorithm: luspo sets it"
    if get("use_vllm") and importlib.util.find_spec("vllm") is None:
        yield "grpo.use_vllm: vllm is not installed; pip install vllm, or leave it out"
    if get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        yield "grpo.use_liger_kernel: liger-kernel is not installed; pip install liger-kernel, or leave it out"
    kwargs = get("gradient_checkpointing_kwargs")
    for key in kwargs if isinstance(kwargs, Mapping) else ():
        if key not in CHECKPOINTING_KEYS:
            hint = nearest(key, CHECKPOINTING_KEYS)
            yield f"grpo.gradient_checkpointing_kwargs.{key}: no such key{hint}; there are {list(CHECKPOINTING_KEYS)}"
    if get("sync_ref_model"):
        yield "grpo.sync_ref_model: TRL has no reference model to move beside a LoRA adapter; leave it out"
    if get("save_strategy") == "best" and not (get("metric_for_best_model") and evaluates(get)):
        yield "grpo.save_strategy: best needs metric_for_best_model and eval_strategy; steps needs neither"
    kwargs = get("generation_kwargs")
    for key in kwargs if isinstance(kwargs, Mapping) else ():
        if key in GENERATION_KEYS and kwargs[key] != NEUTRAL.get(key):
            yield f"grpo.generation_kwargs.{key}: {GENERATION_KEYS[key]}"
    if get("remove_unused_columns"):
        yield "grpo.remove_unused_columns: would take answer, task and reasoning_effort from every row; leave it out"
    if get("num_train_epochs") is not None and (get("max_steps") or -1) > 0:
        yield f"grpo.num_train_epochs: grpo.max_steps {get('max_steps')} wins over it; set grpo.max_steps to -1"
    if get("disable_tqdm") is False:
        yield "grpo.disable_tqdm: there is one progress bar, and it shows on a terminal; leave it out"
    if get("bf16") and get("fp16"):
        yield "grpo.bf16: set either this or fp16, not both; model.dtype sets the right one"
    if get("auto_find_batch_size"):
        yield "grpo.auto_find_batch_size: a smaller batch would cut groups; lower per_device_train_batch_size instead"
    for fits, words, keys in RANGES:
        for key in keys:
            value = get(key)
            if isinstance(value, int | float) and not fits(value):
                yield f"grpo.{key}: must {words}, not {value}"
    tries = get("max_resampling_tries")
    if tries is not None and tries < 1:
        yield f"grpo.max_resampling_tries: must be above 0, not {tries}; to resample nothing, zero_std_groups: keep"


def spell_out(layer: Mapping[str, Any]) -> None:
    """Put the words of the enumerations in place of the booleans that YAML 1.1 reads from a bare `no` and that older
    recipes write for scale_rewards."""
    section = grpo_of(layer)
    for key, value in section.items():
        if key == "scale_rewards" and isinstance(value, bool):
            section[key] = "group" if value else "none"
        elif value is False and "no" in enumerations().get(key, ()):
            section[key] = "no"


def with_algorithm(layers: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The layers of the config with the keys of the algorithm that is named last put in just before the layer that
    names it, so that what is written beside it or later wins; and a notice for each key that does."""
    naming = [i for i, layer in enumerate(layers) if "algorithm" in grpo_of(layer)]
    name = grpo_of(layers[naming[-1]])["algorithm"] if naming else None
    if not isinstance(name, str) or name not in ALGORITHMS:
        return list(layers), []
    keys = ALGORITHMS[name]
    written: dict[str, Any] = {}
    for layer in layers[naming[-1] :]:
        written |= {key: value for key, value in grpo_of(layer).items() if key in keys}
    notices = [
        f"grpo.{key}: {value} wins over {keys[key]}, which grpo.algorithm: {name} would set"
        for key, value in ((key, config_fields()[key][1] if value is None else value) for key, value in written.items())
        if value != keys[key]
    ]
    return [*layers[: naming[-1]], {"grpo": dict(keys)}, *layers[naming[-1] :]], notices


def grpo_of(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    section = layer.get("grpo")
    return section if isinstance(section, dict) else {}


def changes(settings: Mapping[str, Any], arguments: Any) -> list[str]:
    """What a GRPOConfig made from `settings` has otherwise, in words: values that were replaced, and defaults that are
    not TRL's. Unsloth's GRPOConfig does both."""

    def plain(value: Any) -> Any:
        return getattr(value, "value", value)  # of an enumeration

    same = {
        "scale_rewards": {"True": "group", "False": "none"},
        "report_to": {"none": []},
    }  # two spellings of one thing
    replaced = [
        f"grpo.{key}: {value!r} was changed to {plain(getattr(arguments, key))!r} by the library"
        for key, value in settings.items()
        if value is not None
        and plain(getattr(arguments, key)) not in (value, [value], same.get(key, {}).get(str(value), value))
    ]
    defaults = [
        f"{key} {plain(getattr(arguments, key))!r} (not {default!r})"
        for key, (_, default) in config_fields().items()
        if key not in settings
        and key != "do_eval"  # follows eval_strategy
        and default is not None
        and (plain(getattr(arguments, key)) or None) != (default or None)
    ]
    return replaced + ([f"defaults that are not TRL's: {', '.join(defaults)}"] if defaults else [])


@functools.cache
def enumerations() -> dict[str, frozenset[str]]:
    """What the installed libraries accept, by key: the members of the enumerations of TrainingArguments, and the texts
    that GRPOTrainer compares a setting with."""
    enums = {
        node.name: frozenset(
            item.value.value
            for item in node.body
            if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
        )
        for package, file in (("transformers", "training_args.py"), ("transformers", "trainer_utils.py"))
        for node in parsed(package, file).body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Enum") for base in node.bases)
    }
    allowed = {
        name: enums[part]
        for name, (annotation, _) in config_fields().items()
        for part in annotation.split(" | ")
        if part in enums
    }
    for node in ast.walk(parsed("trl", "trainer/grpo_trainer.py")):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr in ENUMERATIONS:
            texts = {item.value for item in ast.walk(node.comparators[0]) if isinstance(item, ast.Constant)}
            allowed[node.left.attr] = allowed.get(node.left.attr, frozenset()) | texts
    allowed["log_level"] = allowed["log_level_replica"] = frozenset(LOG_LEVELS)
    allowed["vllm_mode"] = allowed.get("vllm_mode", frozenset()) | {"server", "colocate"}  # only one is compared with
    return allowed


@functools.cache
def config_fields() -> dict[str, tuple[str, Any]]:
    """(annotation, default or None) of each field of the installed GRPOConfig."""
    found: dict[str, tuple[str, Any]] = {}
    for package, file, class_name in (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/grpo_config.py", "GRPOConfig"),
    ):
        for node in parsed(package, file).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                annotated = (item for item in node.body if isinstance(item, ast.AnnAssign))
                found |= {item.target.id: (ast.unparse(item.annotation), default_of(item.value)) for item in annotated}
    return found


def default_of(value: ast.expr | None) -> Any:
    """The default of a dataclass field, where it is a plain value, else None."""
    if isinstance(value, ast.Call):
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


@functools.cache
def parsed(package: str, file: str) -> ast.Module:
    source = Path(importlib.util.find_spec(package).origin).parent / file
    return ast.parse(source.read_text(encoding="utf-8"))


def schema() -> type:
    """GRPOConfig and Options as one dataclass whose every value of GRPOConfig may also be null."""
    simple = {"int": int | None, "float": float | None, "bool": bool | None, "str": str | None}
    plain = {name: annotation.removesuffix(" | None") for name, (annotation, _) in config_fields().items()}
    plain["fsdp"] = "bool | str"  # annotated as text, which transformers calls deprecated: true is what it asks for
    return make_dataclass(
        "Grpo",
        [(name, simple.get(annotation, Any), MISSING) for name, annotation in plain.items()],
        bases=(Options,),
        frozen=True,
    )
