"""`python -m ballast.keeper`: what `ballast serve` and `ballast keeper` become.

The command line is checked there; what is left for here is small, and so is the process.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from ballast.keeper.keeper import Keeper
from ballast.keeper.logs import say
from ballast.keeper.loop import Loop
from ballast.keeper.service import Service
from ballast.keeper.supervisor import Supervisor
from ballast.keeper.vault import Vault
from ballast_protocol.errors import OperatorError

RESERVED_FDS = 512
"""For channels, log, and descriptors on their way to a worker."""


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ballast.keeper", description=__doc__)
    parser.add_argument("--socket", type=Path, help="wait for workers there")
    parser.add_argument("--adopt", type=int, metavar="FD", help="channel of a worker that serves")
    parser.add_argument(
        "--hold", action="append", default=[], metavar="NAME=FD", help="an inherited descriptor"
    )
    parser.add_argument("command", nargs="*", help="what starts a worker")
    return parser.parse_args(arguments)


def _limit() -> int:
    """Allow as many open files as we may; return how many descriptors can be held."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(hard - RESERVED_FDS, hard // 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep until told to stop; return the exit status."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    loop = Loop()
    keeper = Keeper(loop, Vault(_limit()))
    for each in options.hold:
        name, _, fd = each.rpartition("=")
        keeper.put(name, int(fd))
    if options.socket is not None:
        try:
            Service(keeper, options.socket).start()
        except OperatorError as error:
            say(f"{error}. {error.hint}")
            return 1
    else:
        supervisor = Supervisor(keeper, options.command)
        if options.adopt is not None:
            supervisor.adopt(options.adopt)
        else:
            supervisor.start()
    return loop.run()


if __name__ == "__main__":
    sys.exit(main())
