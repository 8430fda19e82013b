"""`ballast soak`: everything goes wrong around a guest, which must not notice."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ballast.bench.rows import machine_facts
from ballast.cli.common import QemuPath, TransportName, console, write_text
from ballast.daemon.serve import unless_stopped
from ballast.soak.killing import Killing, Outcome, Plan, as_json
from ballast.soak.lab import Setup, lab
from ballast.soak.report import storm_verdict, table, verdict
from ballast.soak.storm import Storm, StormOutcome
from ballast_images.accelerator import accelerator
from ballast_images.guest import build_guest
from ballast_images.progress import ConsoleReporter, Reporter
from ballast_images.qemu import find_qemu


def soak(
    kill_worker: Annotated[
        int, typer.Option(min=0, metavar="N", help="Kill so many workers, one after the other.")
    ] = 0,
    stop_worker: Annotated[
        int, typer.Option(min=0, metavar="N", help="Stop so many for a while instead (SIGSTOP).")
    ] = 0,
    stop_seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="How long a stopped worker stays stopped.")
    ] = 10.0,
    agent_blocks: Annotated[
        bool,
        typer.Option(
            "--agent-blocks",
            help="Let the agent in the guest take blocks while workers are killed, and sweep; "
            "without it all memory goes through the rings.",
        ),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="M", help="Let a storm rage for so long, agent and all."),
    ] = None,
    transport: TransportName = "vhost-user",
    seed: Annotated[int, typer.Option(help="Where the random numbers begin.")] = 1,
    qemu: QemuPath = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the outcome as JSON.")
    ] = None,
) -> None:
    """Let everything go wrong around a guest that verifies its memory all the time.

    With --kill-worker: the guest inflates, deflates, reports free pages, reboots and is paused, and
    at a random moment of each the worker that serves its balloon is killed with SIGKILL; with
    --agent-blocks the agent in the guest takes most of it, in blocks of 2 MiB, and sweeps. With
    --minutes: several processes in the guest use and verify memory, its balloon is resized, free
    memory swept and compacted, and the agent in it killed at random.

    Afterwards the VM must be alive, the target reached, and the books equal, page for page, to what
    the guest's kernel marks as given up. Exit status 1 if anything is lost.
    """
    kills = kill_worker + stop_worker
    if bool(kills) == (minutes is not None):
        raise typer.BadParameter("give either --kill-worker and --stop-worker, or --minutes")
    if agent_blocks and minutes is not None:
        raise typer.BadParameter("--agent-blocks goes with --kill-worker; a storm has them anyway")
    reporter = ConsoleReporter()
    found = find_qemu(qemu, reporter=reporter)
    image = build_guest(reporter=reporter)
    accel = accelerator(found).name
    facts = machine_facts(accel, found.version, image.kernel_release)
    setup = Setup(found, image, accel, transport)
    result: dict[str, Any]
    if minutes is None:
        plan = Plan(kill_worker, stop_worker, stop_seconds, seed, agent_blocks)
        killed = asyncio.run(unless_stopped(_kill(setup, plan, reporter)))
        console.print(table(killed))
        console.print(verdict(killed), markup=False)
        result = as_json(killed, facts)
    else:
        storm = asyncio.run(unless_stopped(_storm(setup, minutes * 60, seed, reporter)))
        console.print(storm_verdict(storm), markup=False)
        result = storm.as_json(facts)
    if json_file is not None:
        write_text(json_file, json.dumps(result, indent=2) + "\n")
    if not result["ok"]:
        raise typer.Exit(1)


async def _kill(setup: Setup, plan: Plan, reporter: Reporter) -> Outcome:
    """Kill workers; all memory goes through the rings, unless the agent is to take blocks."""
    async with AsyncExitStack() as stack:
        with reporter.step("Booting the guest"):
            if not plan.agent_blocks:
                setup = replace(setup, serve_arguments=("--no-agent-blocks",))
            served = await stack.enter_async_context(lab(setup))
        what = f"Killing {plan.kills} workers over {setup.transport}"
        with reporter.step(what) as advance:
            return await Killing(served, plan, advance).run()


async def _storm(setup: Setup, seconds: float, seed: int, reporter: Reporter) -> StormOutcome:
    async with AsyncExitStack() as stack:
        with reporter.step("Booting the guest"):
            served = await stack.enter_async_context(lab(setup))
        what = f"A storm of {seconds / 60:g} minutes over {setup.transport}"
        with reporter.step(what) as advance:
            return await Storm(served, seconds, seed, advance).run()
