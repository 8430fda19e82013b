"""`ballast image`: the QEMU and the guest that demo, launch and tests use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ballast.cli import containers
from ballast.cli.common import JsonFlag, QemuPath, console, print_json
from ballast_images.broker import find_broker
from ballast_images.guest import GUEST_VARIABLE, build_guest, export_guest
from ballast_images.progress import ConsoleReporter
from ballast_images.qemu import find_qemu
from ballast_images.zipapp import agent_archive, agent_sources
from ballast_protocol.errors import InternalError, OperatorError

app = typer.Typer(help="Find or build the QEMU and the guest that Ballast boots.")


app.command("containers")(containers.build)


@app.callback(no_args_is_help=True)
def image() -> None:
    """Find or build the QEMU and the guest that Ballast boots."""


@app.command()
def agent(
    output: Annotated[Path, typer.Argument(help="Where to write it.", dir_okay=False)],
) -> None:
    """Pack the guest agent into one file that Python 3.9 or later runs: ballast-agent.pyz."""
    archive = agent_archive(agent_sources())
    if archive is None:
        raise InternalError("the agent's package is not installed")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(archive)
        output.chmod(0o755)
    except OSError as error:
        raise OperatorError(f"cannot write {output}: {error.strerror}") from error


@app.command(
    help=(
        "Write the guest, vmlinuz and initrd, into a directory: for an image or a machine that "
        f"builds none. There, {GUEST_VARIABLE}=DIRECTORY."
    )
)
def guest(
    directory: Annotated[Path, typer.Argument(help="Where; made if missing.", file_okay=False)],
) -> None:
    """Build the guest if need be, and copy it."""
    export_guest(build_guest(reporter=ConsoleReporter()), directory)


@app.command()
def build(
    refresh: Annotated[bool, typer.Option(help="Look for newer packages.")] = False,
    suite: Annotated[
        str, typer.Option(help="Where the guest's kernel is from: trixie or trixie-backports.")
    ] = "trixie",
    qemu: QemuPath = None,
    with_broker: Annotated[
        bool, typer.Option(help="Have mosquitto and its clients too, to try out MQTT.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make sure that both are there, and say where."""
    if suite not in ("trixie", "trixie-backports"):
        raise typer.BadParameter("the suite is trixie or trixie-backports")
    chosen: Literal["trixie", "trixie-backports"] = (
        "trixie" if suite == "trixie" else "trixie-backports"
    )
    reporter = ConsoleReporter()
    found = find_qemu(qemu, refresh=refresh, reporter=reporter)
    guest = build_guest(suite=chosen, refresh=refresh, reporter=reporter)
    facts = {
        "qemu": str(found.command),
        "qemu-version": found.version,
        "kernel": str(guest.kernel),
        "initrd": str(guest.initrd),
        "kernel-release": guest.kernel_release,
    }
    if with_broker:
        broker = find_broker(refresh=refresh, reporter=reporter)
        facts |= {program.name: str(program) for program in broker.programs}
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        console.print(f"{name:16} {value}", highlight=False, soft_wrap=True, markup=False)
