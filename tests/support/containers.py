"""The containers of docker/compose.yaml with a guest in them, and what is asked of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ballast_images.compose import Stack, read_project
from ballast_images.container_images import checkout
from ballast_images.engine import Engine
from ballast_protocol.errors import OperatorError, TimedOutError

VM = "web"
PATIENCE_SECONDS = 180.0
POLL_SECONDS = 0.5

_IN_GUEST = """
import asyncio, sys
from pathlib import Path
from ballast_images.shell import GuestShell

async def main(command, timeout_s):
    async with GuestShell.connected(Path("/run/ballast/web/shell.sock")) as shell:
        await shell.wait_ready(timeout_s=timeout_s)
        print((await shell.run(command, timeout_s=timeout_s)).stdout, end="")

asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


class Lab:
    """A guest whose QEMU is in one container and whose balloon is in another.

    Attributes:
        stack: The containers.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def guest(self, command: str, *, timeout_seconds: float = PATIENCE_SECONDS) -> str:
        """Run a command in the guest, and return what it prints."""
        words = ("python3", "-c", _IN_GUEST, command, str(timeout_seconds))
        return self.stack.run_inside("vm", *words, timeout_seconds=2 * timeout_seconds)

    def ballast(self, *arguments: str) -> str:
        """Run a command in the worker's container, and return what it prints."""
        return self.stack.run_inside(
            "balloon", "ballast", *arguments, timeout_seconds=PATIENCE_SECONDS
        )

    def status(self) -> Any:
        """Return what the worker says of the VM."""
        return json.loads(self.ballast("status", VM, "--json"))

    def resize(self, size: str) -> None:
        """Set a target and wait until the guest is there."""
        self.ballast("set", VM, size, "--wait", "--timeout", str(PATIENCE_SECONDS / 2))

    def wait_until(self, condition: Callable[[Any], bool], what: str) -> Any:
        """Ask for the status until it is as wanted; while no worker answers, go on asking."""
        deadline, last = time.monotonic() + PATIENCE_SECONDS, "nothing"
        while time.monotonic() < deadline:
            try:
                status = self.status()
                if condition(status):
                    return status
                last = json.dumps(status)
            except OperatorError as error:
                last = str(error)
            time.sleep(POLL_SECONDS)
        logs = "\n".join(self.stack.log(service)[-2000:] for service in ("vm", "balloon"))
        raise TimedOutError(f"this did not happen: {what}; the last answer: {last}\n{logs}")


@contextmanager
def running_lab(engine: Engine) -> Iterator[Lab]:
    """Start broker, worker and QEMU, and wait until the guest's balloon is there."""
    project = read_project(checkout() / "docker" / "compose.yaml")
    with Stack(engine, project, f"ballast-test-{os.getpid()}") as stack:
        for service in ("broker", "balloon", "vm"):
            stack.start(service)
        lab = Lab(stack)
        lab.wait_until(lambda status: status["actual-bytes"] is not None, "the guest's driver")
        yield lab
