"""The commands that move a guest's target, hold it, and keep memory from being given back."""

from __future__ import annotations

from typing import Annotated, Literal

from ballast.policy.resize import (
    DEFAULT_STALL_SECONDS,
    DEFAULT_TIMEOUT_SECONDS,
    OnFailure,
    ResizeRequest,
)
from ballast.qmp import target_results as results
from ballast.qmp.registry import EVENTS, Context, EventDeclaration, command
from ballast_protocol.qmp import RefusedError
from ballast_protocol.qmp.types import EMPTY

EVENTS["BALLAST_RESIZE_PROGRESS"] = EventDeclaration(
    results.RESIZE_PROGRESS,
    "A resize makes progress, or the guest does something else about it. At most one a second.",
    1.0,
)
EVENTS["BALLAST_RESIZE_DONE"] = EventDeclaration(
    results.RESIZE_RESULT,
    "A resize has ended, whatever came of it. Exactly one for each, after all of its progress.",
    ends="BALLAST_RESIZE_PROGRESS",
)


@command(
    "ballast-resize",
    returns=results.RESIZE_ANSWER,
    answers_late=lambda arguments: arguments.get("wait") is True,
)
async def ballast_resize(
    context: Context,
    *,
    value: Annotated[int, "The logical size wanted, in bytes; more than the RAM means all of it."],
    timeout: Annotated[  # noqa: ASYNC109 - the name is the protocol's
        float, "Seconds that it may take; else 60."
    ] = DEFAULT_TIMEOUT_SECONDS,
    rate: Annotated[
        int | None, "Bytes that the guest gives up each second at most; 0: no limit. Else the VM's."
    ] = None,
    stall_timeout: Annotated[
        float, "Seconds without progress that end it; 0: only `timeout` does. Else 10."
    ] = DEFAULT_STALL_SECONDS,
    on_failure: Annotated[
        Literal["keep", "settle", "rollback"],
        "What holds if the target is not reached: the target (`keep`, the default), the size that "
        "the guest has got to (`settle`), or the target from before (`rollback`).",
    ] = "keep",
    wait: Annotated[bool, "Answer with the result when there is one. Not by default."] = False,
) -> object:
    """Ask the guest for a logical size, and find out what comes of it.

    Answers with an `id` at once; the result comes as `BALLAST_RESIZE_DONE`. With `wait` the answer
    itself is the result. If that command has an `id` member, it is answered when it is done and
    the client's later commands go before it; without one they wait, as replies could not be told
    apart. A resize that does not reach its target is an answer, not an error: look at `result`.
    A client that leaves does not end its resize.
    """
    request = ResizeRequest(
        target_bytes=value,
        timeout_seconds=timeout,
        stall_seconds=stall_timeout,
        rate_bytes=rate,
        on_failure=OnFailure(on_failure),
    )
    if not wait:
        return {"id": context.vm.governor.start_resize(request)}
    return (await context.vm.governor.resize(request)).as_dict()


@command("ballast-resize-cancel", returns=results.RESIZE_RESULT)
async def ballast_resize_cancel(
    context: Context,
    *,
    id: Annotated[int | None, "Only if it is this one that is in progress."] = None,
    rollback: Annotated[
        bool, "Return to the target from before. Else the guest stays at the size it has."
    ] = False,
) -> object:
    """End the resize that is in progress, and return its result."""
    governor = context.vm.governor
    current = governor.current_resize
    if id is not None and id != current:
        raise RefusedError(f"resize {id} is not in progress")
    return governor.cancel(OnFailure.ROLLBACK if rollback else OnFailure.SETTLE).as_dict()


Reason = Annotated[str, "Why, for whoever meets it."]


@command("ballast-hold", returns=EMPTY)
async def ballast_hold(
    context: Context,
    *,
    enabled: Annotated[bool, "Whether the target is held."],
    reason: Reason = "",
) -> object:
    """Freeze the target: every change is refused until it is released.

    A resize in progress ends with the result `held`, and the guest stays at what it is asked for at
    that moment. The guest may still take memory back on its own (`deflate-on-oom`).
    """
    context.vm.governor.hold(reason if enabled else None)
    return {}


@command("ballast-inhibit", returns=EMPTY)
async def ballast_inhibit(
    context: Context,
    *,
    enabled: Annotated[bool, "Whether memory is kept."],
    reason: Reason = "",
) -> object:
    """Give nothing back to the host, because something has pinned the guest's memory.

    VFIO devices do. As in QEMU, whose own balloon does so without being told: pages that the guest
    hands over are entered in the books and kept. They are not given back afterwards either; have
    the guest take them back and hand them over again. Shrinking by `ballast-resize` is refused
    meanwhile.
    """
    context.vm.governor.inhibit(reason if enabled else None)
    return {}
