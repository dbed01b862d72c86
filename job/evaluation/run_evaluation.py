"""Evaluation inside a run, on the rows that its tasks hold out: when, how much, and what came out.

The cost is bounded beforehand, in completions: an evaluation decodes its completions in the same
batches as training, and training also learns from its own. So the share of completions is more than
the share of time. It is the same in a resumed run, which a bound in seconds would not be.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from job.chat import Chat
from job.config import Config, EvaluateOptions, note
from job.distributed import PATIENCE_S, agreed, gathered, is_first_process, rank, world_size
from job.errors import ConfigError
from job.evaluation import evaluation
from job.evaluation.evaluation import Comparison, EvaluationFolder, Problem, Sampler
from job.grading_pool import GradingPool
from job.metrics_file import is_evaluation, read_metrics
from job.plan import Plan
from job.rows import Row, has_fresh_inputs
from job.run_folder import RunFolder


@dataclass(frozen=True)
class EvaluationPlan:
    """Which rows a run evaluates, and when."""

    rows: tuple[Row, ...]
    held_out: tuple[Row, ...]  # all rows that `rows` are chosen from
    has_fresh_inputs: bool  # see rows.has_fresh_inputs
    is_cut: bool  # fewer rows than were asked for, because of evaluate.share
    completions: int  # of each row
    before: bool
    after: bool
    every: int | None  # steps
    times: int  # evaluations in the whole run
    trained_on: int  # completions that the run trains on

    @property
    def share(self) -> float:
        """Of all completions that the run decodes."""
        decoded = self.times * len(self.rows) * self.completions
        return decoded / (decoded + self.trained_on)

    def line(self) -> str:
        """The plan in words."""
        when = []
        if self.before:
            when.append("before")
        if self.every:
            when.append(f"every {self.every} steps")
        if self.after:
            when.append("after")
        decoded = self.times * len(self.rows) * self.completions
        cut = ""
        if self.is_cut:
            cut = " (evaluate.share allows no more)"
        return (
            f"evaluation {', '.join(when)}: {len(self.rows)} of {len(self.held_out)} held-out rows"
            f"{cut}, {self.completions} completions each; {decoded:,} completions in all, "
            f"{self.share:.0%} of those that the run decodes"
        )


def plan_evaluation(config: Config, plan: Plan) -> tuple[EvaluationPlan | None, str]:
    """What a run evaluates, and that in words.

    Fewer rows are taken where more would exceed `evaluate.share`. The plan is None if nothing is
    evaluated.
    """
    wanted = config.evaluate
    if not plan.eval_rows:
        return None, "evaluation: none, because no row is held out (task.num_eval_rows)"
    steps, trained_on = plan.extent(config)
    times = len(evaluated_steps(wanted, steps))
    if times == 0:
        return None, "evaluation: none, as evaluate.before, after and every say"

    most = wanted.share / (1 - wanted.share) * trained_on / (times * wanted.completions)
    asked_for = min(wanted.rows or len(plan.eval_rows), len(plan.eval_rows))
    rows = min(int(most), asked_for)
    if rows < 1:
        return None, (
            f"evaluation: none, because {times} x {wanted.completions} completions of one row are "
            f"more than evaluate.share ({wanted.share:.0%}) of what the run decodes"
        )
    chosen = evaluation.spread(plan.eval_rows, rows)
    found = EvaluationPlan(
        rows=tuple(chosen),
        held_out=tuple(plan.eval_rows),
        has_fresh_inputs=has_fresh_inputs(plan.rows + plan.eval_rows, config.tasks[0]),
        is_cut=rows < asked_for,
        completions=wanted.completions,
        before=wanted.before,
        after=wanted.after,
        every=wanted.every,
        times=times,
        trained_on=trained_on,
    )
    return found, found.line()


def evaluated_steps(wanted: EvaluateOptions, steps: int) -> set[int]:
    """After how many steps a run of `steps` steps evaluates."""
    due = set()
    if wanted.before:
        due.add(0)
    if wanted.every:
        due |= set(range(wanted.every, steps + 1, wanted.every))
    if wanted.after:
        due.add(steps)
    return due


class RunEvaluation:
    """The evaluations of one run.

    Args:
        sampler: its `complete` uses the weights as they are when it is called.
        log: is given the metrics of each evaluation.
    """

    def __init__(
        self,
        plan: EvaluationPlan,
        config: Config,
        folder: RunFolder,
        chat: Chat,
        sandbox: GradingPool,
        sampler: Sampler,
        log: Callable[[dict[str, float]], None],
    ):
        self.plan, self.folder, self.chat, self.log = plan, folder, chat, log
        self.sampler = sampler
        self.grader = evaluation.make_grader(config.tasks, sandbox)
        self.grader.reward_timeout_s = config.train.reward_timeout_s
        self.problems = evaluation.make_problems(plan.rows, chat, plan.has_fresh_inputs)
        self.temperature = config.grpo.get("temperature", 1.0)
        self.spent_s = 0.0  # by this process, on all evaluations

    def is_due(self, step: int) -> bool:
        """Whether the plan has an evaluation of the weights after `step` steps."""
        if step == 0:
            return self.plan.before
        return self.plan.every is not None and step % self.plan.every == 0

    def is_due_at_end(self, step: int) -> bool:
        return self.plan.after or self.is_due(step)

    def resume(self, step: int, earlier: Path | None) -> None:
        """Keep the evaluations up to `step`, and drop later ones, whose weights are gone. The later
        ones have the problems of the first one, so that they can be compared.

        Args:
            earlier: the folder of the run that is continued, where it is not this one.
        """
        ids = []
        if is_first_process():
            self._take_over(step, earlier)
            ids = self._first_problems()
        self._keep_problems(agreed(ids, world_size()))

    def _take_over(self, step: int, earlier: Path | None) -> None:
        """The folders of `resume`."""
        with self.folder.saving():
            if earlier and earlier != self.folder.path:
                for path in earlier.glob("evaluation/step-*"):
                    if not self.folder.evaluation(step_of(path)).exists():
                        shutil.copytree(path, self.folder.evaluation(step_of(path)))
            for path in self.folder.path.glob("evaluation/step-*"):
                if step_of(path) > step:
                    shutil.rmtree(path)
            self._write_results()

    def _first_problems(self) -> list[str]:
        """The ids of the problems of the first evaluation; empty if there is none."""
        results = self.results()
        if not results:
            return []
        try:
            records = evaluation.read_completions(self.folder.evaluation(results[0]["step"]))
        except ConfigError as error:
            note(f"evaluation: {error}")
            return []
        return list(dict.fromkeys(record["problem"] for record in records))

    def _keep_problems(self, ids: Sequence[str]) -> None:
        """Evaluate as many rows as before, where that makes them the same."""
        if not ids or set(ids) == {problem.id for problem in self.problems}:
            return
        rows = evaluation.spread(self.plan.held_out, len(ids))
        problems = evaluation.make_problems(rows, self.chat, self.plan.has_fresh_inputs)
        if set(ids) != {problem.id for problem in problems}:
            note(
                "evaluation: other rows are held out than in the first evaluation of this run; "
                "only problems of both are compared"
            )
            return
        print(f"evaluation: {len(ids)} held-out rows, those of the first evaluation of this run")
        self.problems = problems

    def evaluate(self, step: int, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Evaluate the weights of this step, unless that has been done."""
        folder = EvaluationFolder(self.folder.evaluation(step), writes=is_first_process())
        result = folder.finished()
        finished = ["finished"] if result else []
        if agreed(finished, world_size()):
            if is_first_process() and not self._is_logged(step):  # the run was killed in between
                self.log(metrics_of(result))
            return
        settings = {
            "step": step,
            "completions": self.plan.completions,
            "temperature": self.temperature,
            "max_tokens": self.sampler.max_tokens,
            "problems": evaluation.digest(self.problems),
            "processes": world_size(),
        }
        try:
            folder.begin(settings)
        except ConfigError:  # what was stopped there had other settings
            shutil.rmtree(folder.path)
            folder.begin(settings)
        if world_size() > 1:
            folder.records = []  # all processes must decode as often
        began = time.monotonic()
        total = len(self.problems) * self.plan.completions
        limit_s = self.grader.longest_batch_s(total) + PATIENCE_S
        disable = None if is_first_process() else True  # None: shown on a terminal only
        with tqdm(total=total, desc=f"evaluation at step {step}", disable=disable) as bar:
            result = evaluation.evaluate(
                own_share(self.problems),
                self.plan.completions,
                self.sampler,
                self.chat,
                self.grader,
                folder,
                progress=bar.update,
                is_stopped=is_stopped,
                gather=lambda records: distinct(gathered(records, limit_s)),
            )
        self.spent_s += time.monotonic() - began
        if result is None or not is_first_process():
            return
        tqdm.write(line_of(step, result))
        with self.folder.saving():
            self._write_results()
        self.log(metrics_of(result))

    def _is_logged(self, step: int) -> bool:
        """Whether metrics.jsonl has the line of the evaluation of this step."""
        entries = read_metrics(self.folder.metrics)
        return any(entry["step"] == step and is_evaluation(entry) for entry in entries)

    def results(self) -> list[dict[str, Any]]:
        """What each finished evaluation found, by rising step."""
        found = []
        for path in sorted(self.folder.path.glob("evaluation/step-*"), key=step_of):
            result = EvaluationFolder(path).finished()
            if result and step_of(path) >= 0:
                found.append({"step": step_of(path)} | result)
        return found

    def comparison(self) -> Comparison | None:
        """The last evaluation against the one before the first step.

        None if there are not both, or if they cannot be compared: a resumed run may evaluate other
        rows than before.
        """
        steps = [result["step"] for result in self.results()]
        if len(steps) < 2 or steps[0] != 0:
            return None
        try:
            first = evaluation.read_completions(self.folder.evaluation(steps[0]))
            last = evaluation.read_completions(self.folder.evaluation(steps[-1]))
            return evaluation.compare(first, last)
        except ConfigError as error:
            note(f"before and after: {error}")
            return None

    def _write_results(self) -> None:
        """Write evaluation.json of the run."""
        results = self.results()
        if not results:
            return
        content: dict[str, Any] = {"evaluations": results}
        compared = self.comparison()
        if compared:
            content["comparison"] = compared.as_json()
        evaluation.write_json(content, self.folder.evaluations)

    def report(self) -> str:
        """The table of the last evaluation, and of the first one that has the same problems."""
        results = self.results()
        if not results:
            return ""
        last = results[-1]
        ends = [next(result for result in results if have_same_problems(result, last))]
        if ends[0] is not last:
            ends.append(last)
        titles = [f"step {result['step']}" for result in ends]
        lines = [f"held out: {ends[0]['problems']} problems", evaluation.table(titles, ends)]
        unjudged = evaluation.unjudged_in_words(ends[-1])
        if unjudged:
            lines.append(unjudged)
        return "\n".join(lines)


