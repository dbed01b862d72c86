"""GRPOTrainer with what TRL has no key for: a reasoning effort for each row, completions read by channel, reward
weights that follow the step, and groups without variance skipped or resampled.

It hooks into methods of GRPOTrainer that are not public: the pin in requirements.txt holds them, and the tests fail if
they change. model.py must have loaded the model before this file is imported, because Unsloth replaces GRPOTrainer.
"""

import copy
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather, gather_object, send_to_device
from tqdm.auto import tqdm
from trl import GRPOTrainer

from job import grpo_keys, watchdog
from job.chat import Chat
from job.grading import Grader
from job.rollout import BatchRollout, generate

# To accelerate each of several processes on CPUs is on "cpu:0", where torch.load would not put what a run resumes from.
torch.serialization.register_package(
    priority=100,
    tagger=lambda storage: None,
    deserializer=lambda storage, place: storage if place == "cpu:0" else None,
)


class Sample(NamedTuple):
    """One completion with all that training needs of it."""

    row: dict[str, Any]
    prompt_ids: list[int]
    completion_ids: list[int]
    message: list[dict[str, Any]]
    logprobs: list[float] | None  # of the sampler, where it tells them
    rewards: torch.Tensor  # (reward functions,), NaN where one does not judge
    place: int  # in what reward functions logged for this batch


