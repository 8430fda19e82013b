"""Command line of the guest agent."""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

from ballast_agent import __version__
from ballast_agent.agent import Agent
from ballast_agent.blocks.linux import LinuxKernel
from ballast_agent.blocks.manager import BlockManager
from ballast_agent.blocks.options import BlockOptions
from ballast_agent.blocks.psi import StallAlarm
from ballast_agent.channel import (
    VSOCK_PORT,
    Device,
    Endpoint,
    FirstOf,
    NamedPort,
    UnixSocket,
    Vsock,
)
from ballast_agent.install import Installer
from ballast_agent.options import byte_count, duration, unix_socket, vsock_address
from ballast_agent.protect import protect
from ballast_agent.report import introduce, take_report
from ballast_agent.session import AgentSession
from ballast_agent.text import render
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import (
    ABILITY_BLOCKS,
    MAX_INTERVAL_SECONDS,
    MIN_INTERVAL_SECONDS,
    PORT_NAME,
)
from ballast_protocol.guest_blocks import (
    BLOCK_BYTES,
    MAX_SWEEP_SECONDS,
    MIN_SWEEP_SECONDS,
    SetSweeps,
)
from ballast_protocol.guest_framing import MAX_REQUEST_ID


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong use."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        if options.command == "run":
            _serve(options)
        elif options.command == "install":
            _install(options)
        else:
            _print_report(as_json=options.json)
    except OperatorError as error:
        hint = f" ({error.hint})" if error.hint else ""
        print(f"ballast-agent: {error}{hint}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads the report has seen enough; the interpreter must not flush into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


_DESCRIPTION = """\
Tells the host's Ballast daemon about this guest's memory, and lends it what the guest does not
need: whole blocks of 2 MiB, reported to the host, which frees what is behind them. The guest gets
them back within a moment when it is short of memory, whether or not the host is there."""

_RUN_NOTES = """\
The agent runs as root. Blocks are huge pages of the kernel's pool: a guest that uses huge pages
itself is left alone (see `dmesg` and the agent's log for the reason), and so is one with virtio-mem
or CMA. When the agent is stopped it gives everything back; when it is killed, its blocks stay
isolated until the next one finds them, so let your service manager restart it.

examples:
  ballast-agent run
  ballast-agent run --reserve 512M --sweep-when-free 256M
  ballast-agent run --no-blocks          only report, and give back what another agent left"""


_INSTALL_NOTES = """\
The agent, if it is one file, is copied to /usr/local/sbin/ballast-agent.

examples:
  ballast-agent.pyz install --now
  ballast-agent.pyz install --init openrc --root /mnt/image -- --reserve 512M
  ballast-agent install --remove"""


def make_parser() -> argparse.ArgumentParser:
    """Return what reads the command line; its manual page is made from it."""
    parser = argparse.ArgumentParser(prog="ballast-agent", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser(
        "run",
        help="talk to the host until stopped",
        epilog=_RUN_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_channel_options(run_parser)
    _add_block_options(run_parser)
    report = commands.add_parser("report", help="print what the host would be told, and exit")
    report.add_argument("--json", action="store_true", help="for programs")
    _add_install(commands)
    return parser


def _add_install(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "install",
        help="install the agent as a service of systemd or OpenRC",
        epilog=_INSTALL_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--init",
        choices=("auto", "systemd", "openrc"),
        default="auto",
        help="whose service (%(default)s: whichever is there)",
    )
    parser.add_argument(
        "--root", metavar="DIR", type=Path, default=Path("/"), help="install into an image"
    )
    parser.add_argument("--now", action="store_true", help="start it too, now and at every boot")
    parser.add_argument("--remove", action="store_true", help="remove what install has written")
    parser.add_argument(
        "arguments", metavar="-- OPTION", nargs="*", help="options of `ballast-agent run`"
    )


def _add_channel_options(parser: argparse.ArgumentParser) -> None:
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--port",
        metavar="NAME",
        default=PORT_NAME,
        help="virtio-serial port (%(default)s); where there is none, vsock is tried",
    )
    way.add_argument("--device", metavar="PATH", help="character device of the port")
    way.add_argument(
        "--vsock",
        metavar="[CID:]PORT",
        type=vsock_address,
        help=f"vsock port of the host (2:{VSOCK_PORT})",
    )
    way.add_argument(
        "--connect",
        metavar="unix:PATH",
        type=unix_socket,
        help="the daemon's own agent.sock, where there is no QEMU in between",
    )
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=duration(MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS),
        help="time between reports to ask the host for (the host decides)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="what to write to standard error (%(default)s)",
    )


def _add_block_options(parser: argparse.ArgumentParser) -> None:
    blocks = parser.add_argument_group("blocks of 2 MiB")
    blocks.add_argument(
        "--no-blocks", action="store_true", help="lend the host nothing, only report"
    )
    blocks.add_argument(
        "--reserve",
        metavar="SIZE",
        type=byte_count,
        help="available memory that is never lent (5%% of the guest's, 48M to 2G)",
    )
    blocks.add_argument(
        "--sweep-every",
        metavar="SECONDS",
        type=duration(MIN_SWEEP_SECONDS, MAX_SWEEP_SECONDS),
        help="show the host all free memory this often, until it asks for something else",
    )
    blocks.add_argument(
        "--sweep-when-free",
        metavar="SIZE",
        type=byte_count,
        help="the same when so much has become free",
    )
    blocks.add_argument(
        "--reclaim",
        action="store_true",
        help="give up page cache that has long been idle, little by little (off by default)",
    )


def _endpoint(options: argparse.Namespace) -> Endpoint:
    if options.connect is not None:
        return UnixSocket(options.connect)
    if options.device is not None:
        return Device(options.device)
    if options.vsock is not None:
        return Vsock(*options.vsock)
    return FirstOf((NamedPort(options.port), Vsock(VSOCK_PORT)))


def _block_options(options: argparse.Namespace) -> BlockOptions:
    when_free = options.sweep_when_free
    return BlockOptions(
        enabled=not options.no_blocks,
        reserve_bytes=options.reserve,
        sweeps=SetSweeps(
            options.sweep_every, None if when_free is None else max(when_free, BLOCK_BYTES)
        ),
        reclaim=options.reclaim,
    )


def _serve(options: argparse.Namespace) -> None:
    logging.basicConfig(
        level=options.log_level.upper(), format="ballast-agent: %(levelname)s: %(message)s"
    )
    take_report()  # what this user may not read is better said now than to the host later
    hello = introduce(interval_seconds=options.interval)
    session = AgentSession(
        replace(hello, abilities=(*hello.abilities, ABILITY_BLOCKS)), take_report
    )
    agent = Agent(_endpoint(options), session, StallAlarm())
    session.blocks = BlockManager(
        LinuxKernel(),
        session.send,
        agent.worker,
        _block_options(options),
        first_id=random.randrange(1, MAX_REQUEST_ID),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    protect()
    session.blocks.start(time.monotonic())
    try:
        agent.run()
    finally:
        agent.close()
    logging.getLogger(__name__).info("stopped")


def _install(options: argparse.Namespace) -> None:
    installer = Installer(options.root, options.init)
    if options.remove:
        for path in installer.remove():
            print(f"removed {path}")
        return
    make_parser().parse_args(["run", *options.arguments])  # what `run` refuses is refused here
    for path in installer.install(options.arguments):
        print(f"wrote {path}")
    if options.now:
        installer.start()
        print("started")


def _print_report(*, as_json: bool) -> None:
    report = take_report()
    print(json.dumps(asdict(report)) if as_json else render(report), flush=True)


if __name__ == "__main__":
    main()
