from __future__ import annotations

import pytest

from ballast.qmp import qom
from ballast_protocol.qmp import ErrorClass, RefusedError
from support.balloon_control import FakeBalloonControl, FakeStats

TREE = qom.balloon_tree("balloon0")
BALLOON_PATHS = [
    "/machine/peripheral/balloon0",
    "/machine/peripheral/balloon0/",
    "machine/peripheral/balloon0",
    "peripheral/balloon0",
    "balloon0",
]


@pytest.mark.parametrize("path", BALLOON_PATHS)
def test_the_balloon_is_where_qemu_has_it(path: str) -> None:
    vm = FakeBalloonControl(guest_stats=FakeStats({0: 5}, 9), stats_polling_interval=3)
    assert qom.get_property(TREE, vm, path, "type") == "virtio-balloon"
    assert qom.get_property(TREE, vm, path, "guest-stats-polling-interval") == 3
    stats = qom.get_property(TREE, vm, path, "guest-stats")
    assert isinstance(stats, dict)
    assert stats["last-update"] == 9


@pytest.mark.parametrize("path", ["nope", "/balloon0", "loon0", "balloon0/x", "/machine/balloon0"])
def test_other_paths_lead_nowhere(path: str) -> None:
    with pytest.raises(RefusedError) as caught:
        qom.list_properties(TREE, path)
    assert str(caught.value) == f"Device '{path}' not found"
    assert caught.value.error_class is ErrorClass.DEVICE_NOT_FOUND


def test_the_tree_can_be_walked_down_to_the_balloon() -> None:
    path = ""
    for child in ("machine", "peripheral", "balloon0"):
        listed = {each["name"]: each["type"] for each in qom.list_properties(TREE, path or "/")}
        assert listed[child].startswith("child<")
        assert qom.get_property(TREE, FakeBalloonControl(), path or "/", child) == f"{path}/{child}"
        path = f"{path}/{child}"
    assert qom.list_properties(TREE, path) == [
        {"name": "type", "type": "string"},
        {"name": "guest-stats", "type": "guest statistics"},
        {"name": "guest-stats-polling-interval", "type": "int"},
    ]


@pytest.mark.parametrize("seconds", [0, 2, (1 << 32) - 1])
def test_the_polling_interval_can_be_set(seconds: int) -> None:
    vm = FakeBalloonControl(stats_polling_interval=7)
    qom.set_property(TREE, vm, "balloon0", "guest-stats-polling-interval", seconds)
    assert vm.stats_polling_interval == seconds


# The texts of QEMU 11.1.3.
@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("guest-stats-polling-interval", -1, "timer value must be greater than zero"),
        ("guest-stats-polling-interval", 1 << 32, "timer value is too big"),
        (
            "guest-stats-polling-interval",
            "2",
            "Invalid parameter type for 'guest-stats-polling-interval', expected: integer",
        ),
        ("guest-stats", 1, "Property 'virtio-balloon.guest-stats' is not writable"),
        ("type", 1, "Property 'virtio-balloon.type' is not writable"),
        ("nope", 1, "Property 'virtio-balloon.nope' not found"),
    ],
)
def test_refuses_to_set(name: str, value: object, complaint: str) -> None:
    vm = FakeBalloonControl(stats_polling_interval=7)
    with pytest.raises(RefusedError) as caught:
        qom.set_property(TREE, vm, "balloon0", name, value)
    assert str(caught.value) == complaint
    assert vm.stats_polling_interval == 7


def test_values_of_all_properties() -> None:
    vm = FakeBalloonControl(stats_polling_interval=7)
    values = {each["name"]: each["value"] for each in qom.property_values(TREE, vm, "balloon0")}
    assert values["guest-stats-polling-interval"] == 7
    assert values["type"] == "virtio-balloon"


def test_no_path_at_all() -> None:
    # QEMU has many objects, and their paths all end so.
    with pytest.raises(RefusedError, match="Path '' is ambiguous"):
        qom.list_properties(TREE, "")
    with pytest.raises(RefusedError, match="Device '' not found"):
        qom.get_property(TREE, FakeBalloonControl(), "", "type")
