"""The figures of a report as inline SVG: text stays text, and colours follow the page's light or dark theme.

Figures are drawn in the light theme's colours; `svg` then names each by its CSS variable. No text is read as
mathematics, so a `$` in somebody's merchant name stays one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from models.clock import to_iso
from training.bootstrap import Interval
from training.deletion import Deletion
from training.drift import Drift
from training.importance import Importance
from training.metrics import Reliability
from training.report_facts import Curve, Day, Money, Segment

__all__ = [
    "THEME", "alerts_plot", "clean", "deletion_plot", "drift_plot", "histogram", "importance_plot", "intervals_plot",
    "money_plot", "precision_recall_plot", "reliability_plot", "svg",
]  # fmt: skip

# CSS variable → (light, dark). Blue and orange differ for every kind of colour vision, and in grey.
THEME = {
    "ink": ("#1d2731", "#e4e9ee"), "muted": ("#5b6773", "#a0abb6"), "grid": ("#dfe4e9", "#37424d"),
    "blue": ("#2b6ca9", "#79b8f3"), "orange": ("#cf5613", "#ff9c5b"), "pale": ("#a9b7c4", "#5f6d7a"),
}  # fmt: skip
INK, MUTED, GRID, BLUE, ORANGE, PALE = (light for light, _ in THEME.values())
NAME_CHARS = 22  # of names on an axis
SIZE, WIDE = (5.4, 3.6), (9.6, 3.2)  # inches
RULES: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "axes.unicode_minus": True, "font.size": 10,
    "font.family": "sans-serif", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "xtick.color": MUTED, "ytick.color": MUTED, "grid.color": GRID, "grid.linewidth": 0.8, "axes.grid": True,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}  # fmt: skip
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
PERCENT = FuncFormatter(lambda value, _: f"{value:.0%}")


def clean(text: object, limit: int = NAME_CHARS) -> str:
    """A name that a user's data holds, short and without control characters; escaping is left to what prints it."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def svg(figure: Figure, name: str, title: str) -> Markup:
    """The figure as an element of a page; `name` keeps its ids apart from those of other figures."""
    with mpl.rc_context({**RULES, "svg.hashsalt": name}):
        out = io.StringIO()
        # no metadata: it would hold the date, and addresses
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # a page's parser knows them
    opening = f'<svg role="img" aria-label="{escape(title)}"'
    text = re.sub(r'^<svg[^>]*?( viewBox="[^"]*")[^>]*>', lambda found: f"{opening}{found[1]}>", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)  # the page has it
    text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own
    for variable, (light, _) in THEME.items():
        text = re.sub(rf"(?<=: ){light}(?=[;\"])", f"var(--{variable})", text)
    return Markup(text)


def precision_recall_plot(curve: Curve, share: float) -> Figure:
    """share: of frauds among the events, what guessing reaches."""
    with _axes() as (figure, axes):
        axes.step(curve.x, curve.y, where="pre", color=BLUE, linewidth=1.8)
        axes.axhline(share, color=MUTED, linewidth=1.2, linestyle="--", label=f"guessing: {share:.2%}")
        if curve.at is not None:
            _mark(axes, curve.at)
        axes.set(xlabel="recall (share of frauds alerted)", ylabel="precision (share of alerts right)",
                 xlim=(0, 1.02), ylim=(0, 1.04))  # fmt: skip
        _legend_above(axes)
    return figure


def reliability_plot(bins: Sequence[Reliability]) -> Figure:
    """Both axes in logarithms, as probabilities of a rare event span several powers of ten."""
    positive = [v for b in bins for v in (b.probability, b.fraud_rate) if v > 0]
    floor = 10.0 ** np.floor(np.log10(max(min(positive, default=1e-3) / 2, 1e-7)))
    with _axes() as (figure, axes):
        axes.plot([floor, 1], [floor, 1], color=MUTED, linewidth=1, linestyle="--", label="perfect")
        for number, b in enumerate(bins):
            x, y = max(b.probability, floor), max(b.fraud_rate, floor)
            low, high = max(b.low, floor), max(b.high, floor)
            axes.plot([x, x], [low, high], color=BLUE, linewidth=1.4, alpha=0.7)
            axes.plot([x], [y], "o", color=BLUE, markersize=6, markerfacecolor=BLUE if b.fraud_rate > 0 else "none",
                      label="a tenth of the events; hollow: no fraud" if number == 0 else None)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="probability that was promised", ylabel="share that was fraud",
                 xlim=(floor * 0.7, 1.4), ylim=(floor * 0.7, 1.4))  # fmt: skip
        _plain(axes, "x", "y")
        _legend_above(axes)
    return figure


def histogram(score_N: NDArray[np.float32], fraud_N: NDArray[np.bool_], threshold: float) -> Figure:
    """Counts in logarithms: the frauds would be invisible otherwise."""
    edges = np.linspace(0, 1, 51)
    with _axes() as (figure, axes):
        for wanted, color, label in ((~fraud_N, BLUE, "legitimate"), (fraud_N, ORANGE, "fraud")):
            counts, _ = np.histogram(score_N[wanted], edges)
            axes.stairs(counts, edges, color=color, label=label, fill=True, alpha=0.25)
            axes.stairs(np.where(counts > 0, counts, 0.5), edges, color=color, linewidth=1.5)
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--", label="threshold")
        axes.set(yscale="log", xlabel="score", ylabel="events", xlim=(-0.01, 1.01), ylim=(0.5, None))
        _plain(axes, "y")
        _legend_above(axes)
    return figure