def have_same_problems(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two results are about the same problems."""
    return first["settings"].get("problems") == second["settings"].get("problems")


def step_of(folder: Path) -> int:
    """The step of evaluation/step-N; -1 for another name."""
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def own_share(problems: Sequence[Problem]) -> list[Problem]:
    """The problems of this process. Each process gets as many, so a few may be done twice."""
    count = world_size()
    each = -(-len(problems) // count)
    return [problems[(rank() * each + i) % len(problems)] for i in range(each)]


def distinct(records: Sequence[evaluation.Record]) -> list[evaluation.Record]:
    """The records without those of problems that two processes did."""
    found: dict[tuple[str, int], evaluation.Record] = {}
    for record in records:
        found.setdefault((record["problem"], record["number"]), record)
    return list(found.values())


def line_of(step: int, result: dict[str, Any]) -> str:
    """An evaluation in one line."""
    correct = evaluation.cell(result["pass_at"]["1"], evaluation.percent)
    return (
        f"evaluation at step {step}: correct {correct}, "
        f"cheating {evaluation.percent(result['cheating']['value'])}, "
        f"reward {evaluation.decimal(result['reward']['value'])}, {result['problems']} problems, "
        f"{result['time']['decoding_s'] + result['time']['grading_s']:.0f} s"
    )


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """What metrics.jsonl and the trackers get, under the names of training after `eval_`."""
    metrics = {
        "eval_reward": result["reward"]["value"],
        "eval_grades/correct": result["correct"]["value"],
        "eval_grades/cheating": result["cheating"]["value"],
        "eval_completions/mean_length": result["tokens"]["mean"],
        "eval_completions/clipped_ratio": result["cut_off"]["value"],
    }
    for name, estimate in result["rewards"].items():
        metrics[f"eval_rewards/{name}/mean"] = estimate["value"]
    for k, estimate in result["pass_at"].items():
        metrics[f"eval_pass@{k}"] = estimate["value"]
    # What nobody could judge is left out: trackers take numbers only
    known = {name: value for name, value in metrics.items() if value is not None}
    return {"eval_reward": math.nan} | known
