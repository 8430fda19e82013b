"""`ballast soak`: everything goes wrong around a guest, which must not notice."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer

from ballast.bench.rows import machine_facts
from ballast.cli.common import QemuPath, TransportName, console, write_text
from ballast.daemon.serve import unless_stopped
from ballast.soak.killing import Killing, Outcome, Plan, as_json
from ballast.soak.lab import Setup, lab
from ballast.soak.report import table, verdict
from ballast_images.accelerator import accelerator
from ballast_images.guest import build_guest
from ballast_images.progress import ConsoleReporter
from ballast_images.qemu import find_qemu


def soak(
    kill_worker: Annotated[
        int, typer.Option(min=0, metavar="N", help="Kill so many workers, one after the other.")
    ] = 20,
    stop_worker: Annotated[
        int, typer.Option(min=0, metavar="N", help="Stop so many for a while instead (SIGSTOP).")
    ] = 0,
    stop_seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="How long a stopped worker stays stopped.")
    ] = 10.0,
    transport: TransportName = "vhost-user",
    seed: Annotated[int, typer.Option(help="Where the random numbers begin.")] = 1,
    qemu: QemuPath = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the outcome as JSON.")
    ] = None,
) -> None:
    """Kill the backend's worker again and again under a guest that verifies its memory.

    A stock guest inflates, deflates, reports free pages, reboots and is paused; a process in it
    holds memory and compares every byte all the time. At a random moment of each, the worker that
    serves its balloon is killed with SIGKILL. Afterwards the VM must be alive, the target reached,
    and the books equal to what the guest's kernel marks as ballooned, page for page. Exit status 1
    if anything is lost.
    """
    if not kill_worker + stop_worker:
        raise typer.BadParameter("nothing to do: give --kill-worker or --stop-worker")
    reporter = ConsoleReporter()
    found = find_qemu(qemu, reporter=reporter)
    image = build_guest(reporter=reporter)
    accel = accelerator(found).name
    setup = Setup(found, image, accel, transport)
    plan = Plan(kill_worker, stop_worker, stop_seconds, seed)

    async def run() -> Outcome:
        async with AsyncExitStack() as stack:
            with reporter.step("Booting the guest"):
                served = await stack.enter_async_context(lab(setup))
            with reporter.step(f"Killing {kill_worker} workers over {transport}") as advance:
                return await Killing(served, plan, advance).run()

    outcome = asyncio.run(unless_stopped(run()))
    console.print(table(outcome))
    console.print(verdict(outcome), markup=False)
    if json_file is not None:
        facts = machine_facts(accel, found.version, image.kernel_release)
        write_text(json_file, json.dumps(as_json(outcome, facts), indent=2) + "\n")
    if not outcome.is_ok:
        raise typer.Exit(1)
