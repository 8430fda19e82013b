"""What a guest's kernel complains of, without what the emulated PC makes every kernel say."""

from __future__ import annotations

import re

from ballast_images.shell import GuestShell

COMMAND = "dmesg -r | grep -E '^<[0-4]>' || true"
"""The lines of the kernel's log from warnings upwards."""

_OF_THE_EMULATED_PC = re.compile(
    r"mtrr: your CPUs|ACPI: IRQ \d+ override|amd_pstate:|tsc: |clocksource: |hrtimer: |perf: |"
    r"APIC calibration "
)
"""Warnings that guests on an emulated q35 print whatever devices they have, many by chance."""


def complaints(log: str) -> list[str]:
    """Return the lines of a log that the machine itself does not explain."""
    return [line for line in log.splitlines() if not _OF_THE_EMULATED_PC.search(line)]


async def read_complaints(shell: GuestShell) -> list[str]:
    """Return what the guest's kernel has complained of since it booted.

    Raises:
        OperatorError: The guest does not answer.
    """
    return complaints((await shell.run(COMMAND)).stdout)
