"""What the guest's administrator has to say about blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from ballast_protocol.guest_blocks import SetSweeps


@dataclass(frozen=True)
class BlockOptions:
    """Options of the command line.

    Attributes:
        enabled: Whether blocks are taken at all.
        reserve_bytes: What is left to the guest; None for the default.
        sweeps: When to sweep without being asked, until the host says otherwise.
        reclaim: Whether page cache that has long been idle is given up little by little.
    """

    enabled: bool = True
    reserve_bytes: int | None = None
    sweeps: SetSweeps = field(default_factory=SetSweeps)
    reclaim: bool = False