def intervals_plot(entries: Sequence[Segment], overall: float, meaning: str) -> Figure:
    """A row for each segment, with its interval; a segment without a value keeps its row. meaning: of the line at
    `overall`."""
    with _axes(rows=len(entries)) as (figure, axes):
        for row, entry in enumerate(entries):
            _interval(axes, row, entry.ap, BLUE)
        if np.isfinite(overall):
            axes.axvline(overall, color=ORANGE, linewidth=1.4, linestyle="--", label=meaning)
            _legend_above(axes)
        _rows(axes, [f"{clean(e.name)}  ({e.frauds:,} of {e.events:,})" for e in entries])
        axes.set(xlabel="average precision", xlim=(0, 1.0))
    return figure


def alerts_plot(days: Sequence[Day], budget: float) -> Figure:
    with _axes(WIDE) as (figure, axes):
        x = np.arange(len(days))
        hits, others = np.array([d.hits for d in days]), np.array([d.alerts - d.hits for d in days])
        axes.bar(x, hits, color=ORANGE, width=0.8, label="frauds")
        axes.bar(x, others, bottom=hits, color=PALE, width=0.8, label="other alerts")
        axes.axhline(budget, color=INK, linewidth=1.2, linestyle="--", label=f"budget {budget:g}")
        every = max(1, -(-len(days) // 12))
        axes.set_xticks(x[::every], [to_iso(d.start_ms)[5:10] for d in days[::every]])
        axes.set(ylabel="alerts", xlabel="day (UTC)", xlim=(-0.6, len(days) - 0.4))
        axes.set_ylim(0, max(budget, *(d.alerts for d in days)) * 1.08)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        _legend_above(axes)
    return figure


def money_plot(money: Money, budget: float) -> Figure:
    curve = money.curve
    with _axes() as (figure, axes):
        axes.plot(curve.x, curve.y, color=BLUE, linewidth=1.8)
        axes.axvline(budget, color=INK, linewidth=1.2, linestyle="--", label=f"budget {budget:g}")
        if curve.at is not None:
            _mark(axes, curve.at)
        axes.set(xscale="log", xlabel="alerts a day", ylabel="share of the frauds' sum", ylim=(0, 1.04))
        axes.yaxis.set_major_formatter(PERCENT)
        _plain(axes, "x")
        _legend_above(axes)
    return figure


def importance_plot(found: Sequence[Importance]) -> Figure:
    with _axes(rows=len(found)) as (figure, axes):
        for row, entry in enumerate(found):
            axes.barh(row, entry.drop.value, color=BLUE, height=0.65)
            axes.plot([entry.drop.low, entry.drop.high], [row, row], color=INK, linewidth=1.2)
        axes.axvline(0, color=MUTED, linewidth=1)
        _rows(axes, [clean(e.group) for e in found])
        axes.set(xlabel="fall of average precision when shuffled")
    return figure


def deletion_plot(test: Deletion) -> Figure:
    with _axes() as (figure, axes):
        x = np.arange(len(test.named) + 1)
        for entries, color, marker, label in ((test.named, ORANGE, "o", "named reasons"),
                                              (test.random, BLUE, "s", "random groups")):  # fmt: skip
            axes.plot(x, [0.0, *(e.value for e in entries)], color=color, marker=marker, label=label)
            axes.fill_between(x, [0.0, *(e.low for e in entries)], [0.0, *(e.high for e in entries)],
                              color=color, alpha=0.18, linewidth=0)  # fmt: skip
        axes.set(xlabel="groups of inputs removed", ylabel="mean fall of the score", xlim=(0, len(test.named) + 0.1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_above(axes)
    return figure


def drift_plot(entry: Drift) -> Figure:
    """Small: one of ten."""
    with _axes((3.2, 2.1)) as (figure, axes):
        x = np.arange(len(entry.labels))
        axes.bar(x - 0.2, entry.reference, width=0.4, color=PALE, label="training")
        axes.bar(x + 0.2, entry.now, width=0.4, color=BLUE, label="now")
        every = max(1, -(-len(x) // 5))
        axes.set_xticks(x[::every], [clean(label, 8) for label in entry.labels[::every]], fontsize=8)
        axes.yaxis.set_major_formatter(PERCENT)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(axis="y", labelsize=8)
        axes.set_ylim(0, max(*entry.reference, *entry.now) * 1.3)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper right", fontsize=8, ncols=2, borderaxespad=0, handlelength=1)
    return figure


@contextmanager
def _axes(size: tuple[float, float] = SIZE, rows: int | None = None) -> Iterator[tuple[Figure, Axes]]:
    """One figure with the page's rules; with `rows`, as high as so many of them need."""
    with mpl.rc_context(RULES):
        figure = Figure(figsize=size if rows is None else (5.8, 1.0 + 0.26 * rows))
        yield figure, figure.subplots()


def _interval(axes: Axes, row: int, interval: Interval, color: str) -> None:
    if np.isfinite(interval.low) and np.isfinite(interval.high):
        axes.plot([interval.low, interval.high], [row, row], color=color, linewidth=1.6, alpha=0.6)
    if np.isfinite(interval.value):
        axes.plot([interval.value], [row], "o", color=color, markersize=6, clip_on=False)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(visible=False, axis="y")


def _mark(axes: Axes, at: tuple[float, float]) -> None:
    axes.plot([at[0]], [at[1]], "D", color=ORANGE, markersize=8, label="threshold", zorder=3, linestyle="none")


def _legend_above(axes: Axes) -> None:
    """Where no line can run through it."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)


def _plain(axes: Axes, *which: str) -> None:
    """Numbers of a logarithmic axis as people write them."""
    place: dict[str, Callable[[FuncFormatter], None]] = {
        "x": axes.xaxis.set_major_formatter, "y": axes.yaxis.set_major_formatter,
    }  # fmt: skip
    for axis in which:
        place[axis](PLAIN)
        (axes.xaxis if axis == "x" else axes.yaxis).set_minor_formatter(FuncFormatter(lambda *_: ""))
