from __future__ import annotations

import json

from ballast.mqtt import payloads
from ballast_protocol.errors import OperatorError
from support.balloon_control import MIB, FakeBalloonControl, FakeStats

STATUS: dict[str, object] = {
    "state": "running",
    "problem": "",
    "settled": True,
    "ledger": {"bytes": 4096, "pages": 1},
    "host": {"allocated-bytes": 5, "rss-shmem-bytes": 6},
    "counters": {"discarded-bytes": 7, "reported-bytes": 8, "chains": 9},
    "agent": {
        "state": "reporting",
        "report": {
            "age-seconds": 1.5,
            "meminfo-bytes": {"MemFree": 1},
            "pressure": None,
            "zones": [],
        },
    },
}


def test_a_state() -> None:
    vm = FakeBalloonControl(follows=False)
    vm.set_target(1024 * MIB)
    assert payloads.state(vm, STATUS) == {
        "name": "vm1",
        "state": "running",
        "problem": "",
        "settled": True,
        "ram-bytes": 2048 * MIB,
        "target-bytes": 1024 * MIB,
        "actual-bytes": 2048 * MIB,
        "ledger-bytes": 4096,
        "guest": "moving",
        "hold": {"enabled": False, "reason": ""},
        "inhibit": {"enabled": False, "reason": ""},
        "agent": "reporting",
    }


def test_a_state_of_which_little_is_known() -> None:
    state = payloads.state(FakeBalloonControl(ram_bytes=None, actual_bytes=None), {})
    unknown = {key for key, value in state.items() if value is None}
    assert set(state) - unknown == {"name", "guest", "hold", "inhibit"}


def test_availability_is_qemus() -> None:
    assert payloads.is_available({"state": "paused"})
    assert not payloads.is_available({"state": "waiting-for-qemu"})


def test_statistics_name_only_what_the_guest_sent() -> None:
    vm = FakeBalloonControl(guest_stats=FakeStats({4: 10, 99: 1}, last_update=1000))
    assert payloads.stats(vm, STATUS, 1012.5, "") == {
        "unix-seconds": 1012.5,
        "fresh": True,
        "problem": "",
        "last-update": 1000,
        "age-seconds": 12.5,
        "stats": {"stat-free-memory": 10},
        "host": {"allocated-bytes": 5, "rss-shmem-bytes": 6},
        "discarded-bytes": 7,
        "reported-bytes": 8,
        "agent": {"age-seconds": 1.5, "meminfo-bytes": {"MemFree": 1}, "pressure": None},
    }


def test_old_statistics_are_not_passed_off_as_new() -> None:
    stats = payloads.stats(FakeBalloonControl(), {}, 1000, "no answer")
    assert (stats["fresh"], stats["problem"]) == (False, "no answer")
    assert (stats["age-seconds"], stats["stats"], stats["agent"]) == (None, {}, None)


def test_failures_say_what_and_what_to_do() -> None:
    refused = payloads.failure("web", OperatorError("no", hint="yes"))
    assert refused == {
        "vm": "web",
        "result": "refused",
        "error": {"desc": "no", "hint": "yes"},
    }


def test_everything_is_json() -> None:
    assert json.loads(payloads.encode({"a": None, "b": object})) == {"a": None, "b": str(object)}
