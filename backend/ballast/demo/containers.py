"""The demo through containers: QEMU and a keeper in one, the worker in another, and a broker.

They are those of docker/compose.yaml. What the tour tells of the guest's memory, the kernel's own
account of QEMU's container must bear out: inflating lowers what that is charged for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ballast.demo.tour import DOES, Account, TourStep
from ballast_images.compose import Stack, read_project
from ballast_images.engine import Engine
from ballast_images.progress import Reporter
from ballast_protocol.errors import OperatorError

COMPOSE_FILE = Path("docker/compose.yaml")
VM = "web"

REQUIRED_SHARE = 0.8
"""How much of what the host gets back the charge of QEMU's container must fall by."""


@dataclass(frozen=True)
class ChargedStep:
    """A step of the tour, and what QEMU's container was charged for before and after it."""

    step: TourStep
    before_bytes: int
    after_bytes: int

    @property
    def ok(self) -> bool:
        """Whether the charge followed the host's figure; only a fall is asked for."""
        fell = self.step.before.host_bytes - self.step.after.host_bytes
        if self.step.name != "shrink":
            return self.step.ok
        return self.step.ok and self.before_bytes - self.after_bytes >= fell * REQUIRED_SHARE


def run_in_containers(engine: Engine, root: Path, reporter: Reporter) -> list[ChargedStep]:
    """Start the containers, take the tour, and end them in order.

    Raises:
        OperatorError: A container fails.
    """
    project = read_project(root / COMPOSE_FILE)
    with ended_by_sigterm(), Stack(engine, project, f"ballast-demo-{os.getpid()}") as stack:
        with reporter.step(f"Starting broker, worker and QEMU with {engine.name}"):
            for service in ("broker", "balloon", "vm"):
                stack.start(service)
        try:
            steps = list(_tour(stack, reporter))
        except OperatorError as error:
            raise OperatorError(f"{error}\n{_last_words(stack)}", hint=error.hint) from error
        with reporter.step("Ending them by SIGTERM: QEMU first"):
            statuses = {service: stack.end(service) for service in ("vm", "balloon", "broker")}
        if bad := {service: status for service, status in statuses.items() if status}:
            raise OperatorError(f"containers ended badly: {bad}\n{_last_words(stack)}")
    return steps


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end what is done here as Ctrl-C does: with everything removed."""

    def end(number: int, frame: object) -> NoReturn:
        raise OperatorError(f"stopped by {signal.Signals(number).name}")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tour(stack: Stack, reporter: Reporter) -> Iterator[ChargedStep]:
    """Run the tour in a container of its own; read the charge whenever it says something."""
    command = stack.command("tour", "--rm", command=["demo", f"--vm={VM}", "--json=-"])
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        before = 0
        with reporter.step("The guest boots"):
            line = process.stdout.readline()
        while line:
            event = json.loads(line)
            now = stack.charged_bytes("vm")
            if "begins" in event:
                before = now
                with reporter.step(DOES[event["begins"]]):
                    line = process.stdout.readline()
            else:
                yield ChargedStep(_step(event), before, now)
                line = process.stdout.readline()
        said = process.stderr.read()
    if process.returncode != 0:
        raise OperatorError(f"the tour ended with status {process.returncode}: {said.strip()}")


def _step(values: dict[str, Any]) -> TourStep:
    before, after = Account(**values.pop("before")), Account(**values.pop("after"))
    return TourStep(before=before, after=after, **values)


def _last_words(stack: Stack) -> str:
    """Return the end of what each container has said."""
    return "\n".join(
        f"{service}:\n" + "\n".join(stack.log(service).splitlines()[-10:])
        for service in ("vm", "balloon", "broker")
    )
