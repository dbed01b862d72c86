"""Draws the curves of a report with matplotlib, as SVG images that need no other file."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/)
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#B8A800",
)
MAX_POINTS = 300  # of a curve; longer ones are drawn as means of equal parts
SMOOTHED_FROM = 40  # points; a curve with so many gets a running mean
SIZE_INCHES = (4.4, 2.5)
STYLE = {
    # Text stays text: the file is smaller, and the words can be found
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.alpha": 0.25,
    "legend.framealpha": 0.7,
    "legend.edgecolor": "none",
    "legend.fontsize": 7,
    # A metric's name is no formula, whatever it contains
    "text.parse_math": False,
}


@dataclass
class Curve:
    """One line of a picture.

    Attributes:
        label: for the legend; empty for none.
        steps, values: of equal length.
        colour: an index of COLOURS.
        dots: whether to draw single dots, as for an evaluation.
        dashed: whether to draw it dashed.
    """

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 0
    dots: bool = False
    dashed: bool = False


@dataclass
class Picture:
    """A picture of a report: what it shows, in words, and its image as a data: URL."""

    title: str
    caption: str
    url: str


def draw_curves(
    title: str, curves: Sequence[Curve], caption: str = "", marks: Sequence[int] = ()
) -> Picture:
    """Curves over the step.

    Args:
        marks: steps at which the watchdog spoke; each gets a dotted line.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = empty_figure(title)
        for curve in curves:
            draw_curve(axes, curve)
        for step in marks:
            axes.axvline(step, color="#888888", linewidth=0.8, linestyle=":")
        add_legend(axes)
        return Picture(title, caption, url_of(figure))


def draw_curve(axes: Axes, curve: Curve) -> None:
    colour = COLOURS[curve.colour % len(COLOURS)]
    steps, values = binned(curve.steps, curve.values)
    if curve.dots:
        axes.plot(steps, values, "o", color=colour, markersize=4, label=curve.label)
        return
    line = {"color": colour, "linestyle": "--" if curve.dashed else "-"}
    if len(values) < SMOOTHED_FROM:
        marker = "o" if len(values) < 2 else None
        axes.plot(steps, values, linewidth=1.4, marker=marker, label=curve.label, **line)
        return
    axes.plot(steps, values, linewidth=0.7, alpha=0.35, **line)
    axes.plot(steps, running_mean(values), linewidth=1.6, label=curve.label, **line)


def draw_parts(
    title: str, steps: Sequence[float], parts: dict[str, Sequence[float]], caption: str = ""
) -> Picture:
    """Parts of a whole over the step, one on top of the other.

    Args:
        parts: name -> values, each as long as `steps`.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = empty_figure(title)
        heights = []
        for values in parts.values():
            short_steps, short = binned(steps, values)
            heights.append(np.maximum(short, 0))
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(parts))]
        if len(short_steps) == 1:  # an area needs two points
            below = 0.0
            for name, height, colour in zip(parts, heights, colours, strict=True):
                axes.bar(short_steps, height, 0.4, below, color=colour, label=name)
                below += height[0]
        else:
            axes.stackplot(short_steps, heights, labels=list(parts), colors=colours, alpha=0.85)
        axes.set_ylim(bottom=0)
        add_legend(axes)
        return Picture(title, caption, url_of(figure))


def empty_figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES)
    # A fixed place takes half the time of one that is worked out
    axes = figure.add_axes((0.13, 0.17, 0.85, 0.72))
    axes.set_title(title, loc="left", y=1.02)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def add_legend(axes: Axes) -> None:
    """A legend of the lines that have a label, if any has."""
    _, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(loc="best", ncols=2 if len(labels) > 3 else 1)


def url_of(figure: Figure) -> str:
    """The figure as an SVG image in a data: URL.

    As an image it is a document of its own: it can run nothing, and its ids clash with no others.
    """
    file = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None}
    figure.savefig(file, format="svg", metadata=metadata)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/svg+xml;base64,{encoded}"


def binned(steps: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points of a curve: means of its equal parts."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if len(x) <= MAX_POINTS:
        return x, y
    parts = zip(np.array_split(x, MAX_POINTS), np.array_split(y, MAX_POINTS), strict=True)
    means = np.array([(part_x.mean(), part_y.mean()) for part_x, part_y in parts])
    return means[:, 0], means[:, 1]


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours, a tenth of the curve together.

    At both ends there are fewer neighbours.
    """
    half = max(len(values) // 20, 1)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    indices = np.arange(len(values))
    first = np.maximum(indices - half, 0)
    last = np.minimum(indices + half + 1, len(values))
    means = (sums[last] - sums[first]) / (last - first)
    # Rounding must not make a curve of what is constant
    return np.clip(means, values.min(), values.max())
