"""The figures as bars: one group for each kind of work, one bar for each who did it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ballast.bench.rows import Row
from ballast.drawing import new_figure, save_svg

GROUP_WIDTH = 0.8
"""Of the distance between two groups."""


def guest_kind(row: Row) -> str:
    """Return what a guest was measured at."""
    return f"{row.work}\n{row.boot}\n{row.memory}"


def ring_kind(row: Row) -> str:
    """Return the pattern that was played."""
    return row.pattern or ""


def scale_kind(row: Row) -> str:
    """Return how many VMs there were."""
    return f"{row.vms} VMs"


def save_bars(
    rows: Sequence[Row],
    path: Path,
    *,
    kind: Callable[[Row], str],
    who: Callable[[Row], str],
    value: Callable[[Row], Sequence[float]],
    unit: str,
) -> None:
    """Draw medians as bars, with a line from the best round to the worst.

    Args:
        rows: What to draw.
        path: Of the SVG file.
        kind: Which group a row belongs to.
        who: Which bar of its group it is.
        value: The median, and after it every round.
        unit: What the values are.

    Raises:
        OperatorError: The drawing library is not installed, or the file cannot be written.
    """
    kinds = list(dict.fromkeys(map(kind, rows)))
    names = list(dict.fromkeys(map(who, rows)))
    figure = new_figure(max(10.0, 1.6 * len(kinds)))
    axes = figure.subplots()
    width = GROUP_WIDTH / len(names)
    for number, name in enumerate(names):
        own = [row for row in rows if who(row) == name]
        places = [kinds.index(kind(row)) + (number + 0.5) * width - GROUP_WIDTH / 2 for row in own]
        values = [value(row) for row in own]
        medians = [each[0] for each in values]
        errors = [
            [median - min(each) for median, each in zip(medians, values, strict=True)],
            [max(each) - median for median, each in zip(medians, values, strict=True)],
        ]
        axes.bar(places, medians, width, yerr=errors, label=name, error_kw={"linewidth": 0.8})
    axes.set(ylabel=unit, ylim=(0, None), xticks=range(len(kinds)))
    axes.set_xticklabels(kinds, fontsize=8)
    figure.legend(loc="outside lower center", ncols=min(len(names), 4))
    save_svg(figure, path)
