"""`ballast serve`: the daemon."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from ballast.cli.common import TransportName, Variant, rate_argument, size_argument
from ballast.daemon import config as configuration
from ballast.daemon.config import VmConfig
from ballast.daemon.worker import serve_kept
from ballast.mqtt.config import PASSWORD_VARIABLE
from ballast.qmp.qom import BALLOON_ID
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import MAX_SWEEP_SECONDS, MIN_SWEEP_SECONDS


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


def serve(
    vms: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VM]...", help="Names of the VMs to serve.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="A TOML file with a table [vm.NAME] per VM, perhaps [mqtt]."
        ),
    ] = None,
    target: Annotated[
        int | None,
        typer.Option(
            parser=size_argument, metavar="SIZE", help="What guests should have at start."
        ),
    ] = None,
    inflate_rate: Annotated[
        int,
        typer.Option(
            parser=rate_argument,
            metavar="SIZE",
            help="What guests give up each second at most; 0: no limit.",
        ),
    ] = 0,
    inhibit: Annotated[
        bool,
        typer.Option(
            "--inhibit", help="Give nothing back: the guests' memory is pinned (VFIO devices)."
        ),
    ] = False,
    memory: Annotated[
        int | None,
        typer.Option(
            parser=size_argument, metavar="SIZE", help="The machine's size, if QEMU does not tell."
        ),
    ] = None,
    deflate_on_oom: Annotated[
        bool, typer.Option(help="Guests may take memory back before they kill a process.")
    ] = False,
    free_page_reporting: Annotated[
        bool, typer.Option(help="Guests give free memory back on their own.")
    ] = True,
    free_page_hint: Annotated[
        bool, typer.Option(help="Guests can list their free memory on request.")
    ] = False,
    agent_blocks: Annotated[
        bool, typer.Option(help="The agent in the guest gives up whole blocks of 2 MiB.")
    ] = True,
    sweep_every: Annotated[
        float | None,
        typer.Option(
            min=MIN_SWEEP_SECONDS,
            max=MAX_SWEEP_SECONDS,
            metavar="SECONDS",
            help="Have the agent give free memory back this often, for guests whose kernel knows "
            "no free-page reporting.",
        ),
    ] = None,
    sweep_when_free: Annotated[
        int | None,
        typer.Option(
            parser=size_argument,
            metavar="SIZE",
            help="The same when so much has become free since the last time.",
        ),
    ] = None,
    stats_polling_interval: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Poll statistics; 0: on demand only.")
    ] = 0,
    transport: TransportName = "vhost-user",
    variant: Variant = "msix-mapped",
    socket_path: Annotated[
        Path | None,
        typer.Option(help="Where QEMU connects, instead of the runtime directory (one VM)."),
    ] = None,
    fd: Annotated[
        int | None,
        typer.Option(min=0, help="An inherited socket, instead of a path (one VM)."),
    ] = None,
    keeper: Annotated[
        str | None,
        typer.Option(
            metavar="parent|systemd|PATH",
            help="Who holds QEMU's connections: a parent process, systemd's file descriptor "
            "store, or a `ballast keeper` at PATH.",
            show_default=False,
        ),
    ] = None,
    no_keeper: Annotated[
        bool, typer.Option("--no-keeper", help="One process, whose end costs QEMU its balloon.")
    ] = False,
    keeper_timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for it to listen.")
    ] = 30.0,
    mqtt: Mqtt = None,
    qemu_qmp: Annotated[
        Path | None,
        typer.Option(
            metavar="SOCKET",
            help=(
                "A QMP socket of QEMU, for Ballast alone (one VM). The VM's qmp.sock then serves "
                "QEMU's commands and events too."
            ),
        ),
    ] = None,
    attach: Annotated[
        Path | None,
        typer.Option(
            metavar="SOCKET",
            help=(
                "A QMP socket of a QEMU that has its own virtio-balloon: manage that one, in the "
                "place of one of ours (one VM)."
            ),
        ),
    ] = None,
    device_id: Annotated[
        str, typer.Option(metavar="ID", help="The id of the balloon's device in QEMU.")
    ] = BALLOON_ID,
    print_capabilities: PrintCapabilities = False,
) -> None:
    """Serve the balloons of VMs until SIGTERM.

    Each VM has a runtime directory, `/run/ballast/VM` for root and
    `$XDG_RUNTIME_DIR/ballast/VM` for others, with the socket that QEMU connects to and a
    QMP socket for operators. `ballast launch VM --print-command` shows the QEMU command
    line that goes with it.

    Two processes do it: a *keeper*, small, which holds QEMU's connections, and a *worker*.
    When the worker crashes another one goes on, and guests do not notice. SIGHUP, or
    `ballast upgrade`, replaces it by the version that is installed by then.
    """
    if socket_path is not None and fd is not None:
        raise typer.BadParameter("--socket-path and --fd exclude each other")
    if keeper is not None and no_keeper:
        raise typer.BadParameter("--keeper and --no-keeper exclude each other")
    if keeper not in (None, "parent") and fd is not None:
        raise typer.BadParameter("an inherited --fd can be kept by a parent only")

    def load() -> list[VmConfig]:
        configs = configuration.load(config) if config else []
        options = {
            "target": target,
            "inflate_rate": inflate_rate,
            "inhibit": inhibit,
            "memory": memory,
            "deflate_on_oom": deflate_on_oom,
            "free_page_reporting": free_page_reporting,
            "free_page_hint": free_page_hint,
            "agent_blocks": agent_blocks,
            "sweep_every": sweep_every,
            "sweep_when_free": sweep_when_free,
            "stats_polling_interval": stats_polling_interval,
            "transport": transport,
            "variant": variant,
            "socket_path": socket_path,
            "fd": fd,
            "qemu_qmp": qemu_qmp,
            "device_id": device_id,
            "attach": attach,
        }
        configs += (configuration.make_vm_config(name, options) for name in vms or [])
        of_one = (socket_path, fd, qemu_qmp, attach)
        _check(configs, single=any(each is not None for each in of_one))
        return configuration.at_broker(configs, configuration.load_mqtt(config, mqtt))

    # A daemon says what it does, even if nobody asked for more than warnings.
    logging.getLogger("ballast").setLevel(logging.INFO)
    serve_kept(load, keeper=keeper, no_keeper=no_keeper, keeper_timeout_seconds=keeper_timeout)


def _check(configs: list[VmConfig], *, single: bool) -> None:
    names = [each.name for each in configs]
    if not names:
        raise typer.BadParameter("name at least one VM, or give --config")
    if len(set(names)) != len(names):
        raise OperatorError("a VM is named twice", hint="Each VM needs a name of its own.")
    if single and len(names) != 1:
        raise typer.BadParameter(
            "--socket-path, --fd, --qemu-qmp and --attach go with exactly one VM"
        )
