"""What operators see of a worker's end, and how they have it replaced."""

from __future__ import annotations

from ballast.qmp.registry import EVENTS, Context, EventDeclaration, command
from ballast_protocol.qmp.types import EMPTY, NUMBER, STRING, Member, Record, optional

EVENTS["BALLAST_RESTARTED"] = EventDeclaration(
    Record(
        (
            Member("reason", STRING, "How the process before this one ended."),
            Member(
                "gap-seconds",
                optional(NUMBER),
                "How long QEMU and the guest were not served; null if nobody knows.",
            ),
        )
    ),
    "Another process serves the VM; the one before has crashed or was replaced. The VM went on. "
    "Clients lose their connection, so those that connect within a minute get it too.",
    lasting_seconds=60.0,
)


@command("ballast-upgrade", returns=EMPTY)
async def ballast_upgrade(context: Context) -> object:
    """Replace the process that serves this VM, and others with it, by the version installed now.

    Answers at once; the connection ends if it succeeds. `keeper` in `ballast-status` tells what
    came of it: `upgrade-attempts` grows, and `upgrade-error` is empty or says why it failed.
    """
    context.vm.kept.upgrade()
    return {}
