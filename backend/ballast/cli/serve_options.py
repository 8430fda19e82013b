"""The options of `ballast serve`, one type for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ballast.cli.common import rate_argument, size_argument
from ballast.mqtt.config import PASSWORD_VARIABLE
from ballast_protocol.guest_blocks import MAX_SWEEP_SECONDS, MIN_SWEEP_SECONDS

Vms = Annotated[
    list[str] | None,
    typer.Argument(metavar="[VM]...", help="Names of the VMs to serve.", show_default=False),
]

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="A TOML file with a table [vm.NAME] per VM, perhaps [mqtt]."
    ),
]

Target = Annotated[
    int | None,
    typer.Option(parser=size_argument, metavar="SIZE", help="What guests should have at start."),
]

InflateRate = Annotated[
    int,
    typer.Option(
        parser=rate_argument,
        metavar="SIZE",
        help="What guests give up each second at most; 0: no limit.",
    ),
]

Inhibit = Annotated[
    bool,
    typer.Option(
        "--inhibit", help="Give nothing back: the guests' memory is pinned (VFIO devices)."
    ),
]

Memory = Annotated[
    int | None,
    typer.Option(
        parser=size_argument, metavar="SIZE", help="The machine's size, if QEMU does not tell."
    ),
]

DeflateOnOom = Annotated[
    bool, typer.Option(help="Guests may take memory back before they kill a process.")
]

FreePageReporting = Annotated[bool, typer.Option(help="Guests give free memory back on their own.")]

FreePageHint = Annotated[bool, typer.Option(help="Guests can list their free memory on request.")]

AgentBlocks = Annotated[
    bool, typer.Option(help="The agent in the guest gives up whole blocks of 2 MiB.")
]

SweepEvery = Annotated[
    float | None,
    typer.Option(
        min=MIN_SWEEP_SECONDS,
        max=MAX_SWEEP_SECONDS,
        metavar="SECONDS",
        help="Have the agent give free memory back this often, for guests whose kernel knows "
        "no free-page reporting.",
    ),
]

SweepWhenFree = Annotated[
    int | None,
    typer.Option(
        parser=size_argument,
        metavar="SIZE",
        help="The same when so much has become free since the last time.",
    ),
]

StatsPollingInterval = Annotated[
    int, typer.Option(min=0, metavar="SECONDS", help="Poll statistics; 0: on demand only.")
]

SocketPath = Annotated[
    Path | None,
    typer.Option(help="Where QEMU connects, instead of the runtime directory (one VM)."),
]

Fd = Annotated[
    int | None,
    typer.Option(min=0, help="An inherited socket, instead of a path (one VM)."),
]

Keeper = Annotated[
    str | None,
    typer.Option(
        metavar="parent|systemd|PATH",
        help="Who holds QEMU's connections: a parent process, systemd's file descriptor "
        "store, or a `ballast keeper` at PATH.",
        show_default=False,
    ),
]

NoKeeper = Annotated[
    bool, typer.Option("--no-keeper", help="One process, whose end costs QEMU its balloon.")
]

KeeperTimeout = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for it to listen.")
]

Watchdog = Annotated[
    bool,
    typer.Option(
        help="Replace a worker that does nothing for 30 s (a parent only); --no-watchdog is for "
        "debuggers."
    ),
]

BusyPoll = Annotated[
    int,
    typer.Option(
        min=0,
        max=1000,
        metavar="MICROSECONDS",
        help="How long to look for more work before sleeping where some is expected at once; "
        "0 sleeps at once.",
    ),
]

QemuQmp = Annotated[
    Path | None,
    typer.Option(
        metavar="SOCKET",
        help=(
            "A QMP socket of QEMU, for Ballast alone (one VM). The VM's qmp.sock then serves "
            "QEMU's commands and events too."
        ),
    ),
]

Attach = Annotated[
    Path | None,
    typer.Option(
        metavar="SOCKET",
        help=(
            "A QMP socket of a QEMU that has its own virtio-balloon: manage that one, in the "
            "place of one of ours (one VM)."
        ),
    ),
]

DeviceId = Annotated[
    str, typer.Option(metavar="ID", help="The id of the balloon's device in QEMU.")
]


def _print_capabilities(value: bool) -> None:
    """Answer QEMU's convention for back-end programs (docs/interop/vhost-user.json)."""
    if value:
        typer.echo(json.dumps({"type": "balloon", "features": []}))
        raise typer.Exit


PrintCapabilities = Annotated[
    bool,
    typer.Option(
        "--print-capabilities",
        callback=_print_capabilities,
        is_eager=True,
        help="Print what this back-end is, as QEMU's conventions want it, and exit.",
    ),
]

Mqtt = Annotated[
    str | None,
    typer.Option(
        "--mqtt",
        metavar="URL",
        help=(
            "Report to this MQTT broker and take targets from it: mqtt://[USER@]HOST[:PORT], "
            f"mqtts:// for TLS. {PASSWORD_VARIABLE} names the file with the password; the "
            "table [mqtt] of --config has all options."
        ),
    ),
]
