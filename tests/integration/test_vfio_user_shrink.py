"""A client that takes back, without a word, memory that it shares."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from ballast.transport.vfio_user.page import ConfigPage
from ballast.virtio_pci.layout import Variant, make_layout
from ballast_protocol.virtio.balloon import BalloonQueue
from support.fds import none_left_open
from support.link import FrontendError
from support.machine import FREE
from support.vfio_machine import vfio_backend_at, vfio_machine_at


async def test_memory_that_is_taken_away_costs_one_connection(tmp_path: Path) -> None:
    """The file is not sealed and shrinks to nothing under the rings: SIGBUS, if nobody minds."""
    with none_left_open():
        async with (
            vfio_backend_at(tmp_path / "s") as backend,
            vfio_backend_at(tmp_path / "t") as other,
            vfio_machine_at(other.path) as neighbour,
        ):
            await neighbour.start()
            async with vfio_machine_at(backend.path) as machine:
                await machine.start()
                machine.queues[BalloonQueue.INFLATE].add_out(b"1234")
                for item in machine.ram.regions:
                    os.ftruncate(item.fd, 0)
                with suppress(FrontendError, ConnectionError):
                    await machine.ring(BalloonQueue.INFLATE)
                await backend.alone()
            await neighbour.inflate(FREE[0])
            assert other.held == {FREE[0]}


def test_the_mapped_page_cannot_be_taken_away() -> None:
    layout = make_layout(Variant.MSIX_MAPPED, queue_count=5, config_size=16)
    page = ConfigPage(layout)
    with pytest.raises(PermissionError):
        os.ftruncate(page.fd, 0)
    page.close()
