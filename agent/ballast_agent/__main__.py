"""Command line of the guest agent."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import NoReturn

from ballast_agent import __version__
from ballast_agent.agent import Agent
from ballast_agent.channel import Device, Endpoint, NamedPort, UnixSocket
from ballast_agent.report import introduce, take_report
from ballast_agent.session import AgentSession
from ballast_agent.text import render
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest import MAX_INTERVAL_SECONDS, MIN_INTERVAL_SECONDS, PORT_NAME


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong use."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "run":
            _serve(options)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ballast-agent",
        description="Tells the host's Ballast daemon about this guest's memory.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run_options(commands.add_parser("run", help="talk to the host until stopped"))
    report = commands.add_parser("report", help="print what the host would be told, and exit")
    report.add_argument("--json", action="store_true", help="for programs")
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--port", metavar="NAME", default=PORT_NAME, help="virtio-serial port (%(default)s)"
    )
    way.add_argument("--device", metavar="PATH", help="character device of the port")
    way.add_argument(
        "--connect",
        metavar="unix:PATH",
        type=_unix_socket,
        help="the daemon's own agent.sock, where there is no QEMU in between",
    )
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_interval,
        help="time between reports to ask the host for (the host decides)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="what to write to standard error (%(default)s)",
    )


def _unix_socket(text: str) -> UnixSocket:
    scheme, _, path = text.partition(":")
    if scheme != "unix" or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form unix:PATH")
    return UnixSocket(path)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not MIN_INTERVAL_SECONDS <= seconds <= MAX_INTERVAL_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time from {MIN_INTERVAL_SECONDS:g} to {MAX_INTERVAL_SECONDS:g} s"
        )
    return seconds


def _endpoint(options: argparse.Namespace) -> Endpoint:
    if options.connect is not None:
        return UnixSocket(options.connect.path)
    if options.device is not None:
        return Device(options.device)
    return NamedPort(options.port)


def _serve(options: argparse.Namespace) -> None:
    logging.basicConfig(
        level=options.log_level.upper(), format="ballast-agent: %(levelname)s: %(message)s"
    )
    take_report()  # what this user may not read is better said now than to the host later
    session = AgentSession(introduce(interval_seconds=options.interval), take_report)
    agent = Agent(_endpoint(options), session)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    try:
        agent.run()
    finally:
        agent.close()
    logging.getLogger(__name__).info("stopped")


def _print_report(*, as_json: bool) -> None:
    report = take_report()
    print(json.dumps(asdict(report)) if as_json else render(report), flush=True)


if __name__ == "__main__":
    main()
