"""What a VM has to offer for its QMP socket to work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ballast.policy.resize import OnFailure, ResizeRequest
from ballast.policy.result import ResizeResult


class GuestStats(Protocol):
    """The newest memory statistics of a guest."""

    @property
    def values(self) -> Mapping[int, int]:
        """By tag (`ballast_protocol.virtio.balloon.STATISTICS`); only what the guest sent."""

    @property
    def last_update(self) -> int:
        """When they came, in seconds since the Unix epoch; 0 if none ever did."""


class BlocksControl(Protocol):
    """What the agent in a VM's guest takes in blocks of 2 MiB. All sizes are in bytes."""

    async def sweep(self, node: int | None, timeout_seconds: float) -> Mapping[str, object]:
        """Have the agent report what is free, on one NUMA node or all; return what came of it.

        Raises:
            OperatorError: There is no agent that takes blocks, or it refuses.
            TimedOutError: It was not done in time.
        """

    async def compact(self, node: int | None, timeout_seconds: float) -> Mapping[str, object]:
        """Have the guest's kernel move its pages together; return what came of it.

        Raises:
            OperatorError: There is no agent that can have it done, or it refuses.
            TimedOutError: It was not done in time.
        """

    def nodes(self) -> Sequence[Mapping[str, object]]:
        """Return what is known of each of the guest's NUMA nodes, ready for JSON."""

    def set_share(self, node: int, size_bytes: int) -> None:
        """Have a NUMA node contribute so much of the target before others do.

        Raises:
            OperatorError: There can be no such node or share.
        """

    def runs(self) -> Iterable[tuple[int, int]]:
        """Return the pages of all blocks that are held: first page frame, and count."""


class TargetControl(Protocol):
    """The size that one VM's guest shall have, and how it gets there. All sizes are in bytes."""

    @property
    def current_resize(self) -> int | None:
        """The number of the resize in progress; None if none is."""

    def start_resize(self, request: ResizeRequest) -> int:
        """Set a target, watch what comes of it, and return the resize's number at once.

        Raises:
            OperatorError: The target is on hold, or this cannot be asked for.
        """

    async def resize(self, request: ResizeRequest) -> ResizeResult:
        """Start a resize and return what came of it; if this is cancelled, the resize goes on.

        Raises:
            OperatorError: As `start_resize`.
        """

    async def wait(self, number: int) -> ResizeResult:
        """Return what came, or comes, of a resize.

        Raises:
            OperatorError: It is not known.
        """

    def cancel(self, then: OnFailure) -> ResizeResult:
        """End the resize that is in progress.

        Raises:
            OperatorError: None is.
        """

    def hold(self, reason: str | None) -> None:
        """Freeze the target for a reason, or release it with None."""

    def inhibit(self, reason: str | None) -> None:
        """Give nothing back to the host for a reason, or do again with None.

        Raises:
            OperatorError: That is not ours to decide for this VM.
        """

    def status(self) -> Mapping[str, object]:
        """Return everything there is to know of the target, ready for JSON."""


class KeeperControl(Protocol):
    """Who holds a VM's descriptors beyond the life of the process that serves it."""

    def status(self) -> Mapping[str, object]:
        """Return everything there is to know of it, ready for JSON."""

    def upgrade(self) -> None:
        """Have this process replaced by the version that is installed now.

        Raises:
            OperatorError: Nobody can do that.
        """


class BalloonControl(Protocol):
    """One VM's balloon, as the operators' interfaces see it. All sizes are in bytes."""

    @property
    def name(self) -> str:
        """The VM's name."""

    @property
    def kept(self) -> KeeperControl:
        """Who holds its descriptors."""

    @property
    def ram_bytes(self) -> int | None:
        """The guest's whole RAM, or None until the front-end has shared it."""

    @property
    def target_bytes(self) -> int | None:
        """The logical size in force: clamped to the RAM, in whole pages; None if never set."""

    @property
    def actual_bytes(self) -> int | None:
        """The logical size that the guest says it has, or None until its driver is active."""

    @property
    def guest_stats(self) -> GuestStats:
        """The newest statistics."""

    @property
    def stats_age_seconds(self) -> float | None:
        """How old they are, by a clock that nobody sets; None if none ever came."""

    @property
    def stats_polling_interval(self) -> int:
        """Seconds between two polls for statistics; 0 means that nobody polls."""

    @stats_polling_interval.setter
    def stats_polling_interval(self, seconds: int) -> None: ...

    @property
    def governor(self) -> TargetControl:
        """What decides about the target; `set_target` goes through it."""

    def set_target(self, target_bytes: int) -> None:
        """Ask the guest for a logical size; remembered if its driver is not there yet.

        Raises:
            OperatorError: This size cannot be asked for, or the target is on hold.
        """

    async def refresh_stats(self, timeout_seconds: float) -> None:
        """Ask the guest for statistics, and return when they are in `guest_stats`.

        Raises:
            OperatorError: The guest's driver does not offer statistics.
            TimedOutError: The guest did not answer in time.
        """

    def status(self) -> Mapping[str, object]:
        """Return everything else there is to know, ready for JSON, under `kebab-case` names."""

    def ledger_runs(self) -> Sequence[tuple[int, int]]:
        """Return the pages that the guest's kernel has given up: first page frame, and count."""

    @property
    def blocks(self) -> BlocksControl | None:
        """What the agent in the guest takes; None if this balloon has no agent to help it."""

    def start_hinting(self) -> None:
        """Start a round of free page hinting.

        Raises:
            OperatorError: The guest's driver has not negotiated hinting.
        """

    def stop_hinting(self) -> None:
        """End the round of free page hinting, so that the guest takes its pages back."""

    async def request_agent_report(self, timeout_seconds: float) -> Mapping[str, object]:
        """Ask the agent in the guest for a fresh memory report, and return it.

        Raises:
            OperatorError: No agent is connected.
            TimedOutError: The agent did not answer in time.
        """
