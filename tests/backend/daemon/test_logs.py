from __future__ import annotations

import asyncio
import logging

import pytest

from ballast.daemon.logs import VmNameFilter, context_of


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def name_filter(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(VmNameFilter())


async def test_callbacks_that_a_vm_set_up_speak_under_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, loop = logging.getLogger("ballast.test"), asyncio.get_running_loop()
    done = asyncio.Event()

    async def start() -> None:
        loop.call_soon(log.warning, "queue %d broke", 3)
        loop.call_soon(done.set)

    await asyncio.create_task(start(), context=context_of("web"))
    await done.wait()
    log.warning("nobody's")
    assert said(caplog) == ["web: queue 3 broke", "nobody's"]


def test_a_record_gets_the_name_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(VmNameFilter())
    context_of("web").run(logging.getLogger("ballast.test").warning, "hello")
    assert said(caplog) == ["web: hello"]