class Trainer(GRPOTrainer):
    """
    Args:
        chat: renders prompts and reads completions.
        grader: its weights follow the step.
        grpo_extra: what becomes of groups whose rewards are all equal.
        Others as in GRPOTrainer.
    """

    def __init__(
        self, *args: Any, chat: Chat, grader: Grader, grpo_extra: grpo_keys.Options, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.chat, self.grader, self.grpo_extra = chat, grader, grpo_extra
        self._rows: Sequence[dict[str, Any]] = ()  # of the batch in hand
        self._chosen: list[Sample] | None = None  # after resampling: what the batch consists of
        self._rewards: torch.Tensor | None = (
            None  # (completions of all processes, reward functions)
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        training = self.model.training
        weights = self.grader.weights.at(self.state.global_step)
        self.reward_weights = torch.tensor(list(weights.values()), dtype=torch.float32)
        if training and self.grpo_extra.zero_std_groups == "resample":
            self._chosen = self._resample(inputs)
            inputs = [sample.row for sample in self._chosen]
        self._rows = inputs
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._chosen = None
        if training:
            flat = self._spread(self._rewards).eq(0).float()
            self._metrics["train"]["frac_reward_zero_std"][-1] = (
                flat.mean().item()
            )  # TRL may look at the whole batch
            if self.grpo_extra.zero_std_groups == "skip":
                self._skip_zero_std(output)
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL has one table of completions and one file name a step: evaluation would overwrite the step's own."""
        table, written = copy.deepcopy(self._logs), self.log_completions
        self.log_completions = False
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._logs, self.log_completions = table, written

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """TRL counts backward passes from 0 again in a resumed run, and forgets what it generated. In the midst of a
        generated batch (num_iterations above 1, or steps_per_generation above gradient_accumulation_steps) all that
        follows would differ, so both are kept beside the weights, by each process for itself."""
        if (
            not self.weights_are_finite()
        ):  # `auto` would resume from them; so it finds the checkpoint of before
            if self.is_world_process_zero():
                tqdm.write("no checkpoint is saved: the weights are not finite")
            return
        between_steps = (
            self._step % self.args.gradient_accumulation_steps == 0
        )  # not so where a failure is saved
        if between_steps and self._step % (self.args.steps_per_generation * self.num_iterations):
            file = Path(
                self.args.output_dir, f"checkpoint-{self.state.global_step}", self._rollout_file
            )
            file.parent.mkdir(exist_ok=True)
            torch.save(
                {"shape": self._batch_shape, "step": self._step, "inputs": self._buffered_inputs},
                file,
            )
        super()._save_checkpoint(
            model, trial
        )  # writes trainer_state.json, which makes the checkpoint a whole one

    def weights_are_finite(self) -> bool:
        """Whether all that is trained is free of NaN and infinity, on every process."""
        trained = (weight for weight in self.model.parameters() if weight.requires_grad)
        shards = (
            weight.to_local() if hasattr(weight, "to_local") else weight for weight in trained
        )  # of FSDP
        # One by one, since a model may be spread over several devices
        finite = all(bool(shard.isfinite().all()) for shard in shards)
        return bool(
            self.accelerator.gather(torch.tensor(finite, device=self.accelerator.device)).all()
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint, self._rollout_file)).is_file():
            kept = torch.load(file, map_location="cpu", weights_only=True)
            if (
                kept["shape"] == self._batch_shape
            ):  # otherwise the run begins with a batch of its own shape
                self._step = kept["step"]
                self._buffered_inputs = send_to_device(kept["inputs"], self.accelerator.device)

    @property
    def _batch_shape(self) -> list[int]:
        """What must be the same for a generated batch to be taken up where it was left."""
        keys = (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "steps_per_generation",
            "world_size",
        )
        return [
            self.num_generations,
            self.num_iterations,
            *(getattr(self.args, key) for key in keys),
        ]

    @property
    def _rollout_file(self) -> str:
        return f"rollout_{self.accelerator.process_index}.pt"

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's names no base model and shows code that cannot run; none is written."""

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        """TRL renders all prompts with the same template variables; here each row has its own reasoning effort."""
        return [self.chat.prompt_ids(*rendered_from(row)) for row in self._rows], None, {}

    def _generate(self, prompts: list) -> tuple:
        if self._chosen is not None:
            rows, prompt_ids, completion_ids, messages, logprobs, _, _ = map(
                list, zip(*self._chosen, strict=True)
            )
            given = None if logprobs[0] is None else logprobs
            return prompt_ids, completion_ids, None, messages, given, {}, None, [[] for _ in rows]
        prompt_ids, completion_ids, mask, _, *others = super()._generate(prompts)
        texts = [self.chat.render(*rendered_from(row)) for row in self._rows]
        for text, ids in zip(texts, prompt_ids, strict=True):
            if list(ids) != self.chat.ids(text):
                raise RuntimeError(
                    f"the model was not given the prompt of its row, which is\n{text}"
                )
        readings = [
            self.chat.read(ids, text) for ids, text in zip(completion_ids, texts, strict=True)
        ]
        # All that was said, not the answer alone: thinking ends in loops as well, and short answers are often the same.
        said = self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        self._log_metric("completions/distinct", watchdog.distinct_share(said))
        self._log_metric("completions/repetitive", watchdog.repetitive_share(said))
        if (
            self.chat.kind != "plain"
        ):  # TRL's column of completions runs thinking and answer together
            self._log_completion_extra("thinking", [reading.thinking for reading in readings])
            self._log_completion_extra("answer", [reading.content for reading in readings])
            self._log_metric(
                "completions/reached_final", mean(reading.reached_final for reading in readings)
            )
            self._log_metric(
                "completions/mean_thinking_length",
                mean(reading.thinking_tokens for reading in readings),
            )
            self._log_metric(
                "completions/mean_final_length", mean(reading.final_tokens for reading in readings)
            )
        return (
            prompt_ids,
            completion_ids,
            mask,
            [[reading.message()] for reading in readings],
            *others,
        )

    def _generate_single_turn(
        self, prompt_ids: list, *others: Any, **kwargs: Any
    ) -> tuple[list[list[int]], Any]:
        """TRL's decoding, as a rollout: see job/rollout.py. vLLM tells log-probabilities as well, and schedules rows
        by itself."""
        decode = super()._generate_single_turn
        if self.use_vllm:
            return decode(prompt_ids, *others, **kwargs)
        rollout = BatchRollout(lambda waiting: decode(waiting, *others, **kwargs)[0])
        return generate(rollout, prompt_ids), None

    def _calculate_rewards(
        self, inputs: list, prompts: list, completions: list, completion_ids: list
    ) -> torch.Tensor:
        if self._chosen is not None:
            self._rewards = gather(torch.stack([sample.rewards for sample in self._chosen]))
        else:
            self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        return self._rewards

    def _resample(self, inputs: list[dict[str, Any]]) -> list[Sample]:
        """Dynamic sampling (DAPO, https://arxiv.org/abs/2503.14476, section 3.2), with a bound: groups whose rewards
        are all equal give way to groups of other prompts, drawn anew up to max_resampling_tries times. What still has
        no variance then is trained on as it is. The metrics that rewards log are means over all that was sampled."""
        size = self.num_generations
        samples = self._sample(inputs)
        useful = self._have_variance(samples)
        sampled, without = len(useful), useful.count(False)
        tries = 0
        for tries in range(self.grpo_extra.max_resampling_tries + 1):  # noqa: B007 - read after the loop
            missing = [group for group, good in enumerate(useful) if not good]
            # All processes generate as often, and as much, as the one that lacks most: their calls gather.
            wanted = max(gather_object([len(missing)]))
            if not wanted or tries == self.grpo_extra.max_resampling_tries:
                break
            # TRL's own count of backward passes starts at 0 again when a run is resumed; its place in the step is kept.
            micro = self._step % self.args.gradient_accumulation_steps
            place = (
                self.args.seed,
                self.state.global_step,
                micro,
                self.accelerator.process_index,
                tries,
            )
            drawn = np.random.default_rng(place).integers(len(self.train_dataset), size=wanted)
            fresh = self._sample(
                [row for i in drawn for row in [self.train_dataset[int(i)]] * size]
            )
            good = self._have_variance(fresh)
            sampled, without = sampled + len(good), without + good.count(False)
            for group, new in zip(
                missing, (group for group, is_good in enumerate(good) if is_good), strict=False
            ):
                samples[group * size : (group + 1) * size] = fresh[new * size : (new + 1) * size]
                useful[group] = True
        self._log_metric("resampling/tries", tries)
        self._log_metric("resampling/frac_reward_zero_std", without / sampled)
        places = [sample.place for sample in samples]
        for column, values in self._pending_extra_logs.items():
            self._pending_extra_logs[column] = [values[place] for place in places]
        return samples

    def _sample(self, rows: list[dict[str, Any]]) -> list[Sample]:
        """Generate a completion for each row, and reward it."""
        self._rows = rows
        first = max(map(len, self._pending_extra_logs.values()), default=0)
        logged = {column: len(values) for column, values in self._pending_extra_logs.items()}
        prompts = [row["prompt"] for row in rows]
        prompt_ids, completion_ids, _, messages, logprobs, *_ = self._generate(prompts)
        rewards = self._calculate_rewards(rows, prompts, messages, completion_ids)
        own = self._own(rewards, len(rows))
        for (
            column,
            values,
        ) in self._pending_extra_logs.items():  # a function may log a column now and then
            before = logged.get(column, 0)
            values[before:before] = [None] * (first - before)
            values += [None] * (first + len(rows) - len(values))
        places = range(first, first + len(rows))
        return list(
            map(
                Sample,
                rows,
                prompt_ids,
                completion_ids,
                messages,
                logprobs or repeat(None),
                own,
                places,
            )
        )

    def _own(self, gathered: torch.Tensor, count: int) -> torch.Tensor:
        """The `count` rows of this process out of those of all."""
        return gathered[self.accelerator.process_index * count :][:count]

    def _have_variance(self, samples: list[Sample]) -> list[bool]:
        """For each group, whether its rewards differ, so that its advantages do."""
        rewards = torch.stack([sample.rewards for sample in samples])
        return self._spread(rewards).gt(0).tolist()

    def _spread(self, rewards: torch.Tensor) -> torch.Tensor:
        """(groups,) from (groups x num_generations, reward functions): largest less smallest total of each group; where
        functions are normalised one by one, the widest of theirs. Completions that no function judges do not count."""
        weighted = rewards * self.reward_weights.to(rewards.device)
        totals = weighted.nansum(dim=1, keepdim=True).masked_fill(
            weighted.isnan().all(dim=1, keepdim=True), torch.nan
        )
        values = weighted if self.multi_objective_aggregation == "normalize_then_sum" else totals
        groups = values.view(-1, self.num_generations, values.shape[1])
        known = ~groups.isnan()
        spread = groups.masked_fill(~known, -torch.inf).amax(1) - groups.masked_fill(
            ~known, torch.inf
        ).amin(1)
        widest = spread.amax(1)
        return widest.masked_fill(widest < 1e-6, 0)

    def _skip_zero_std(self, output: dict[str, Any]) -> None:
        """Mask the tokens of groups without variance: their advantage is 0, but they would still pull by the KL term,
        and count in the normaliser of the losses that divide by tokens. Uses TRL's mask of what a tool said."""
        spread = self._spread(self._rewards).repeat_interleave(self.num_generations)
        own = self._own(spread, len(output["advantages"])) > 0
        mask = output["completion_mask"] * own.to(output["completion_mask"].device).unsqueeze(1)
        output["tool_mask"] = mask * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather(output["tool_mask"].sum()).sum()


def rendered_from(row: dict[str, Any]) -> tuple[list[dict[str, str]], str | None]:
    return row["prompt"], row.get("reasoning_effort")


def mean(values: Any) -> float:
    return float(np.mean(list(values)))
