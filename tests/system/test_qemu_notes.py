"""What `docs/qemu-notes.md` says of QEMU 11.1, seen again.

A test that fails here is good news: QEMU does better. Then the note can go, and perhaps what we do
because of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from ballast.transport.vhost_user.session import Session
from ballast_images.qemu import find_qemu
from ballast_protocol.errors import OperatorError
from support.driver import PAGE_SIZE
from support.qtest import MIB, Qtest, machine_arguments, running_qtest
from support.system import (
    Bench,
    balloon_device,
    bench,
    device_properties,
    eventually,
    served,
)
from support.virtio_pci import LINUX_FEATURES, BalloonDriver, VirtioPci

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600), pytest.mark.asyncio]

RAM_BYTES = 256 * MIB
ALL_ONES = 0xFFFF_FFFF
PLAIN_PC = ("-machine", "pc", "-nodefaults", "-no-user-config", "-display", "none")
"""A machine whose PCI slots are ejected by two writes, where a q35 needs a root port."""


PCI_EJECT, PCI_SELECT = 0xAE08, 0xAE10
"""Its hot-plug registers."""


@pytest.fixture(autouse=True)
def _only_this_qemu() -> None:
    """These are faults of a version, not of QEMU."""
    version = find_qemu().version
    if not version.startswith("11.1."):
        pytest.skip(f"the notes are about QEMU 11.1, this is {version}")


async def ended(qtest: Qtest) -> tuple[int, str]:
    """Wait until QEMU has ended, and return its status and what it said."""
    async with asyncio.timeout(60):
        return await qtest.process.wait(), qtest.errors()


async def lose(machine: Bench) -> None:
    """End the back-end, as seen from QEMU."""
    await machine.balloon.close()


async def attempt(qtest: Qtest, command: str, arguments: dict[str, Any] | None = None) -> None:
    """Have QEMU execute something that it may not survive."""
    with pytest.raises(Exception):  # noqa: B017, PT011 (whichever way the monitor breaks)
        await qtest.qmp.execute(command, arguments)


# vhost-user


async def test_without_a_config_size_the_guest_reads_all_ones(qemu: Path) -> None:
    async with served() as balloon:
        given = balloon_device(balloon)
        arguments = [text.replace("config_size=16", "config_size=0") for text in given]
        async with running_qtest(qemu, *machine_arguments(RAM_BYTES), *arguments) as qtest:
            pci = await VirtioPci.find(qtest)
            assert await pci.read_num_pages() == ALL_ONES


async def test_a_queue_that_is_too_large_aborts_qemu(qemu: Path) -> None:
    async with served() as balloon:
        given = balloon_device(balloon)
        arguments = [text.replace("vq_size=128", "vq_size=2048") for text in given]
        with pytest.raises(OperatorError, match=r"QEMU ended with -6: $"):
            async with running_qtest(qemu, *machine_arguments(RAM_BYTES), *arguments):
                pass


async def test_a_config_space_that_is_too_large_aborts_qemu_in_a_running_guest(qemu: Path) -> None:
    async with served() as balloon:
        given = balloon_device(balloon)
        arguments = [text.replace("config_size=16", "config_size=512") for text in given]
        async with running_qtest(qemu, *machine_arguments(RAM_BYTES), *arguments) as qtest:
            pci = await VirtioPci.find(qtest)
            with pytest.raises(OperatorError):
                await pci.read_num_pages()
            status, said = await ended(qtest)
            assert status == -signal.SIGABRT
            assert "Assertion `config_len <= VHOST_USER_MAX_CONFIG_SIZE' failed" in said


async def test_a_chardev_that_reconnects_is_refused(qemu: Path) -> None:
    async with served() as balloon:
        chardev, socket, *rest = balloon_device(balloon)
        arguments = (chardev, f"{socket},reconnect-ms=100", *rest)
        with pytest.raises(OperatorError, match="Failed to set msg fds"):
            async with running_qtest(qemu, *machine_arguments(RAM_BYTES), *arguments):
                pass


async def test_a_back_end_that_goes_before_a_driver_came_takes_qemu_along(qemu: Path) -> None:
    async with served() as balloon, bench(qemu, balloon) as machine:
        await lose(machine)
        status, said = await ended(machine.qtest)
        assert status == -signal.SIGABRT
        assert "memory_region_del_eventfd: Assertion `i != mr->ioeventfd_nb' failed" in said


async def test_a_config_read_after_the_back_end_went_aborts_qemu(qemu: Path) -> None:
    async with served() as balloon, bench(qemu, balloon) as machine:
        await machine.driver.start()
        await lose(machine)
        await machine.qtest.assert_alive()
        with pytest.raises(OperatorError):
            await machine.driver.pci.read_num_pages()
        status, said = await ended(machine.qtest)
        assert status == -signal.SIGABRT
        assert "vhost_dev_get_config: Assertion `hdev->vhost_ops' failed" in said


async def test_continuing_after_the_back_end_went_aborts_qemu(qemu: Path) -> None:
    async with served() as balloon, bench(qemu, balloon) as machine:
        await machine.driver.start()
        await lose(machine)
        await machine.qtest.qmp.execute("stop")
        await attempt(machine.qtest, "cont")
        status, said = await ended(machine.qtest)
        assert status == -signal.SIGABRT
        assert "vhost_dev_start: Assertion `hdev->vhost_ops' failed" in said


async def test_a_config_change_while_the_device_is_stopped_crashes_qemu(
    qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a back-end does that knows nothing of the danger.
    monkeypatch.setattr(Session, "_settle", lambda session: True)
    async with served() as balloon, bench(qemu, balloon) as machine:
        balloon.set_target(RAM_BYTES // 2)
        status, _ = await ended(machine.qtest)
        assert status == -signal.SIGSEGV


@pytest.mark.parametrize("is_started", [True, False])
async def test_asking_for_the_virtio_status_crashes_qemu(qemu: Path, is_started: bool) -> None:
    async with served() as balloon, bench(qemu, balloon) as machine:
        if is_started:
            await machine.driver.start()
        answer: Any = await machine.qtest.qmp.execute("x-query-virtio")
        await attempt(machine.qtest, "x-query-virtio-status", {"path": answer[0]["path"]})
        status, said = await ended(machine.qtest)
        assert status == (-signal.SIGSEGV if is_started else -signal.SIGABRT)
        assert is_started or "visit_start_struct: Assertion" in said


async def test_features_on_the_command_line_mean_nothing(qemu: Path) -> None:
    async with served() as balloon:
        *before, last = balloon_device(balloon)
        arguments = (*before, f"{last},event_idx=off,indirect_desc=off")
        async with running_qtest(qemu, *machine_arguments(RAM_BYTES), *arguments) as qtest:
            pci = await VirtioPci.find(qtest)
            await pci.reset()
            assert await pci.negotiate(LINUX_FEATURES) & (1 << 28 | 1 << 29) == 1 << 28 | 1 << 29


# vfio-user


async def test_unplugging_a_vfio_user_function_with_msix_aborts_qemu(qemu: Path) -> None:
    async with served(transport="vfio-user", variant="msix") as balloon:
        plugged = json.dumps({**device_properties(balloon, bus="pci.0"), "addr": "4"})
        async with running_qtest(qemu, *PLAIN_PC, "-device", plugged) as qtest:
            await qtest.qmp.execute("device_del", {"id": "balloon0"})
            with contextlib.suppress(OperatorError):
                await eject(qtest, 4)
            status, said = await ended(qtest)
            assert status == -signal.SIGABRT
            assert "memory_region_del_subregion: Assertion `subregion->container == mr'" in said


async def eject(qtest: Qtest, slot: int) -> None:
    """Do what a PC's ACPI methods do to eject a slot."""
    await qtest.outl(PCI_SELECT, 0)
    await qtest.outl(PCI_EJECT, 1 << slot)


