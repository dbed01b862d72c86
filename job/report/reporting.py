"""Writes report.html and report.md: what one or several runs have done, in one file each.

report.html needs no network and no other file. The model wrote the completions that it shows, and a
model may write HTML. So the page has three guards: the completions are JSON without "<", the script
puts them on the page as text only, and the page's Content-Security-Policy runs no other script.
"""

import base64
import contextlib
import hashlib
import html
import os
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from job.errors import OutputError, one_line
from job.metrics_file import nothing_learned, two_ends
from job.report.report_completions import (
    MAX_COMPLETIONS,
    MAX_JSON_BYTES,
    read_groups,
    safe_json,
    with_prompts_once,
    within_bytes,
)
from job.report.report_pictures import Curve, Picture, draw_curves, draw_parts
from job.report.run_record import RunRecord, curve_of, mean_parts, read_run
from job.step_time import PARTS

PAGE = Path(__file__).parent / "report_page"
NAMES = ("report.html", "report.md")
COMPARED_STEPS = 10  # logged steps at each end whose means the summary shows
NOTHING = "-"

# metric -> title of its picture, after those at the top and the rewards
CURVES = {
    "kl": "KL divergence from the starting model",
    "completions/mean_length": "mean length of completions, tokens",
    "completions/mean_thinking_length": "mean length of the thinking, tokens",
    "completions/mean_final_length": "mean length of the answer, tokens",
    "completions/clipped_ratio": "share of completions cut off",
    "entropy": "entropy of the next token",
    "frac_reward_zero_std": "share of groups without variance",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}


@dataclass
class Table:
    """A table of a report.

    Attributes:
        marked: rows that differ from run to run.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    marked: list[list[str]] = field(default_factory=list)


@dataclass
class Report:
    """All that is shown, as words, tables and pictures."""

    title: str
    sentences: list[str]
    summary: Table
    tables: list[Table]
    config: Table
    words: list[dict[str, str]]  # of the watchdog: where, name, paragraph
    top: list[Picture]
    more: list[Picture]
    completions: dict[str, Any]
    completions_note: str
    problems: list[str]
    footer: str = ""


def write_report(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write report.html and report.md about these runs to a folder. Returns their paths.

    Each is written to a file beside it and renamed, so that nobody ever reads half a report.

    Args:
        paths: output folders of runs. Several are compared side by side.

    Raises:
        ConfigError: if one is no output folder of a run.
        OutputError: if the report cannot be written.
    """
    began = time.perf_counter()
    report = make_report([read_run(path) for path in paths])
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    report.footer = f"written {written}, in {time.perf_counter() - began:.1f} s"
    files = []
    for name, text in zip(NAMES, (html_of(report), markdown_of(report)), strict=True):
        replace_file(folder / name, text)
        files.append(folder / name)
    return files


def replace_file(path: Path, text: str) -> None:
    """Write a text file in one go.

    Raises:
        OutputError: if that fails. Nothing is left behind then.
    """
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        unfinished = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", errors="replace"))
        unfinished.chmod(0o644)  # a temporary file is for its owner alone
        unfinished.replace(path)
    except OSError as error:
        if unfinished is not None:
            with contextlib.suppress(OSError):
                unfinished.unlink()
        raise OutputError(f"cannot write {path}: {one_line(error)}") from error


# ---- What the report says


def make_report(runs: list[RunRecord]) -> Report:
    name_apart(runs)
    groups, logged = read_completions(runs)
    shown = sum(len(group["completions"]) for group in groups)
    note = f"{shown} completions, of the last batch before each logged step."
    if shown < logged:
        note = (
            f"{shown} of about {logged} logged completions: whole groups, spread evenly over the "
            "run. The others are in completions/*.parquet."
        )
    title = f"Training run {runs[0].name}"
    if len(runs) > 1:
        title = f"{len(runs)} training runs side by side"
    tables = [*evaluation_tables(runs), first_and_last(runs), times_table(runs), machine(runs)]
    return Report(
        title=title,
        sentences=sentences(runs),
        summary=summary(runs),
        tables=[table for table in tables if table.rows],
        config=config_table(runs),
        words=watchdog_words(runs),
        top=top_pictures(runs),
        more=more_pictures(runs),
        completions={"runs": [run.name for run in runs]} | with_prompts_once(groups),
        completions_note=note,
        problems=[f"{run.name}: {problem}" for run in runs for problem in run.problems],
    )


def name_apart(runs: list[RunRecord]) -> None:
    """Call runs by their paths if two folders have the same name."""
    names = {run.name for run in runs}
    if len(names) < len(runs):
        for run in runs:
            run.name = str(run.path)


