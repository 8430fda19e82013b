"""`hold` and `inhibit`: what is switched on for a VM, with a reason, and off again."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from ballast.cli.common import JsonFlag, VmName, console, print_json, qmp_socket
from ballast.qmp import client as qmp

Release = Annotated[bool, typer.Option("--release", help="End it.")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why, for whoever meets it.")]


def hold(
    vm: VmName, reason: Reason = "", release: Release = False, as_json: JsonFlag = False
) -> None:
    """Freeze a VM's target: whatever would change it is refused, until it is released.

    A resize in progress ends. The guest keeps to what it is asked for at that moment.
    """
    asyncio.run(_switch(vm, "ballast-hold", enabled=not release, reason=reason))
    said = "the target can be changed again" if release else "the target is on hold"
    _say(vm, "hold", said, enabled=not release, as_json=as_json)


def inhibit(
    vm: VmName, reason: Reason = "", release: Release = False, as_json: JsonFlag = False
) -> None:
    """Give nothing of a VM's memory back to the host, until that is released.

    For VMs whose memory is pinned: a VFIO device that is passed through goes on using the pages
    that were given back, and the guest's data goes astray. Switch this on before the device is
    plugged in. What the guest hands over meanwhile stays with the host afterwards too, until the
    guest has taken it back and hands it over again.
    """
    asyncio.run(_switch(vm, "ballast-inhibit", enabled=not release, reason=reason))
    said = "memory is given back again" if release else "no memory is given back to the host"
    _say(vm, "inhibit", said, enabled=not release, as_json=as_json)


async def _switch(vm: str, command: str, *, enabled: bool, reason: str) -> None:
    if not enabled and reason:
        raise typer.BadParameter("--release takes no reason")
    async with qmp.connect(qmp_socket(vm)) as client:
        await client.execute(command, {"enabled": enabled, "reason": reason})


def _say(vm: str, name: str, said: str, *, enabled: bool, as_json: bool) -> None:
    if as_json:
        print_json({"name": vm, name: enabled})
    else:
        console.print(f"{vm}: {said}", markup=False, highlight=False)
