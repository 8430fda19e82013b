"""What the demo shows in the end: a table, a chart, and the same as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import plotext
from rich.console import Console
from rich.table import Table

from ballast.demo.record import Recording
from ballast.demo.scenario import Step
from ballast.drawing import new_figure, save_svg
from ballast.sizes import format_size

_MIB = 1 << 20
_CURVES = (
    ("target", "target_bytes"),
    ("actual (guest)", "actual_bytes"),
    ("host resident", "allocated_bytes"),
    ("QEMU RssShmem", "rss_shmem_bytes"),
)

_COLOURS = ("white", "yellow+", "cyan+")


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo found out.

    Attributes:
        transport: How QEMU reached the balloon.
        qemu: QEMU's version.
        kernel: The guest's kernel.
        accelerator: What ran the guest's instructions.
        steps: What was done.
        verified_bytes: What a guest program wrote and read back whole after the deflate.
        kernel_warnings: Lines of the guest's kernel log that should not be there.
        agent_version: The agent's version; None if none reported.
        free_bytes_by_order: The guest's free memory by the size of its blocks, as the agent says.
    """

    transport: str
    qemu: str
    kernel: str
    accelerator: str
    steps: Sequence[Step]
    verified_bytes: int
    kernel_warnings: Sequence[str]
    agent_version: str | None
    free_bytes_by_order: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether memory really moved, nothing was lost, and the guest did not complain."""
        return (
            len(self.steps) == 3
            and all(step.ok for step in self.steps)
            and not self.kernel_warnings
            and self.agent_version is not None
        )

    def as_json(self) -> dict[str, object]:
        """Return the result as data."""
        return {
            "ok": self.ok,
            "transport": self.transport,
            "qemu": self.qemu,
            "kernel": self.kernel,
            "accelerator": self.accelerator,
            "steps": [asdict(step) for step in self.steps],
            "verified_bytes": self.verified_bytes,
            "kernel_warnings": list(self.kernel_warnings),
            "agent": {
                "version": self.agent_version,
                "free_bytes_by_order": self.free_bytes_by_order,
            },
        }


def show(result: DemoResult, record: Recording, console: Console) -> None:
    """Print the table, the chart and the verdict."""
    console.print(
        f"\nQEMU {result.qemu} ({result.accelerator}), Linux {result.kernel}, {result.transport}",
        highlight=False,
    )
    console.print(step_table(result.steps))
    console.print(
        "[dim]ACTUAL and MEMTOTAL: the guest. BOOKS: Ballast. HOST: the blocks of the guest's "
        "memory file, before and after. QEMU: its RssShmem.[/dim]"
    )
    for step in result.steps:
        if step.given_back_bytes > 0:
            console.print(f"{step.name}: the host got {format_size(step.given_back_bytes)} back")
    console.print(f"Read back whole after the deflate: {format_size(result.verified_bytes)}")
    blocks = sum(result.free_bytes_by_order.values())
    huge = sum(size for order, size in result.free_bytes_by_order.items() if int(order) >= 9)
    console.print(
        f"The agent {result.agent_version or '(none)'} sees {format_size(blocks)} free in the "
        f"guest, {format_size(huge)} of it in blocks of 2 MiB and more",
        highlight=False,
    )
    # The chart brings its own colours, which markup must not touch.
    console.out(
        chart(record, width=min(console.width, 110), in_colour=console.is_terminal), highlight=False
    )
    for line in result.kernel_warnings:
        console.print(f"guest kernel: {line}", style="bold red", markup=False)
    if result.ok:
        console.print("[bold green]Memory went back to the host, and returned whole.[/bold green]")
    else:
        console.print("[bold red]Something above is not as it should be.[/bold red]")


def step_table(steps: Sequence[Step]) -> Table:
    """Return the steps as a table, in MiB: what operator, guest, books, host and QEMU each say."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), title="MiB")
    for title in ("STEP", "SECONDS", "TARGET", "ACTUAL", "MEMTOTAL", "BOOKS", "HOST", "", "QEMU"):
        table.add_column(title, justify="left" if title == "STEP" else "right", no_wrap=True)
    for step in steps:
        rss = step.qemu_rss_shmem_after_bytes
        table.add_row(
            step.name,
            f"{step.seconds:.2f}",
            _mib(step.target_bytes),
            _mib(step.actual_bytes),
            _mib(step.guest_total_bytes),
            _mib(step.ledger_bytes),
            f"{_mib(step.host_resident_before_bytes)} → {_mib(step.host_resident_after_bytes)}",
            "[green]ok[/green]" if step.ok else "[red]not ok[/red]",
            _mib(rss) if rss is not None else "-",
        )
    return table


def _mib(size_bytes: int) -> str:
    return str(round(size_bytes / _MIB))


def _curve(record: Recording, attribute: str) -> tuple[list[float], list[float]]:
    """Return one curve: seconds and MiB."""
    points = [
        (sample.seconds, value / _MIB)
        for sample in record.samples
        if (value := getattr(sample, attribute)) is not None
    ]
    return [x for x, _ in points], [y for _, y in points]


def chart(record: Recording, *, width: int, in_colour: bool) -> str:
    """Return the recording as a chart for the terminal, readable without colour too."""
    plotext.clear_figure()
    plotext.plotsize(width, 20)
    plotext.theme("clear")
    for (label, attribute), letter, colour in zip(_CURVES, "tah", _COLOURS, strict=False):
        seconds, sizes = _curve(record, attribute)
        marker = "braille" if in_colour else letter
        plotext.plot(seconds, sizes, label=f"{letter}: {label}", marker=marker, color=colour)
    plotext.ylim(0, None)
    plotext.title("the guest's memory, MiB over seconds")
    drawn = str(plotext.build())
    return drawn if in_colour else str(plotext.uncolorize(drawn))


def save_plot(record: Recording, path: Path) -> None:
    """Draw the recording into an SVG file.

    Raises:
        OperatorError: The drawing library is not installed, or the file cannot be written.
    """
    figure = new_figure()
    axes = figure.subplots()
    for label, attribute in _CURVES:
        axes.plot(*_curve(record, attribute), label=label)
    for seconds, name in record.marks:
        axes.axvline(seconds, color="0.8", linewidth=0.8, zorder=0)
        axes.text(seconds, 0, f" {name}", rotation=90, va="bottom", fontsize=8, color="0.4")
    axes.set(xlabel="seconds", ylabel="MiB", title="The guest's memory", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=len(_CURVES))
    save_svg(figure, path)