def read_completions(runs: list[RunRecord]) -> tuple[list[dict[str, Any]], int]:
    """The groups of all runs that are shown, and how many completions were logged."""
    groups, logged = [], 0
    for place, run in enumerate(runs):
        own, count = read_groups(run, place, MAX_COMPLETIONS // len(runs))
        groups += within_bytes(own, MAX_JSON_BYTES // len(runs))
        logged += count
    return groups, logged


def sentences(runs: list[RunRecord]) -> list[str]:
    """For each run, what its evaluation says, and whether it has learned nothing."""
    found = []
    for run in runs:
        for sentence in filter(None, (sentence_of(run), nothing_learned(run.steps))):
            found.append(f"{run.name}: {sentence}" if len(runs) > 1 else sentence)
    return found


def sentence_of(run: RunRecord) -> str:
    """The before/after sentence of evaluation.json, or why there is none."""
    comparison = run.evaluation.get("comparison")
    if isinstance(comparison, dict) and isinstance(comparison.get("sentence"), str):
        return f"before and after: {comparison['sentence']}"
    if run.evaluation.get("evaluations"):
        return "evaluated, but not both before and after"
    return "not evaluated"


def summary(runs: list[RunRecord]) -> Table:
    """What was trained, how far, and where it went."""
    described = [described_run(run) for run in runs]
    rows = [[key, *(own[key] for own in described)] for key in described[0]]
    return Table("Summary", header(runs), rows)


def described_run(run: RunRecord) -> dict[str, str]:
    planned = run.config.get("grpo.max_steps")
    steps = str(run.last_step)
    if isinstance(planned, int) and planned > 0:
        steps = f"{run.last_step} of {planned}"
    return {
        "state": run.state,
        "model": model_of(run),
        "task": task_of(run),
        "algorithm": algorithm_of(run),
        "steps": steps,
        "reward": change(run, "reward", ".2f"),
        "correct": change(run, "grades/correct", ".0%"),
        "cheating": change(run, "grades/cheating", ".0%"),
        "watchdog": ", ".join(dict.fromkeys(name for _, name, _ in run.diagnoses)) or "calm",
    }


def model_of(run: RunRecord) -> str:
    """The base, and the adapter that training began with if there was one."""
    model = shown_value(run.config.get("model.name"))
    adapter = run.config.get("model.adapter")
    if adapter is not None:
        model = f"{model}, continued from {shown_value(adapter)}"
    return model


def task_of(run: RunRecord) -> str:
    """The task's type, or the types of several."""
    several = run.config.get("task")
    if isinstance(several, list):
        types = [str(task.get("type")) for task in several if isinstance(task, dict)]
        return ", ".join(types)
    return shown_value(run.config.get("task.type"))


def algorithm_of(run: RunRecord) -> str:
    """The named algorithm, with what counts of its keys."""
    named = run.config.get("grpo.algorithm") or "grpo"
    keys = []
    for key in ("loss_type", "beta", "learning_rate", "num_generations"):
        value = run.config.get(f"grpo.{key}")
        if value is not None:
            keys.append(f"{key} {value}")
    return f"{named} ({', '.join(keys)})" if keys else str(named)


def change(run: RunRecord, name: str, form: str) -> str:
    """A metric's mean over the first and over the last COMPARED_STEPS logged steps."""
    means = [mean(end, name) for end in two_ends(run.steps, COMPARED_STEPS)]
    if None in means:
        return NOTHING
    return " → ".join(f"{value:{form}}" for value in means)


def mean(entries: Sequence[dict[str, Any]], name: str) -> float | None:
    _, values = curve_of(entries, name)
    if not values:
        return None
    return statistics.fmean(values)


def first_and_last(runs: list[RunRecord]) -> Table:
    """Each reward and the signals of health, at both ends of each run."""
    names = ["reward", "reward_std"]
    for run in runs:
        names += [f"rewards/{function}/mean" for function in run.names("rewards/", "/mean")]
        names += [f"reward_weights/{function}" for function in run.names("reward_weights/")]
        names += [f"grades/{share}" for share in run.names("grades/")]
    names += CURVES
    rows = []
    for name in dict.fromkeys(names):
        cells = [change(run, name, ".4g") for run in runs]
        if any(cell != NOTHING for cell in cells):
            rows.append([name, *cells])
    note = f"Means over the first and the last {COMPARED_STEPS} logged steps, at most half of them."
    return Table("Metrics at both ends", header(runs), rows, note)


def times_table(runs: list[RunRecord]) -> Table:
    """Where the time of a step goes."""
    parts = [mean_parts(run) for run in runs]
    rows = []
    for part in PARTS:
        cells = []
        for own in parts:
            total = sum(own.values())
            cell = NOTHING
            if part in own and total > 0:
                cell = f"{own[part]:.2f} s ({own[part] / total:.0%})"
            cells.append(cell)
        if any(cell != NOTHING for cell in cells):
            rows.append([part, *cells])
    return Table("Time of a step", header(runs), rows, "Means over the logged steps.")


def machine(runs: list[RunRecord]) -> Table:
    """Time, tokens, hardware and versions of each run."""
    described = [described_machine(run) for run in runs]
    keys = dict.fromkeys(key for own in described for key in own)
    rows = [[key, *(own.get(key, NOTHING) for own in described)] for key in keys]
    return Table("Time, tokens, hardware and versions", header(runs), rows)


def described_machine(run: RunRecord) -> dict[str, str]:
    hours = run.training_s / 3600
    _, tokens = run.curve("num_tokens")
    gpu_hours = "0 (on a CPU)"
    if run.gpus:
        gpu_hours = f"{hours * run.gpus:.2f} ({run.gpus} GPU{'s' if run.gpus > 1 else ''})"
    if not run.sessions:
        gpu_hours = "unknown: no environment.json"
    described = {
        "hours of training steps": f"{hours:.2f}",
        "GPU hours of training steps": gpu_hours,
        "tokens": f"{tokens[-1]:,.0f}" if tokens else NOTHING,
        "starts": str(len(run.sessions)),
    }
    if run.sessions:
        last = run.sessions[-1]
        described["last start"] = shown_value(last.get("began"))
        for kind in ("hardware", "versions"):
            content = last.get(kind)
            if isinstance(content, dict):
                for key, value in content.items():
                    described[f"{kind}: {key}"] = shown_value(value)
    return described


def evaluation_tables(runs: list[RunRecord]) -> list[Table]:
    """For each run that was evaluated: its figures, a column for each evaluation, and the problems
    that it solves less often than before."""
    tables = []
    for run in runs:
        of_run = f" of {run.name}" if len(runs) > 1 else ""
        evaluations = [dict(each) for each in dicts_in(run.evaluation.get("evaluations"))]
        titles = []
        for i, content in enumerate(evaluations):
            content.pop("settings", None)
            step = content.pop("step", None)
            titles.append(str(i + 1) if step is None else f"step {step}")
        columns = [flat_figures(content) for content in evaluations]
        rows = []
        for key in dict.fromkeys(key for column in columns for key in column):
            rows.append([key, *(column.get(key, NOTHING) for column in columns)])
        note = "In brackets: 95 % intervals."
        tables.append(Table(f"Evaluations{of_run}", ["", *titles], rows, note))

        comparison = run.evaluation.get("comparison")
        worse = dicts_in(comparison.get("worse") if isinstance(comparison, dict) else None)
        keys = list(dict.fromkeys(str(key) for problem in worse for key in problem))
        rows = [[shown_value(problem.get(key)) for key in keys] for problem in worse]
        tables.append(Table(f"Problems that got worse{of_run}", keys, rows))
    return tables


def dicts_in(content: Any) -> list[dict[str, Any]]:
    """The mappings in a list; empty for anything else."""
    if not isinstance(content, list):
        return []
    return [each for each in content if isinstance(each, dict)]


def flat_figures(content: dict[str, Any], path: str = "") -> dict[str, str]:
    """{"group.name": cell} of nested figures. A value with its interval is one cell."""
    cells: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            figure, low, high = (shown_value(value[name]) for name in ("value", "low", "high"))
            cells[f"{path}{key}"] = f"{figure} [{low}, {high}]"
        elif isinstance(value, dict):
            cells |= flat_figures(value, f"{path}{key}.")
        else:
            cells[f"{path}{key}"] = shown_value(value)
    return cells


def config_table(runs: list[RunRecord]) -> Table:
    """Every key of the configs. Rows are marked where runs differ."""
    rows, marked = [], []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        row = [key, *(shown_value(run.config.get(key)) for run in runs)]
        rows.append(row)
        if len(set(row[1:])) > 1:
            marked.append(row)
    note = ""
    if len(runs) > 1:
        note = f"The runs differ in {len(marked)} keys, which are marked."
    return Table("Config", header(runs), rows, note, marked)


def watchdog_words(runs: list[RunRecord]) -> list[dict[str, str]]:
    words = []
    for run in runs:
        for step, name, paragraph in run.diagnoses:
            where = f"step {step}"
            if len(runs) > 1:
                where = f"{run.name}, step {step}"
            words.append({"where": where, "name": name, "paragraph": paragraph})
    return words


def header(runs: list[RunRecord]) -> list[str]:
    return ["", *(run.name for run in runs)]


def shown_value(value: Any) -> str:
    """A value of a config or of an evaluation, as a cell of a table."""
    if value is None:
        return NOTHING
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or NOTHING
    return str(value)


# ---- Pictures


def top_pictures(runs: list[RunRecord]) -> list[Picture]:
    return picture_of_each(
        runs,
        {
            "reward": "mean reward",
            "grades/correct": "share of correct completions",
            "grades/cheating": "share of completions that attempt to cheat",
        },
    )


def more_pictures(runs: list[RunRecord]) -> list[Picture]:
    functions = dict.fromkeys(name for run in runs for name in run.names("rewards/", "/mean"))
    titles = {f"rewards/{name}/mean": f"{printable(name)}, before weights" for name in functions}
    pictures = picture_of_each(runs, titles | CURVES)
    for run in runs:
        pictures += pictures_of_parts(run, len(runs) > 1)
    return pictures


def picture_of_each(runs: list[RunRecord], titles: dict[str, str]) -> list[Picture]:
    """A picture for each metric that any of the runs has logged."""
    pictures = []
    for metric, title in titles.items():
        curves = []
        for place, run in enumerate(runs):
            curves += curves_of(run, place, metric, len(runs) > 1)
        if curves:
            marks = []
            if len(runs) == 1:
                marks = [step for step, _, _ in runs[0].diagnoses]
            pictures.append(draw_curves(title, curves, marks=marks))
    return pictures


def curves_of(run: RunRecord, place: int, metric: str, has_others: bool) -> list[Curve]:
    """The curve of a metric, and dots for what an evaluation during training measured of it."""
    label = printable(run.name) if has_others else ""
    curves = []
    steps, values = run.curve(metric)
    if steps:
        curves.append(Curve(label, steps, values, place))
    steps, values = curve_of(run.evals, metric)
    if steps:
        label = f"{label} held-out rows".strip()
        curves.append(Curve(label, steps, values, place, dots=True))
    return curves


def pictures_of_parts(run: RunRecord, has_others: bool) -> list[Picture]:
    """How the completions of a run ended, and where the time of its steps went."""
    of_run = f", {printable(run.name)}" if has_others else ""
    statuses = {}
    for name in run.names("grades/status/"):
        statuses[name] = f"grades/status/{name}"
    times = {part: f"time/{part}" for part in PARTS}
    pictures = []
    for title, parts in (
        (f"how completions ended, shares{of_run}", statuses),
        (f"time of a step, seconds{of_run}", times),
    ):
        entries = [entry for entry in run.steps if set(parts.values()) <= entry.keys()]
        columns = {}
        for name, metric in parts.items():
            values = [entry[metric] for entry in entries]
            if any(values):
                columns[printable(name)] = values
        if columns:
            pictures.append(draw_parts(title, [entry["step"] for entry in entries], columns))
    return pictures


def printable(text: str) -> str:
    """A name without characters that an SVG file cannot hold."""
    return "".join(character for character in text if character.isprintable())


# ---- The two files


def html_of(report: Report) -> str:
    """The report as one HTML file."""
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{digest(style)}'; script-src '{digest(script)}'"
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    raw = {
        "style": Markup(style),
        "script": Markup(script),
        "data": Markup(safe_json(report.completions)),
    }
    return environment.get_template("page.html").render(vars(report), raw=raw, policy=policy)


def digest(source: str) -> str:
    """The hash of a script or style by which a Content-Security-Policy allows it."""
    hashed = hashlib.sha256(source.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(hashed).decode('ascii')}"


def markdown_of(report: Report) -> str:
    """The words and tables of the report, without pictures and completions."""
    lines = [f"# {markdown_cell(report.title)}", ""]
    for sentence in report.sentences:
        lines += [f"**{markdown_cell(sentence)}**", ""]
    lines += [*markdown_table(report.summary), ""]
    lines += ["Curves and completions are in report.html.", ""]
    if report.words:
        lines += ["## What the watchdog said", ""]
        for word in report.words:
            words = f"{word['where']}: {word['name']}: {word['paragraph']}"
            lines.append(f"- {markdown_cell(words)}")
        lines.append("")
    for table in [*report.tables, report.config]:
        lines += [f"## {markdown_cell(table.title)}", ""]
        if table.note:
            lines += [table.note, ""]
        lines += [*markdown_table(table), ""]
    if report.problems:
        lines += ["## What could not be read", ""]
        lines += [f"- {markdown_cell(problem)}" for problem in report.problems]
        lines.append("")
    return "\n".join([*lines, report.footer, ""])


def markdown_table(table: Table) -> list[str]:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    lines = []
    for row in rows:
        cells = [markdown_cell(cell) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def markdown_cell(text: str) -> str:
    """A text on one line, in which nothing is markup: neither Markdown's nor HTML's."""
    line = html.escape(" ".join(text.split()), quote=False)
    for character in "\\`*[]|":
        line = line.replace(character, f"\\{character}")
    # Within a word an underscore is no markup
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
