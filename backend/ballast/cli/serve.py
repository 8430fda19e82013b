"""`ballast serve`: the daemon."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import typer

from ballast.cli.common import TransportName, Variant
from ballast.cli.serve_options import (
    AgentBlocks,
    Attach,
    BusyPoll,
    ConfigFile,
    DeflateOnOom,
    DeviceId,
    Fd,
    FreePageHint,
    FreePageReporting,
    InflateRate,
    Inhibit,
    Keeper,
    KeeperTimeout,
    Memory,
    Mqtt,
    NoKeeper,
    PrintCapabilities,
    QemuQmp,
    SocketPath,
    StatsPollingInterval,
    SweepEvery,
    SweepWhenFree,
    Target,
    Vms,
    Watchdog,
)
from ballast.daemon import config as configuration
from ballast.daemon.config import VmConfig
from ballast.daemon.worker import serve_kept
from ballast.qmp.qom import BALLOON_ID
from ballast_protocol.errors import OperatorError

_OF_ONE_VM = ("socket_path", "fd", "qemu_qmp", "attach")


def serve(
    vms: Vms = None,
    config: ConfigFile = None,
    target: Target = None,
    inflate_rate: InflateRate = 0,
    inhibit: Inhibit = False,
    memory: Memory = None,
    deflate_on_oom: DeflateOnOom = False,
    free_page_reporting: FreePageReporting = True,
    free_page_hint: FreePageHint = False,
    agent_blocks: AgentBlocks = True,
    sweep_every: SweepEvery = None,
    sweep_when_free: SweepWhenFree = None,
    stats_polling_interval: StatsPollingInterval = 0,
    transport: TransportName = "vhost-user",
    variant: Variant = "msix-mapped",
    socket_path: SocketPath = None,
    fd: Fd = None,
    keeper: Keeper = None,
    no_keeper: NoKeeper = False,
    keeper_timeout: KeeperTimeout = 30.0,
    watchdog: Watchdog = True,
    busy_poll_us: BusyPoll = 0,
    mqtt: Mqtt = None,
    qemu_qmp: QemuQmp = None,
    attach: Attach = None,
    device_id: DeviceId = BALLOON_ID,
    print_capabilities: PrintCapabilities = False,
) -> None:
    """Serve the balloons of VMs until SIGTERM.

    Each VM has a runtime directory, `/run/ballast/VM` for root and
    `$XDG_RUNTIME_DIR/ballast/VM` for others, with the socket that QEMU connects to and a
    QMP socket for operators. `ballast launch VM --print-command` shows the QEMU command
    line that goes with it.

    Two processes do it: a *keeper*, small, which holds QEMU's connections, and a *worker*.
    When the worker crashes or hangs another one goes on, and guests do not notice. SIGHUP, or
    `ballast upgrade`, replaces it by the version that is installed by then.
    """
    _check_keeping(socket_path, fd, keeper, no_keeper=no_keeper)
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

    def load() -> list[VmConfig]:
        return configuration.at_broker(
            _load(config, vms or [], options), configuration.load_mqtt(config, mqtt)
        )

    # A daemon says what it does, even if nobody asked for more than warnings.
    logging.getLogger("ballast").setLevel(logging.INFO)
    serve_kept(
        load,
        keeper=keeper,
        no_keeper=no_keeper,
        keeper_timeout_seconds=keeper_timeout,
        watchdog=watchdog,
        busy_poll_seconds=busy_poll_us / 1e6,
    )


def _check_keeping(
    socket_path: Path | None, fd: int | None, keeper: str | None, *, no_keeper: bool
) -> None:
    if socket_path is not None and fd is not None:
        raise typer.BadParameter("--socket-path and --fd exclude each other")
    if keeper is not None and no_keeper:
        raise typer.BadParameter("--keeper and --no-keeper exclude each other")
    if keeper not in (None, "parent") and fd is not None:
        raise typer.BadParameter("an inherited --fd can be kept by a parent only")


def _load(file: Path | None, names: list[str], options: dict[str, Any]) -> list[VmConfig]:
    """Return the VMs of a file, and those that were named, which have the options."""
    configs = configuration.load(file) if file else []
    configs += (configuration.make_vm_config(name, options) for name in names)
    _check(configs, single=any(options[name] is not None for name in _OF_ONE_VM))
    return configs


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
