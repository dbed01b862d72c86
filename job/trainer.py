"""GRPOTrainer with what TRL has no key for.

These are: a reasoning effort for each row, completions read by channel, reward weights that follow
the step, and groups without variance skipped or resampled.

It overrides methods of GRPOTrainer that are not public. The pin in requirements.txt holds them, and
the tests fail if they change. model.py must have loaded the model before this file is imported,
because Unsloth replaces GRPOTrainer.
"""

import copy
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from tqdm.auto import tqdm
from trl import GRPOTrainer

from job import grpo_keys, training_state, watchdog
from job.chat import Chat, Reading
from job.episodes.loop import Played, play_batch
from job.grading import Grader
from job.interruption import Interruption, obey_parent_alone
from job.out_of_memory import in_smaller_batches
from job.rollout import Base, BatchRollout, Rollout, TokenIds, decode_all, engine
from job.saving import save_aside
from job.step_time import StepTime
from tasks import note_once

# Rows of each batch whose log-probabilities are computed again, to compare them with the rollout's
CHECKED_ROWS = 2
# With this set to 1, Unsloth takes what the rollout returns for the old log-probabilities.
UNSLOTH_ROLLOUT_AS_OLD = "UNSLOTH_GRPO_ROLLOUT_LOGPROBS_AS_OLD"


