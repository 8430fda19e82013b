"""A function that is saved and restored, at any moment, goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ballast.virtio_pci.device import VirtioPci
from ballast.virtio_pci.effects import Effects, Interrupt
from ballast.virtio_pci.layout import CONFIG_REGION, Variant, make_layout
from ballast.virtio_pci.state import CommonState, QueueRegisters, VirtioPciState
from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.features import VirtioFeature
from ballast_protocol.virtio.pci.config_space import Command
from ballast_protocol.virtio.pci.structures import NO_VECTOR, Common, DeviceStatus, StructureType
from support.pci_driver import FEATURES, QUEUE_SIZE, QUEUES, Device, PciDriver, function

U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
SPACE_BYTES = 256


def successor(pci: VirtioPci, device: Device) -> VirtioPci:
    """Return what a new process makes of what the old one left, which is nothing but bytes."""
    saved = pci.save().pack()
    state = VirtioPciState.unpack(saved, pci.layout.config_space_size)
    assert state == pci.save()
    return VirtioPci(device, pci.layout, state=state)


# As bytes


@given(
    queues=st.lists(st.builds(QueueRegisters, U16, U16, st.booleans(), U64, U64, U64), max_size=6),
    registers=st.tuples(U8, U64, U32, U32, U16, U16, U8, st.booleans(), U8),
    space=st.binary(max_size=SPACE_BYTES),
)
def test_every_field_survives(
    queues: list[QueueRegisters], registers: tuple[Any, ...], space: bytes
) -> None:
    state = VirtioPciState(CommonState(queues, *registers), space.ljust(SPACE_BYTES, b"\0"))
    assert VirtioPciState.unpack(state.pack(), SPACE_BYTES) == state


@given(cut=st.integers(1, 10_000), longer=st.binary(min_size=1, max_size=4))
def test_bytes_of_another_length_are_refused(cut: int, longer: bytes) -> None:
    whole = function().save().pack()
    for wrong in (whole[:-cut], whole + longer):
        with pytest.raises(InternalError, match="not the saved state"):
            VirtioPciState.unpack(wrong, function().layout.config_space_size)


def test_a_longer_configuration_space_is_that_of_another_function() -> None:
    express, plain = function(flr=True), function(flr=False)
    with pytest.raises(InternalError, match="another function"):
        VirtioPci(
            Device(),
            plain.layout,
            state=VirtioPciState.unpack(express.save().pack(), plain.layout.config_space_size),
        )


# What cannot be that function's


def damaged(change: Callable[[CommonState], None]) -> VirtioPciState:
    pci = function()
    PciDriver(pci).start(with_msix=True)
    saved = pci.save()
    change(saved.common)
    return saved


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda common: common.queues.pop(), "number of queues"),
        (lambda common: setattr(common.queues[1], "size", 0), "size"),
        (lambda common: setattr(common.queues[1], "size", 96), "size"),
        (lambda common: setattr(common.queues[1], "size", 2 * QUEUE_SIZE), "size"),
        (lambda common: setattr(common.queues[2], "vector", QUEUES + 1), "interrupts"),
        (lambda common: setattr(common, "config_vector", QUEUES + 1), "interrupts"),
        (lambda common: setattr(common, "driver_features", FEATURES | 2), "features"),
    ],
)
def test_a_state_that_this_function_cannot_be_in(
    change: Callable[[CommonState], None], complaint: str
) -> None:
    layout = make_layout(Variant.MSIX, queue_count=QUEUES, config_size=16, has_function_reset=True)
    with pytest.raises(InternalError, match=complaint):
        VirtioPci(Device(), layout, state=damaged(change))


def test_features_that_a_driver_only_tries_are_not_looked_at() -> None:
    pci, device = function(), Device()
    PciDriver(pci).accept(FEATURES | 2)
    assert successor(pci, device).save() == pci.save()


# Every step of a driver's life


class _Relay(VirtioPci):
    """A function that is replaced by its successor before every access."""

    def renew(self) -> None:
        device = self._device
        assert isinstance(device, Device)
        self.__dict__.update(successor(self, device).__dict__)

    def read(self, region: int, offset: int, size: int) -> bytes:
        self.renew()
        return super().read(region, offset, size)

    def write(self, region: int, offset: int, data: bytes) -> Effects:
        self.renew()
        return super().write(region, offset, data)


def life(pci: VirtioPci, *, with_msix: bool) -> list[object]:
    """Return all that a driver sees, and all that a transport is told, from first to last."""
    driver = PciDriver(pci)
    seen: list[object] = [driver.structures, driver.capabilities]
    for _ in range(2):
        seen.append(driver.start(with_msix=with_msix))
        seen += [driver.notify(index) for index in range(QUEUES)]
        for raised in (pci.interrupt_for_queue(1), pci.config_changed()):
            seen += [raised, pci.is_intx_asserted, driver.isr(), driver.isr()]
        seen += [driver.get(Common.CONFIG_GENERATION), driver.read(StructureType.DEVICE, 0, 4)]
        seen += [driver.get(Common.CONFIG_GENERATION), pci.queue_state(2)]
        seen += [driver.set_command(Command.INTX_DISABLE), pci.interrupt_for_queue(0)]
        seen += [driver.set_command(Command.BUS_MASTER), pci.is_running, driver.isr()]
        data = driver.aim(0, Common.NUM_QUEUES.offset, 2)
        seen += [driver.config(data, 2), pci.needs_reset(), driver.get(Common.DEVICE_STATUS)]
        seen += [pci.is_running, driver.reset_function(), pci.save()]
    return seen


@pytest.mark.parametrize("variant", Variant)
def test_a_successor_at_every_step(variant: Variant) -> None:
    with_msix = variant is not Variant.INTX
    plain = function(variant)
    relay = _Relay(Device(), plain.layout)
    assert life(relay, with_msix=with_msix) == life(plain, with_msix=with_msix)


# Any accesses at all

REGIONS = st.sampled_from([0, 0, 0, 0, 1, 6, CONFIG_REGION, CONFIG_REGION, 8])
NEAR = st.builds(int.__add__, st.sampled_from([0, 0, 0x1000, 0x2000, 0x3000]), st.integers(0, 0x48))
OFFSETS = NEAR | st.integers(0, 0x100) | st.integers(0, 0x5000)
SIZES = st.sampled_from([1, 2, 4, 8]) | st.integers(0, 300)
VALUES = st.sampled_from([0, 1, 2, 3, 0xB, 0xF, QUEUE_SIZE, NO_VECTOR, 0xFFFF_FFFF]) | U64


class Twins(RuleBasedStateMachine):
    """One function goes on for good, the other is replaced now and then: nobody can tell."""

    @initialize(variant=st.sampled_from(Variant))
    def plug(self, variant: Variant) -> None:
        self.devices = Device(), Device()
        self.elder, self.younger = (function(variant, device) for device in self.devices)
        self.seen = self.elder.revision, self.elder.save()

    @rule()
    def replace(self) -> None:
        self.younger = successor(self.younger, self.devices[1])

    def both(self, act: Callable[[VirtioPci], bytes | Effects | Interrupt | None]) -> None:
        assert act(self.elder) == act(self.younger)

    @rule(region=REGIONS, offset=OFFSETS, size=SIZES)
    def read(self, region: int, offset: int, size: int) -> None:
        self.both(lambda pci: pci.read(region, offset, size))

    @rule(region=REGIONS, offset=OFFSETS, size=SIZES, value=VALUES)
    def write(self, region: int, offset: int, size: int, value: int) -> None:
        data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self.both(lambda pci: pci.write(region, offset, data))

    @rule(register=st.sampled_from(Common), value=VALUES)
    def write_register(self, register: Common, value: int) -> None:
        fitting = value & ((1 << 8 * register.width) - 1)
        self.both(lambda pci: PciDriver(pci).put(register, fitting))

    @rule(with_msix=st.booleans())
    def start(self, with_msix: bool) -> None:
        can = with_msix and self.elder.layout.vectors > 0
        self.both(lambda pci: PciDriver(pci).start(with_msix=can))

    @rule(index=st.integers(0, QUEUES))
    def interrupt(self, index: int) -> None:
        self.both(lambda pci: pci.interrupt_for_queue(index))

    @rule()
    def change_config(self) -> None:
        self.both(lambda pci: pci.config_changed())

    @rule()
    def break_down(self) -> None:
        self.both(lambda pci: pci.needs_reset())

    @rule()
    def reset(self) -> None:
        self.both(lambda pci: pci.reset())

    @invariant()
    def they_are_alike(self) -> None:
        assert self.elder.save() == self.younger.save()
        before, self.seen = self.seen, (self.elder.revision, self.elder.save())
        assert before[1] == self.seen[1] or before[0] < self.seen[0]
        assert self.devices[0].written == self.devices[1].written
        assert view(self.elder) == view(self.younger)


def view(pci: VirtioPci) -> object:
    """Return what a transport asks about, beyond accesses and interrupts."""
    queues = [pci.queue_state(index) for index in range(QUEUES)]
    return pci.is_running, pci.is_intx_asserted, pci.status, pci.features, queues


TestTwins = Twins.TestCase


def test_a_saved_state_is_not_tied_to_the_function() -> None:
    pci = function()
    saved = pci.save()
    kept = deepcopy(saved)
    PciDriver(pci).start()
    assert saved == kept
    assert DeviceStatus.DRIVER_OK in pci.status
    assert pci.features & VirtioFeature.VERSION_1
