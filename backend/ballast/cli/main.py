"""The `ballast` command: its sub-commands, and what every error becomes on the way out."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from ballast.cli import (
    bench,
    blocks,
    control,
    demo,
    doctor,
    image,
    keeper,
    launch,
    resize,
    serve,
    soak,
    switches,
    top,
    upgrade,
)
from ballast.daemon.logs import VmNameFilter
from ballast.daemon.version import ballast_version
from ballast_protocol.errors import BallastError, OperatorError, TimedOutError

EXIT_FAILED, EXIT_TIMED_OUT = 1, 3
"""Exit statuses besides 0 (done) and 2 (wrong use, from the parser)."""

app = typer.Typer(
    name="ballast",
    help=(
        "A memory balloon that runs beside QEMU.\n\n"
        "Start with `ballast demo`: it boots a guest and shows its memory going back "
        "to the host. `ballast doctor` tells what this machine lacks."
    ),
    epilog="Exit status: 0 done, 1 failed, 2 wrong use, 3 timed out.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", rich_help_panel="See it work")(demo.demo)
app.command("doctor", rich_help_panel="See it work")(doctor.doctor)
app.command("launch", rich_help_panel="Run VMs")(launch.launch)
app.command("serve", rich_help_panel="Run VMs")(serve.serve)
app.command("keeper", rich_help_panel="Run VMs")(keeper.keeper)
app.command("status", rich_help_panel="Operate VMs")(control.status)
app.command("set", cls=resize.SizeCommand, rich_help_panel="Operate VMs")(resize.set_target)
app.command("hold", rich_help_panel="Operate VMs")(switches.hold)
app.command("inhibit", rich_help_panel="Operate VMs")(switches.inhibit)
app.command("stats", rich_help_panel="Operate VMs")(control.stats)
app.command("top", rich_help_panel="Operate VMs")(top.top)
app.command("upgrade", rich_help_panel="Operate VMs")(upgrade.upgrade)
app.command("soak", rich_help_panel="See it work")(soak.soak)
app.command("sweep", rich_help_panel="Operate VMs")(blocks.sweep)
app.command("compact", rich_help_panel="Operate VMs")(blocks.compact)
app.command("nodes", rich_help_panel="Operate VMs")(blocks.nodes)
app.add_typer(bench.app, name="bench", rich_help_panel="See it work")
app.add_typer(image.app, name="image", rich_help_panel="See it work")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"ballast {ballast_version()}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for everything.")
    ] = 0,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Set up what all commands share."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    handler = RichHandler(
        console=Console(stderr=True), show_path=False, rich_tracebacks=False, markup=False
    )
    handler.addFilter(VmNameFilter())
    # What it has to say is raised as an error of ours as well.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    logging.basicConfig(level=level, format="%(message)s", datefmt="%H:%M:%S", handlers=[handler])


def main() -> None:
    """Run the command line; never returns."""
    try:
        app()
    except OperatorError as error:
        _complain(str(error), error.hint)
        sys.exit(EXIT_TIMED_OUT if isinstance(error, TimedOutError) else EXIT_FAILED)
    except BallastError as error:
        _complain(str(error), "")
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(130)


def _complain(message: str, hint: str) -> None:
    console = Console(stderr=True)
    console.print("[bold red]ballast:[/bold red] ", end="")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    if hint:
        console.print(hint, markup=False, highlight=False, style="dim", soft_wrap=True)


if __name__ == "__main__":
    main()