async def unlock_low_memory(qtest: Qtest) -> None:
    """Do what firmware does at every boot: make memory of where the ROMs were (q35's PAM)."""
    for register, value in ((0x90, 0x3333_3330), (0x94, 0x0033_3333)):
        await qtest.write_config(0, 0, register, value)


async def test_a_vfio_user_function_does_not_stop_a_migration(qemu: Path) -> None:
    async with (
        served(transport="vfio-user") as balloon,
        bench(qemu, balloon) as machine,
    ):
        await machine.driver.start()
        qmp, path = machine.qtest.qmp, balloon.paths.directory / "migration"
        await qmp.execute("migrate", {"uri": f"file:{path}"})
        state: Any = {}
        async with asyncio.timeout(60):
            while state.get("status") not in ("completed", "failed"):
                state = await qmp.execute("query-migrate")
        assert state["status"] == "completed"


async def test_a_vfio_user_server_that_is_lost_is_not_missed_until_memory_changes(
    qemu: Path,
) -> None:
    async with (
        served(transport="vfio-user", variant="msix") as balloon,
        bench(qemu, balloon) as machine,
    ):
        await machine.driver.start()
        await lose(machine)
        assert await machine.driver.pci.read_num_pages() == ALL_ONES
        await machine.qtest.assert_alive()
        with pytest.raises(OperatorError):
            await unlock_low_memory(machine.qtest)
        status, said = await ended(machine.qtest)
        assert status == -signal.SIGABRT
        assert "vfio: DMA mapping failed, unable to continue" in said


