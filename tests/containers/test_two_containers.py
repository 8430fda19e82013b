"""QEMU and a keeper in one container, the worker in another, a broker on a network of its own.

The tests share one guest, and are in an order that leaves it well until the last one ends it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ballast_images.container_images import BACKEND
from ballast_images.engine import EngineError, execute
from support.containers import VM, Lab

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

MIB = 1 << 20
GIB = 1 << 30
NEXT = "localhost/ballast-test:next"
NEXT_VERSION = "99.0.0"
SERVICES = ("broker", "balloon", "vm")

READ_STATE = """
import asyncio, sys
import aiomqtt

async def main():
    async with asyncio.timeout(60), aiomqtt.Client("broker") as client:
        await client.subscribe("ballast/#")
        async for message in client.messages:
            if str(message.topic) == "ballast/host1/web/state":
                print(message.payload.decode())
                return

asyncio.run(main())
"""

LIMIT = (
    "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
)


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_runs_as_root_and_nothing_can_be_changed(lab: Lab, service: str) -> None:
    status = lab.stack.run_inside(service, "cat", "/proc/1/status")
    values = dict(line.split(":", 1) for line in status.splitlines())
    assert values["Uid"].split() == ["65534"] * 4
    assert int(values["CapEff"], 16) == int(values["CapBnd"], 16) == 0
    assert values["NoNewPrivs"].strip() == "1"
    for place in ("/", "/etc", "/usr/bin", "/opt"):
        with pytest.raises(EngineError, match="Read-only file system"):
            lab.stack.run_inside(service, "touch", f"{place}/x")


def test_the_two_see_nothing_of_each_other_but_sockets(lab: Lab) -> None:
    for service, mine, others in (
        ("vm", "qemu-system", "serve web"),
        ("balloon", "serve web", "qemu-system"),
    ):
        script = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
        seen = lab.stack.run_inside(service, "sh", "-c", script)
        assert mine in seen
        assert others not in seen
    assert "eth0" not in lab.stack.run_inside("vm", "cat", "/proc/net/dev")
    files = lab.stack.run_inside("balloon", "find", "/run/ballast", "-type", "f").split()
    assert all(Path(each).name == "lock" for each in files)


def test_the_worker_says_that_it_is_well(lab: Lab) -> None:
    lab.ballast("status", "--check")
    status = lab.status()
    assert status["keeper"]["mode"] == "service"
    assert not status["problem"]
    assert "keeper is gone" not in lab.ballast("status")


def test_the_broker_is_reached_on_a_network_of_its_own(lab: Lab) -> None:
    command = lab.stack.command(
        "tour",
        "--rm",
        entrypoint="python3",
        command=["-c", READ_STATE],
        network_mode=None,
        networks=["mqtt"],
    )
    state = json.loads(execute(command, 120))
    assert state["actual-bytes"] == GIB


def test_inflating_lowers_what_qemus_container_is_charged_for(lab: Lab) -> None:
    limit = int(lab.stack.run_inside("vm", "sh", "-c", LIMIT))
    assert limit == 1536 * MIB
    lab.guest(f"memtool verify-loop --bytes {640 * MIB} --stop-file /tmp/enough > /tmp/held 2>&1 &")
    held = lab.wait_until(
        lambda status: status["host"]["allocated-bytes"] > 640 * MIB, "the guest uses its memory"
    )
    host, charge = held["host"]["allocated-bytes"], lab.stack.charged_bytes("vm")
    assert host < charge < limit
    lab.guest("touch /tmp/enough; while ! grep -q verified /tmp/held; do sleep 0.1; done")
    lab.resize("384M")
    given = host - lab.status()["host"]["allocated-bytes"]
    assert given > 256 * MIB
    assert charge - lab.stack.charged_bytes("vm") > 0.8 * given
    lab.resize("1G")


def test_the_worker_is_killed_replaced_and_upgraded_under_a_guest_that_verifies(
    lab: Lab, tmp_path: Path
) -> None:
    stack = lab.stack
    boot = lab.guest("cat /proc/sys/kernel/random/boot_id")
    lab.guest(
        f"memtool verify-loop --bytes {128 * MIB} --remap --stop-file /tmp/stop "
        "> /tmp/verdict 2>&1 &"
    )
    lab.ballast("set", VM, "640M", "--rate", "32M")
    lab.wait_until(
        lambda status: 640 * MIB < status["actual-bytes"] < GIB, "the guest gives memory up"
    )
    stack.kill("balloon")
    stack.start("balloon")
    reached = lab.wait_until(lambda status: status["actual-bytes"] == 640 * MIB, "the target")
    assert reached["keeper"]["restarts"] == 1
    assert reached["target-bytes"] == 640 * MIB

    containerfile = tmp_path / "Containerfile"
    containerfile.write_text(UPGRADE)
    stack.engine.build(tmp_path, containerfile, NEXT)
    lab.ballast("set", VM, "448M", "--rate", "32M")
    lab.wait_until(
        lambda status: 448 * MIB < status["actual-bytes"] < 640 * MIB, "it gives up more"
    )
    assert stack.end("balloon") == 0
    stack.remove("balloon")
    stack.start("balloon", image=NEXT)
    reached = lab.wait_until(lambda status: status["actual-bytes"] == 448 * MIB, "the next target")
    assert reached["keeper"]["restarts"] == 2
    assert NEXT_VERSION in lab.ballast("--version")
    lab.resize("1G")

    lab.guest("touch /tmp/stop; while ! grep -q verified /tmp/verdict; do sleep 0.1; done")
    verdict = json.loads(lab.guest("cat /tmp/verdict"))
    assert verdict["wrong_pages"] == 0, verdict
    assert verdict["verified_bytes"] > 128 * MIB
    assert lab.guest("cat /proc/sys/kernel/random/boot_id") == boot
    assert stack.is_running("vm")


UPGRADE = f"""
FROM {BACKEND.name}
USER 0:0
RUN sed -i 's/^Version: .*/Version: {NEXT_VERSION}/' \\
    /opt/ballast/lib/python3*/site-packages/ballast-*.dist-info/METADATA
USER 65534:65534
"""


def test_qemus_container_is_killed_and_another_one_has_the_same_worker(lab: Lab) -> None:
    lab.resize("768M")
    before = lab.status()["keeper"]["worker-pid"]
    lab.stack.kill("vm")
    lab.wait_until(lambda status: status["state"] == "waiting-for-qemu", "QEMU is missed")
    lab.stack.start("vm")
    status = lab.wait_until(
        lambda status: status["actual-bytes"] == 768 * MIB, "the new guest has the old target"
    )
    assert status["keeper"]["worker-pid"] == before
    assert status["keeper"]["keeper-pid"] == 0


def test_sigterm_ends_them_in_order_and_without_complaint(lab: Lab) -> None:
    for service in ("vm", "balloon", "broker"):
        assert lab.stack.end(service) == 0, lab.stack.log(service)
    assert "ending while QEMU is connected" not in lab.stack.log("vm")
    assert "still connected" not in lab.stack.log("balloon")
