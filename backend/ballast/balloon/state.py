"""What a successor in another process has to know of a balloon device.

Not in here: the ledger, which has shared memory of its own; `actual`, which changes with every
buffer and so has a cell of its own; and the target, which is its governor's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ballast.balloon.device import BalloonDevice
from ballast.balloon.hinting import HintingRound


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device between two messages.

    Attributes:
        driver_features: Feature bits that the driver accepted.
        is_running: Whether a driver is at work.
        was_started: Whether one has ever been.
        ram_bytes: The machine's size.
        poison: What the driver fills free pages with.
        poison_written: What the next one has said that it will.
        hint_command: The id of the last round of hints.
        is_hinting: Whether that round is under way.
        statistics: What the guest last sent, by tag.
        statistics_update: When that was, in seconds since 1970.
        statistics_held: Whether their buffer is held.
    """

    driver_features: int = 0
    is_running: bool = False
    was_started: bool = False
    ram_bytes: int = 0
    poison: int = 0
    poison_written: int | None = None
    hint_command: int = 0
    is_hinting: bool = False
    statistics: dict[int, int] = field(default_factory=dict)
    statistics_update: int = 0
    statistics_held: bool = False


def revision(device: BalloonDevice) -> object:
    """Return something that is equal as long as `save` returns the same; it costs little."""
    poison, statistics = device.poison, device.statistics
    return (
        device.driver_features,
        device.is_running,
        device.was_started,
        device.ram_bytes,
        poison.value,
        poison.written,
        device.hinting.command_id,
        device.hinting.state,
        statistics.updates,
        statistics.held_head,
        statistics.is_repeat_due,
    )


def save(device: BalloonDevice) -> DeviceState:
    """Return what a successor needs, beside ledger and cells."""
    statistics = device.statistics
    return DeviceState(
        driver_features=device.driver_features,
        is_running=device.is_running,
        was_started=device.was_started,
        ram_bytes=device.ram_bytes,
        poison=device.poison.value,
        poison_written=device.poison.written,
        hint_command=device.hinting.command_id,
        is_hinting=device.is_hinting,
        statistics=statistics.values,
        statistics_update=statistics.last_update,
        statistics_held=statistics.held_head is not None or statistics.is_repeat_due,
    )


def restore(device: BalloonDevice, state: DeviceState) -> None:
    """Have a new device go on where a predecessor's has stopped; nobody is told."""
    device.accept(state.driver_features)
    device.is_running, device.was_started = state.is_running, state.was_started
    if not device.ram_is_fixed:
        device.ram_bytes = state.ram_bytes
    device.poison.value, device.poison.written = state.poison, state.poison_written
    device.hinting = HintingRound.after(state.hint_command, is_over=state.is_hinting)
    device.statistics.values = dict(state.statistics)
    device.statistics.last_update = state.statistics_update
    device.statistics.is_repeat_due = state.statistics_held