async def test_a_vfio_user_server_that_is_lost_with_a_request_unread_aborts_qemu(
    qemu: Path,
) -> None:
    async with (
        served(transport="vfio-user", variant="msix") as balloon,
        bench(qemu, balloon) as machine,
    ):
        session: Any = balloon._transport.session
        asyncio.get_running_loop().remove_reader(session._reader.socket.fd)
        reading = asyncio.create_task(machine.driver.pci.read_num_pages())
        await eventually(session._reader.socket.has_input, "QEMU waits for an answer")
        await lose(machine)
        status, said = await ended(machine.qtest)
        with pytest.raises(OperatorError):
            await reading
        assert status == -signal.SIGABRT
        assert "error_setv: Assertion `*errp == NULL' failed" in said


async def test_a_vfio_user_server_that_is_lost_with_a_request_read_freezes_qemu(
    qemu: Path,
) -> None:
    async with served(transport="vfio-user", variant="msix") as balloon:
        properties = {**device_properties(balloon, bus="pcie.0"), "x-msg-timeout": 500}
        plugged = ("-device", json.dumps(properties))
        async with running_qtest(qemu, *machine_arguments(RAM_BYTES), *plugged) as qtest:
            pci = await VirtioPci.find(qtest)
            session: Any = balloon._transport.session
            session._dispatch = lambda request: take_and_close(session)
            assert await pci.read_num_pages() == ALL_ONES
            await qtest.assert_alive()
            said = qtest.errors()
            assert said.index("failed to read header: EOF") < said.index("timed out waiting")


def take_and_close(session: Any) -> None:
    """Do what other servers do, and ours does not: take a request before it is answered."""
    session._reader.socket.consume(session._reader.position.size_bytes)
    session.close()


async def test_beside_a_vfio_user_function_qemus_own_balloon_frees_nothing(qemu: Path) -> None:
    own = ("-device", "virtio-balloon-pci,id=own,disable-legacy=on,addr=2")
    async with served(transport="vfio-user") as balloon:
        theirs = json.dumps({**device_properties(balloon, bus="pcie.0"), "addr": "8"})
        for others, freed_pages in (((), 256), (("-device", theirs), 0)):
            arguments = (*machine_arguments(RAM_BYTES), *own, *others)
            async with running_qtest(qemu, *arguments) as qtest:
                with qtest.ram() as ram:
                    driver = BalloonDriver(await VirtioPci.find(qtest), ram)
                    await driver.start()
                    ram.fill()
                    await qtest.qmp.execute("balloon", {"value": RAM_BYTES - 256 * PAGE_SIZE})
                    async with driver.obeying():
                        await eventually(lambda: len(driver.given) == 256, "the balloon fills")  # noqa: B023
                    assert sum(count for _, count in ram.holes()) == freed_pages
