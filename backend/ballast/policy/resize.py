"""A resize: what is asked for, what is seen meanwhile, and how it can end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ballast_protocol.errors import OperatorError

PAGE_BYTES = 4096
"""The balloon's unit (virtio 5.5)."""

MAX_BALLOON_PAGES = (1 << 32) - 1
"""What `num_pages` can hold."""

LARGEST_GUEST_PAGE_BYTES = 64 << 10
"""A guest with larger pages than 4 KiB gives up whole pages, so up to one page more than asked."""

DEFAULT_TIMEOUT_SECONDS = 60.0
DEFAULT_STALL_SECONDS = 10.0
"""Fifty attempts of Linux's driver, which tries again every 0.2 s when it found no page."""

MAX_SECONDS = 7 * 24 * 3600.0
"""The longest time-out that is accepted: a week."""


class Outcome(Enum):
    """Why a resize ended, by the names that operators see."""

    REACHED = "reached"
    TIMED_OUT = "timed-out"
    STALLED = "stalled"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    INHIBITED = "inhibited"
    HELD = "held"
    DISCONNECTED = "disconnected"


class OnFailure(Enum):
    """What holds after a resize that did not reach its target.

    `KEEP`: the target, and the guest may still get there. `SETTLE`: the size that the guest has got
    to, so that it stops trying. `ROLLBACK`: the target from before.
    """

    KEEP = "keep"
    SETTLE = "settle"
    ROLLBACK = "rollback"


class GuestState(Enum):
    """What the guest is doing about its target."""

    SETTLED = "settled"
    MOVING = "moving"
    SLOW = "slow"
    STALLED = "stalled"
    PAUSED = "paused"
    NO_DRIVER = "waiting-for-driver"
    NO_QEMU = "waiting-for-qemu"


@dataclass(frozen=True)
class Observation:
    """What is known of the guest at one moment. Sizes are logical ones, in bytes.

    Attributes:
        is_connected: A VMM is there.
        is_running: A driver is at work: there, and not paused.
        ram_bytes: The machine's size; None if unknown.
        actual_bytes: The size that the guest says it has; None before its driver ever ran.
        attempts: How often the driver has told its size, unchanged ones too; None if that cannot be
            seen.
    """

    is_connected: bool = False
    is_running: bool = False
    ram_bytes: int | None = None
    actual_bytes: int | None = None
    attempts: int | None = None


@dataclass(frozen=True)
class ResizeRequest:
    """What an operator asks for.

    Attributes:
        target_bytes: The size that the guest should have; more than its RAM means all of it.
        timeout_seconds: How long it may take in all.
        stall_seconds: How long the guest may make no progress before it is given up; 0 means that
            only the time-out counts.
        rate_bytes: How much the guest is asked to give up each second at most; 0 for no limit, None
            for the VM's own limit.
        on_failure: What holds if the target is not reached.
    """

    target_bytes: int
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    stall_seconds: float = DEFAULT_STALL_SECONDS
    rate_bytes: int | None = None
    on_failure: OnFailure = OnFailure.KEEP

    def check(self) -> None:
        """Check that this can be asked for.

        Raises:
            OperatorError: It cannot.
        """
        check_target(self.target_bytes)
        # Written so that NaN fails too.
        if not 0 < self.timeout_seconds <= MAX_SECONDS:
            raise OperatorError(f"a resize takes more than 0 and at most {MAX_SECONDS:.0f} seconds")
        if not 0 <= self.stall_seconds <= MAX_SECONDS:
            raise OperatorError(f"a guest may stall for at most {MAX_SECONDS:.0f} seconds")
        if self.rate_bytes is not None and self.rate_bytes < 0:
            raise OperatorError("a rate is a number of bytes per second, or 0 for no limit")


def check_target(target_bytes: int) -> None:
    """Check that a guest can have a size.

    Raises:
        OperatorError: It is not positive.
    """
    if target_bytes <= 0:
        raise OperatorError(f"a guest cannot have {target_bytes} bytes of memory")


def attainable(target_bytes: int | None, ram_bytes: int | None) -> int | None:
    """Return the size that a guest of `ram_bytes` ends up with; None if neither size is known.

    It is clamped to the machine's size, and what is given up is a whole number of 4 KiB pages.
    """
    if target_bytes is None or ram_bytes is None:
        return ram_bytes if target_bytes is None else target_bytes
    pages = min(max(ram_bytes - target_bytes, 0) // PAGE_BYTES, MAX_BALLOON_PAGES)
    return ram_bytes - pages * PAGE_BYTES


def is_there(actual_bytes: int | None, wanted_bytes: int | None) -> bool:
    """Return whether a guest has a size, give or take a page of its own."""
    if actual_bytes is None or wanted_bytes is None:
        return False
    return 0 <= wanted_bytes - actual_bytes < LARGEST_GUEST_PAGE_BYTES