def silence_unjudged() -> None:
    """Say in one line what TRL says with every batch in which a completion has no reward, and
    transformers with every metric that has no value therefore."""
    for name in (GRPOTrainer.__module__, "transformers.integrations.integration_utils"):
        logging.getLogger(name).addFilter(is_news)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a warning of the libraries says what we do not say ourselves."""
    text = record.getMessage()
    if "All reward functions returned None" in text:
        note_once("a completion got no reward from any reward function; it is not learned from")
        return False
    return 'attempting to log a value of "None"' not in text


class Sample(NamedTuple):
    """One completion with all that training needs of it."""

    row: dict[str, Any]
    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[int] | None  # 1 for what the model said, 0 for what tools said; None: all is 1
    message: list[dict[str, Any]]
    logprobs: list[float] | None  # of the sampler, where it returns them
    rewards: torch.Tensor  # (reward functions,), NaN where one does not judge
    place: int  # its index in what reward functions logged for this batch


class Trainer(GRPOTrainer):
    """GRPOTrainer as described at the head of this file.

    TRL calls these methods, in this order, for each batch of rows:

        _generate_and_score_completions(rows)   sets `_rows`
            _generate(prompts)                  reads `_rows`: the prompts alone lack the effort
                _tokenize_prompts               renders each row with its own effort
                _generate_single_turn           token ids in, token ids out
                _play                           in place of both, where completions take turns
            _calculate_rewards                  keeps `_rewards`, for the spread of each group

    To resample, `_resample` calls `_generate` and `_calculate_rewards` as often as it needs, and
    puts the samples that the batch is to consist of into `_chosen`. When TRL then calls the two,
    they return what is in `_chosen` and generate and grade nothing.

    Args:
        chat: renders prompts and reads completions.
        grader: its weights follow the step.
        grpo_extra: what becomes of groups whose rewards are all equal.
        rollout: how completions are decoded.
        prompt_tokens: of the longest prompt.
        max_seq_length: tokens of what environments ask the base, with its answer.
        interruption: hears signals, and is told how long steps and checkpoints take.
        Others as in GRPOTrainer.
    """

    def __init__(
        self,
        *args: Any,
        chat: Chat,
        grader: Grader,
        grpo_extra: grpo_keys.Options,
        rollout: engine.Options,
        prompt_tokens: int,
        max_seq_length: int,
        interruption: Interruption,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        silence_unjudged()
        self.interruption = interruption
        self.staging: Path | None = None  # where a checkpoint is being written
        self._between: training_state.Between | None = None  # the state after the last step
        self.chat, self.grader, self.grpo_extra = chat, grader, grpo_extra
        self._rollout_options, self._prompt_tokens = rollout, prompt_tokens
        self._max_seq_length = max_seq_length
        self._is_unsloth = hasattr(self.args, "unsloth_grpo_mini_batch")
        self._rollout: Any = None  # a GraphRollout; None: generate
        self._rollout_is_chosen = False
        # (completion, log-probabilities, mask) of the current batch, where the rollout has them
        self._sampled: list[tuple[TokenIds, Sequence[float], Sequence[int]]] = []
        self._episodes: list[Played] = []  # of the current batch, where completions take turns
        if grader.takes_turns:
            self._refuse_what_takes_no_turns()
            self.rollout_func = self._play
        if rollout.importance_sampling:
            os.environ[UNSLOTH_ROLLOUT_AS_OLD] = "1"
        self._rows: Sequence[dict[str, Any]] = ()  # of the current batch
        self._chosen: list[Sample] | None = None  # after resampling: the whole batch
        # (completions of all processes, reward functions)
        self._rewards: torch.Tensor | None = None
        wait = None
        if self.accelerator.device.type == "cuda":
            wait = torch.cuda.synchronize
        self._step_time = StepTime(wait)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A forward and a backward pass, after generating where a batch is due.

        At the end of an optimizer step it logs where the time went.
        """
        with self._step_time.part("backward"):
            loss = super().training_step(*args, **kwargs)
        if self._step % self.current_gradient_accumulation_steps == 0:
            for name, seconds in self._step_time.take().items():
                self._metrics["train"][f"time/{name}"].append(seconds)
        return loss

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self._step_time.part("scoring"):
            return self._generate_and_score(inputs)

    def _generate_and_score(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        training = self.model.training
        weights = self.grader.weights.at(self.state.global_step)
        self.reward_weights = torch.tensor(list(weights.values()), dtype=torch.float32)
        if training and self.grpo_extra.zero_std_groups == "resample":
            self._chosen = self._resample(inputs)
            inputs = [sample.row for sample in self._chosen]
        self._rows = inputs
        self._log_groups(len(inputs))
        self._score_in_slices(len(inputs))
        try:
            output = super()._generate_and_score_completions(inputs)
        finally:
            self._chosen = None
            self._score_in_slices(None)
        self._compare_with_rollout(output)
        if training:
            # TRL may look at the whole batch instead of each group
            is_flat = self._spread(self._rewards).eq(0).float()
            self._metrics["train"]["frac_reward_zero_std"][-1] = is_flat.mean().item()
            if self.grpo_extra.zero_std_groups == "skip":
                self._skip_zero_std(output)
        return output

    def _score_in_slices(self, rows: int | None) -> None:
        """Let Unsloth score as many sequences at once as it trains on at once.

        Its own choice depends on the free memory. The activations of all sequences would be the
        peak of the whole step, and kernels round otherwise for another number of sequences.

        Args:
            rows: of the batch that is scored next; None: training comes next.
        """
        if not self._is_unsloth:
            return
        slices = 1
        if rows is not None:
            slices = math.ceil(rows / self.args.per_device_train_batch_size)
        self.args.unsloth_grpo_mini_batch = slices  # their number, not their size

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without writing the table of completions.

        TRL has one table and one file name for each step. An evaluation would overwrite the table
        of the training step.
        """
        table, written = copy.deepcopy(self._logs), self.log_completions
        self.log_completions = False
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._logs, self.log_completions = table, written
            self._step_time.take()  # the next training step has no part in this time

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: TRL's card names no base model and shows code that cannot run."""

    # ---- Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint aside, with what transformers leaves out, and give it its name."""
        if not self.weights_are_finite():
            # `auto` would resume from them. Without them it finds an earlier checkpoint.
            if self.is_world_process_zero():
                tqdm.write("no checkpoint is saved: the weights are not finite")
            return
        began = time.monotonic()
        save_aside(self, lambda: super(Trainer, self)._save_checkpoint(model, trial))
        if self.args.push_to_hub:
            step = self.state.global_step
            self._push_from_checkpoint(f"{self.args.output_dir}/checkpoint-{step}")
        self.interruption.saved(time.monotonic() - began)

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers writes a checkpoint."""
        if self.staging is not None:
            return str(self.staging)
        return super()._get_output_dir(trial)

    def _push_from_checkpoint(self, folder: str) -> None:
        if self.staging is None:  # else the folder is about to be renamed
            super()._push_from_checkpoint(folder)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._between = training_state.remember(self)

    def save_last_step(self, within_another: bool) -> None:
        """Save a checkpoint of the last finished step, between saves and also within a step."""
        if within_another:
            training_state.return_to(self, self._between)
        self._save_checkpoint(self.model, trial=None)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            training_state.load_batch(self, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # transformers loads this last. By then it has set all counts to 0.
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            training_state.load_unlogged(self, Path(checkpoint))

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        loader = super()._get_dataloader(*args, **kwargs)
        # accelerate iterates over a loader within its own, and copies its own when a run resumes
        for each in (loader, getattr(loader, "base_dataloader", loader)):
            each.worker_init_fn = leave_signals(each.worker_init_fn)
        return loader

    def weights_are_finite(self) -> bool:
        """Whether all that is trained is free of NaN and infinity, on every process."""
        finite = True
        # One weight at a time, since a model may be spread over several devices
        for weight in self.model.parameters():
            if not weight.requires_grad:
                continue
            if hasattr(weight, "to_local"):  # a shard of FSDP
                weight = weight.to_local()
            if not weight.isfinite().all():
                finite = False
        on_all = self.accelerator.gather(torch.tensor(finite, device=self.accelerator.device))
        return bool(on_all.all())

    # ---- Prompts, completions, rewards

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        """Render each row with its own reasoning effort. TRL has one for all prompts."""
        return [self.chat.row_ids(row) for row in self._rows], None, {}

    def _generate(self, prompts: list) -> tuple:
        """Generate completions, check their prompts, and read them by channel."""
        if self._chosen is not None:
            generated = self._chosen_generation(self._chosen)
            self._keep_sampled(generated)
            return generated
        with self._step_time.part("rollout"):
            generated = super()._generate(prompts)
        self._keep_sampled(generated)
        prompt_ids, completion_ids, mask, _, *others = generated
        texts = [self.chat.render_row(row) for row in self._rows]
        self._check_prompts(texts, prompt_ids)
        episodes, self._episodes = self._episodes, []
        if episodes:
            readings = [episode.reading() for episode in episodes]
            messages = [episode.completion() for episode in episodes]
            self._log_completions([episode.said_ids for episode in episodes], readings)
            self._log_episodes(episodes)
            return prompt_ids, completion_ids, mask, messages, *others
        readings = []
        for ids, text in zip(completion_ids, texts, strict=True):
            readings.append(self.chat.read(ids, text))
        self._log_completions(completion_ids, readings)
        messages = [[reading.message()] for reading in readings]
        return prompt_ids, completion_ids, mask, messages, *others

    @staticmethod
    def _chosen_generation(samples: list[Sample]) -> tuple:
        """What TRL's _generate would have returned for these samples."""
        logprobs = masks = None
        if samples[0].logprobs is not None:
            logprobs = [sample.logprobs for sample in samples]
        if samples[0].mask is not None:
            masks = [sample.mask for sample in samples]
        return (
            [sample.prompt_ids for sample in samples],
            [sample.completion_ids for sample in samples],
            masks,
            [sample.message for sample in samples],
            logprobs,
            {},  # extra fields
            None,  # images
            [[] for _ in samples],  # images of tools
        )

    def _check_prompts(self, texts: list[str], prompt_ids: list) -> None:
        """Stop the run if a library rendered the prompts otherwise."""
        for text, ids in zip(texts, prompt_ids, strict=True):
            if list(ids) != self.chat.ids(text):
                raise RuntimeError(
                    f"the model was not given the prompt of its row, which is\n{text}"
                )

    def _log_completions(self, completion_ids: list, readings: list[Reading]) -> None:
        # Thinking counts as well as the answer: it ends in loops, too, and short answers are
        # often the same.
        said = self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        self._log_metric("completions/distinct", watchdog.distinct_share(said))
        self._log_metric("completions/repetitive", watchdog.repetitive_share(said))
        answers = [reading.content for reading in readings]
        asked = ["\n".join(part["content"] for part in row["prompt"]) for row in self._rows]
        self._log_metric("completions/echo", watchdog.echo_share(answers, asked))
        if self.chat.kind == "plain":
            return
        # TRL's column of completions runs thinking and answer together
        self._log_completion_extra("thinking", [reading.thinking for reading in readings])
        self._log_completion_extra("answer", answers)
        reached = [reading.reached_final for reading in readings]
        thinking = [reading.thinking_tokens for reading in readings]
        final = [reading.final_tokens for reading in readings]
        self._log_metric("completions/reached_final", float(np.mean(reached)))
        self._log_metric("completions/mean_thinking_length", float(np.mean(thinking)))
        self._log_metric("completions/mean_final_length", float(np.mean(final)))

    def _log_episodes(self, episodes: list[Played]) -> None:
        """Log what completions of several turns used, and what was said in them."""
        for name in ("turns", "calls", "failures"):
            counts = [episode.count(name) for episode in episodes]
            self._log_metric(f"episodes/{name}", float(np.mean(counts)))
        tokens = [episode.tool_tokens for episode in episodes]
        self._log_metric("episodes/tool_tokens", float(np.mean(tokens)))
        transcripts = [json.dumps(episode.messages) for episode in episodes]
        self._log_completion_extra("transcript", transcripts)

    # ---- The rollout

    def _refuse_what_takes_no_turns(self) -> None:
        """Raises ValueError where accelerate spreads the model, of which the config knows nothing;
        rules.py refuses the keys of the config."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # All processes would have to decode equally often
            raise ValueError("completions with tools need the whole model on each GPU")

    def _play(self, prompts: list, trainer: Any) -> dict[str, Any]:
        """Completions of several turns, as TRL's rollout_func returns them."""
        self._episodes = self._episodes_of(self._rows, self.grader)
        logprobs = None
        if self._episodes[0].logprobs is not None:
            logprobs = [episode.logprobs for episode in self._episodes]
        return {
            "prompt_ids": [episode.prompt_ids for episode in self._episodes],
            "completion_ids": [episode.completion_ids for episode in self._episodes],
            "env_mask": [episode.mask for episode in self._episodes],
            "logprobs": logprobs,
        }

    def _episodes_of(self, rows: Sequence[dict[str, Any]], grader: Grader) -> list[Played]:
        decode = super()._generate_single_turn
        # No images, and nothing that belongs to images; each prompt counts for itself
        rollout = self._rollout_for(
            [self.chat.row_ids(row) for row in rows],
            lambda waiting: decode(waiting, None, {}, 1)[0],
        )
        step, limit = self.state.global_step, self.max_completion_length
        return play_batch(rollout, rows, self.chat, grader, limit, step, self._base())

    def _base(self) -> Base:
        """The frozen base, which decodes as the policy would with `generate`."""
        decode = super()._generate_single_turn
        model = self.accelerator.unwrap_model(self.model)

        def rollout(max_new_tokens: int) -> Rollout:
            def complete(waiting: list[TokenIds]) -> list[TokenIds]:
                of_policy = self.generation_config
                self.generation_config = copy.deepcopy(of_policy)
                self.generation_config.max_new_tokens = max_new_tokens
                try:
                    return decode(waiting, None, {}, 1)[0]
                finally:
                    self.generation_config = of_policy

            return engine.base_rollout(model, complete)

        return Base(rollout, self._max_seq_length)

    def _generate_single_turn(
        self, prompt_ids: list, *others: Any, **kwargs: Any
    ) -> tuple[list[list[int]], Any]:
        """Decode as job/rollout does.

        vLLM is called as TRL does: it returns log-probabilities as well, and schedules rows itself.
        """
        decode = super()._generate_single_turn
        if self.use_vllm:
            return decode(prompt_ids, *others, **kwargs)
        rollout = self._rollout_for(
            prompt_ids, lambda waiting: decode(waiting, *others, **kwargs)[0]
        )
        rows = decode_all(rollout, prompt_ids)
        completion_ids = [row.completion_ids for row in rows]
        if rows[0].logprobs is None:
            return completion_ids, None
        return completion_ids, [list(row.logprobs) for row in rows]

    def _rollout_for(
        self, prompt_ids: list, complete: Callable[[list[TokenIds]], list[TokenIds]]
    ) -> Rollout:
        """What decodes these prompts.

        Args:
            complete: decodes, where there are no graphs.
        """
        if not self._rollout_is_chosen:
            self._choose_rollout(prompt_ids)
        if self._rollout is None:
            return BatchRollout(lambda waiting: in_smaller_batches(complete, waiting))
        return self._rollout

    def _choose_rollout(self, prompt_ids: list) -> None:
        """Choose at the first call, when the model is where it is trained, and say what."""
        obstacle = None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            obstacle = "the weights are spread over several GPUs"
        elif getattr(self, "use_transformers_continuous_batching", False):
            obstacle = "grpo.use_transformers_continuous_batching asks for another engine"
        autocast = None
        if self.args.bf16:
            autocast = torch.bfloat16
        elif self.args.fp16:
            autocast = torch.float16
        longest = max(self._prompt_tokens, *map(len, prompt_ids))
        request = engine.Request(
            generation_config=self.generation_config,
            stop_ids=self.eos_token_ids,
            pad_id=self.processing_class.pad_token_id,
            rows=self.args.generation_batch_size // self.args.world_size,
            tokens=longest + self.max_completion_length,
            max_new_tokens=self.max_completion_length,
            autocast=autocast,
        )
        model = self.accelerator.unwrap_model(self.model)
        self._rollout, words = engine.choose(model, self._rollout_options, request, obstacle)
        self._rollout_is_chosen = True
        if self.is_world_process_zero():
            tqdm.write(words)

    def _keep_sampled(self, generated: tuple) -> None:
        """Keep what the comparison with the trainer needs."""
        _, completion_ids, masks, _, logprobs, *_ = generated
        self._sampled = []
        if logprobs is not None and not self.use_vllm:
            masks = masks or [[1] * len(ids) for ids in completion_ids]
            self._sampled = list(zip(completion_ids, logprobs, masks, strict=True))

    def _compare_with_rollout(self, output: dict[str, Any]) -> None:
        """Log how far the rollout's log-probabilities are from the trainer's.

        With rollout.importance_sampling they become the old ones of the loss. Its ratio, and the
        clipping of that, then correct for the difference as for any policy that has moved on.
        Unsloth does that by itself; see UNSLOTH_ROLLOUT_AS_OLD.
        """
        if not self._sampled:
            return
        sampled = output.get("sampling_per_token_logps")
        if (
            self._rollout_options.importance_sampling
            and not self._is_unsloth
            and sampled is not None
        ):
            output["old_per_token_logps"] = sampled
        if self._is_unsloth and self.state.global_step == 0:
            return  # compiling for this takes 10 s, which a run of one step need not wait for
        differences = []
        for row, (completion, own, by_model) in enumerate(self._sampled[:CHECKED_ROWS]):
            # Padded as when the reference was scored: compiled kernels know that shape already
            ids = torch.cat([output["prompt_ids"][row], output["completion_ids"][row]])
            said = torch.arange(len(output["completion_ids"][row])) < len(completion)
            mask = torch.cat([output["prompt_mask"][row].cpu(), said.long()]).to(ids.device)
            with torch.no_grad():
                logps = self._get_per_token_logps_and_entropies(
                    self.model, ids[None], mask[None], len(said), batch_size=1
                )[0]
            found = logps[0, : len(completion)].float().cpu()
            apart = (found - torch.tensor(own)).abs()
            differences.append(apart[torch.tensor(by_model).bool()])
        mode = "train" if self.model.training else "eval"
        mean = torch.cat(differences).mean().item()
        self._metrics[mode]["rollout/logp_difference"].append(mean)

    def complete(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Completions of prompts as training samples them, in evaluation mode and in order."""
        was_training = self.model.training
        self.model.eval()
        try:
            # No images, and nothing that belongs to images; each prompt counts for itself
            completion_ids, _ = self._generate_single_turn(prompt_ids, None, {}, 1)
        finally:
            self.model.train(was_training)
        return completion_ids

    def play(self, rows: Sequence[dict[str, Any]], grader: Grader) -> list[Played]:
        """The same for completions of several turns, with their Grades."""
        was_training = self.model.training
        self.model.eval()
        try:
            return self._episodes_of(rows, grader)
        finally:
            self.model.train(was_training)

    def _calculate_rewards(
        self, inputs: list, prompts: list, completions: list, completion_ids: list
    ) -> torch.Tensor:
        if self._chosen is not None:
            self._rewards = gather(torch.stack([sample.rewards for sample in self._chosen]))
            return self._rewards
        with self._step_time.part("grading"):
            self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        self._log_totals(self._own(self._rewards, len(prompts)))
        return self._rewards

    def _log_totals(self, rewards: torch.Tensor) -> None:
        """Add the weighted total and the weights in force to the table of completions.

        Args:
            rewards: (completions of this process, reward functions), NaN where one does not judge.
        """
        weighted = (rewards * self.reward_weights.to(rewards.device)).cpu()
        totals = []
        for own in weighted:
            judged = own[~own.isnan()]
            totals.append(judged.sum().item() if len(judged) else None)
        weights = dict(zip(self.reward_func_names, self.reward_weights.tolist(), strict=True))
        self._log_completion_extra("total", totals)
        self._log_completion_extra("weights", [weights] * len(totals))

    def _log_groups(self, count: int) -> None:
        """Add the number of its group to each of the `count` completions of this process."""
        size = self.num_generations
        if not self.model.training:
            size = self.num_generations_eval
        first = self.accelerator.process_index * count
        self._log_completion_extra("group", [(first + i) // size for i in range(count)])

    # ---- Groups whose rewards are all equal

    def _resample(self, inputs: list[dict[str, Any]]) -> list[Sample]:
        """Dynamic sampling (DAPO, https://arxiv.org/abs/2503.14476, section 3.2), with a bound.

        Groups whose rewards are all equal are replaced by groups of other prompts, in at most
        max_resampling_tries further calls. Groups that still have no variance then are trained on
        as they are. The metrics that rewards log are means over all that was sampled.
        """
        samples = self._sample(inputs)
        useful = self._have_variance(samples)
        sampled, without = len(useful), useful.count(False)
        tries = 0
        while tries < self.grpo_extra.max_resampling_tries:
            # All processes generate as often, and as much, as the one that lacks most, because
            # generating gathers from all of them.
            wanted = max(gather_object([useful.count(False)]))
            if wanted == 0:
                break
            fresh = self._sample(self._draw_rows(wanted, tries))
            fresh_useful = self._have_variance(fresh)
            self._replace_groups(samples, useful, fresh, fresh_useful)
            sampled += len(fresh_useful)
            without += fresh_useful.count(False)
            tries += 1
        self._log_metric("resampling/tries", tries)
        self._log_metric("resampling/frac_reward_zero_std", without / sampled)

        # Of what reward functions logged, keep the values of the chosen samples
        places = [sample.place for sample in samples]
        for column, values in self._pending_extra_logs.items():
            self._pending_extra_logs[column] = [values[place] for place in places]
        return samples

    def _draw_rows(self, groups: int, tries: int) -> list[dict[str, Any]]:
        """Rows of the dataset, drawn at random, each repeated for a whole group."""
        # TRL's count of backward passes starts at 0 again when a run is resumed. Its place within
        # the optimizer step is the same, and so the draw is.
        place = (
            self.args.seed,
            self.state.global_step,
            self._step % self.args.gradient_accumulation_steps,
            self.accelerator.process_index,
            tries,
        )
        drawn = np.random.default_rng(place).integers(len(self.train_dataset), size=groups)
        rows = []
        for i in drawn:
            rows += [self.train_dataset[int(i)]] * self.num_generations
        return rows

    def _replace_groups(
        self,
        samples: list[Sample],
        useful: list[bool],
        fresh: list[Sample],
        fresh_useful: list[bool],
    ) -> None:
        """Put the useful fresh groups in place of groups that are not, until either runs out."""
        size = self.num_generations
        missing = [group for group, is_useful in enumerate(useful) if not is_useful]
        found = [group for group, is_useful in enumerate(fresh_useful) if is_useful]
        for old, new in zip(missing, found, strict=False):
            samples[old * size : (old + 1) * size] = fresh[new * size : (new + 1) * size]
            useful[old] = True

    def _sample(self, rows: list[dict[str, Any]]) -> list[Sample]:
        """Generate a completion for each row, and reward it."""
        self._rows = rows
        lengths = {column: len(values) for column, values in self._pending_extra_logs.items()}
        first = max(lengths.values(), default=0)
        prompts = [row["prompt"] for row in rows]
        prompt_ids, completion_ids, masks, messages, logprobs, *_ = self._generate(prompts)
        rewards = self._calculate_rewards(rows, prompts, messages, completion_ids)
        own_rewards = self._own(rewards, len(rows))
        self._fill_columns(lengths, first, len(rows))
        if not logprobs:
            logprobs = [None] * len(rows)
        if not masks:
            masks = [None] * len(rows)
        places = range(first, first + len(rows))
        fields = (rows, prompt_ids, completion_ids, masks, messages, logprobs, own_rewards)
        return list(map(Sample, *fields, places))

    def _fill_columns(self, lengths: dict[str, int], first: int, count: int) -> None:
        """Make all logged columns equally long, with None where a function logged nothing.

        A function may log a column for some batches only.

        Args:
            lengths: of the columns before this batch was rewarded; a new column has none.
            first: the index of the batch's first completion.
            count: completions of the batch.
        """
        for column, values in self._pending_extra_logs.items():
            before = lengths.get(column, 0)
            values[before:before] = [None] * (first - before)
            values += [None] * (first + count - len(values))

    def _own(self, gathered: torch.Tensor, count: int) -> torch.Tensor:
        """The `count` rows of this process out of those of all."""
        return gathered[self.accelerator.process_index * count :][:count]

    def _have_variance(self, samples: list[Sample]) -> list[bool]:
        """For each group, whether its rewards differ, so that its advantages do."""
        rewards = torch.stack([sample.rewards for sample in samples])
        return self._spread(rewards).gt(0).tolist()

    def _spread(self, rewards: torch.Tensor) -> torch.Tensor:
        """Largest less smallest total of each group.

        Where functions are normalised one by one, it is the widest spread of any function.
        Completions that no function judges do not count.

        Args:
            rewards: (groups x num_generations, reward functions), NaN where a function does not
                judge.

        Returns:
            (groups,)
        """
        weighted = rewards * self.reward_weights.to(rewards.device)
        if self.multi_objective_aggregation == "normalize_then_sum":
            values = weighted
        else:
            unjudged = weighted.isnan().all(dim=1, keepdim=True)
            values = weighted.nansum(dim=1, keepdim=True).masked_fill(unjudged, torch.nan)
        groups = values.view(-1, self.num_generations, values.shape[1])
        unknown = groups.isnan()
        largest = groups.masked_fill(unknown, -torch.inf).amax(1)
        smallest = groups.masked_fill(unknown, torch.inf).amin(1)
        widest = (largest - smallest).amax(1)
        return widest.masked_fill(widest < 1e-6, 0)

    def _skip_zero_std(self, output: dict[str, Any]) -> None:
        """Mask the tokens of groups without variance.

        Their advantage is 0. But they would still pull by the KL term, and count in the normaliser
        of the losses that divide by tokens. This uses TRL's mask of what a tool said.
        """
        spread = self._spread(self._rewards).repeat_interleave(self.num_generations)
        is_kept = self._own(spread, len(output["advantages"])) > 0
        mask = output["completion_mask"]
        mask = mask * is_kept.to(mask.device).unsqueeze(1)
        output["tool_mask"] = mask * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather(output["tool_mask"].sum()).sum()


def leave_signals(start: Callable[[int], None] | None) -> Callable[[int], None]:
    """What a worker of the data loader does first: `start`, and leave signals to the trainer."""

    def start_worker(number: int) -> None:
        if start is not None:
            start(number)
        obey_parent_alone()

    return start_worker
