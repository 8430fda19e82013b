"""A VM's QMP socket in a runtime directory, served from a thread beside the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.balloon_control import FakeBalloonControl
from support.qmp_peer import serving


@contextmanager
def served_vm(root: Path, vm: FakeBalloonControl) -> Iterator[FakeBalloonControl]:
    """Serve `vm` under its name while the context lasts."""
    directory = root / vm.name
    directory.mkdir(parents=True)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    end = asyncio.Event()

    async def serve() -> None:
        async with serving(directory / "qmp.sock", vm) as server:
            vm.on_event = server.emit
            ready.set()
            await end.wait()
            vm.governor.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield vm
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()
