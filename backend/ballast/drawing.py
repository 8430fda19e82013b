"""The one place that knows the drawing library: figures, and files made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ballast_protocol.errors import OperatorError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width_inches: float = 10.0, height_inches: float = 5.0) -> Figure:
    """Return an empty figure.

    Raises:
        OperatorError: The drawing library, which is an extra, is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OperatorError(
            "drawing needs matplotlib", hint="Install it with: pip install 'ballast[plot]'"
        ) from error
    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as an SVG file.

    Raises:
        OperatorError: The file cannot be written.
    """
    try:
        figure.savefig(path, format="svg")
    except OSError as error:
        raise OperatorError(f"cannot write {path}: {error.strerror}") from error
