"""What `make test` tries of containers, or why it cannot: the demo, if images are there.

It builds none, which takes minutes. `make test-containers` does, and has the other tests.
"""

from __future__ import annotations

import pytest

from ballast.demo.containers import run_in_containers
from ballast_images.container_images import VM, checkout, outdated
from ballast_images.engine import Engine, prove
from ballast_images.progress import SilentReporter
from ballast_protocol.errors import OperatorError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]


def test_memory_goes_back_to_the_host_through_two_containers(some_engine: Engine) -> None:
    if old := outdated(some_engine, checkout()):
        names = ", ".join(each.name for each in old)
        pytest.skip(f"not built from these sources: {names}; `make images` does it")
    try:
        engine = prove(some_engine, VM.name)
    except OperatorError as error:
        pytest.skip(str(error))
    steps = run_in_containers(engine, checkout(), SilentReporter())
    assert [each.step.name for each in steps] == ["use", "shrink", "grow", "use-again"]
    assert all(each.ok for each in steps), steps
