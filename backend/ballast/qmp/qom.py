"""The few QOM objects that a balloon's operators look for, at the paths where QEMU has them.

Tools reach the statistics with `qom-get` on `/machine/peripheral/ID`. The id is always `balloon0`,
since a socket belongs to one VM, and a VM has one balloon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ballast.qmp.control import BalloonControl
from ballast.qmp.guest_stats import guest_stats_property
from ballast_protocol.qmp import ErrorClass, RefusedError, check_value
from ballast_protocol.qmp.types import INTEGER

MAX_POLLING_INTERVAL_SECONDS = (1 << 32) - 1

_INTERVAL = "guest-stats-polling-interval"


@dataclass(frozen=True)
class Property:
    """A property of an object.

    Attributes:
        type: Its type, as `qom-list` shows it.
        get: Returns its value.
        set: Changes it; None if it is read-only.
    """

    type: str
    get: Callable[[BalloonControl], object]
    set: Callable[[BalloonControl, object], None] | None = None


@dataclass(frozen=True)
class QomObject:
    """An object of the tree.

    Attributes:
        type: Its type name.
        properties: By name; a child object is a property of type `child<...>`.
    """

    type: str
    properties: Mapping[str, Property]


def _set_interval(vm: BalloonControl, value: object) -> None:
    check_value(_INTERVAL, INTEGER, value)
    assert isinstance(value, int)
    if value < 0:
        raise RefusedError("timer value must be greater than zero")
    if value > MAX_POLLING_INTERVAL_SECONDS:
        raise RefusedError("timer value is too big")
    vm.stats_polling_interval = value


def _object(type_name: str, properties: Mapping[str, Property]) -> QomObject:
    return QomObject(type_name, {"type": Property("string", lambda _: type_name), **properties})


def _container(child_name: str, child_path: str, child_type: str) -> QomObject:
    child = Property(f"child<{child_type}>", lambda _: child_path)
    return _object("container", {child_name: child})


_BALLOON = _object(
    "virtio-balloon",
    {
        "guest-stats": Property(
            "guest statistics", lambda vm: guest_stats_property(vm.guest_stats)
        ),
        _INTERVAL: Property("int", lambda vm: vm.stats_polling_interval, _set_interval),
    },
)
_PERIPHERAL = "/machine/peripheral"
_TREE = {
    ("machine", "peripheral", "balloon0"): _BALLOON,
    ("machine", "peripheral"): _container("balloon0", f"{_PERIPHERAL}/balloon0", _BALLOON.type),
    ("machine",): _container("peripheral", _PERIPHERAL, "container"),
    (): _container("machine", "/machine", "container"),
}


def resolve(path: str) -> QomObject:
    """Return the object at an absolute path, or at a partial one such as `balloon0`.

    Raises:
        RefusedError: There is none.
    """
    parts = tuple(part for part in path.split("/") if part)
    for place, found in _TREE.items():
        is_end = parts and not path.startswith("/") and place[-len(parts) :] == parts
        if is_end or (path and parts == place):
            return found
    raise RefusedError(f"Device '{path}' not found", ErrorClass.DEVICE_NOT_FOUND)


def _find(path: str, name: str) -> tuple[QomObject, Property]:
    found = resolve(path)
    if name not in found.properties:
        raise RefusedError(f"Property '{found.type}.{name}' not found")
    return found, found.properties[name]


def get_property(vm: BalloonControl, path: str, name: str) -> object:
    """Return the value of a property.

    Raises:
        RefusedError: There is no such object or property.
    """
    _, found = _find(path, name)
    return found.get(vm)


def set_property(vm: BalloonControl, path: str, name: str, value: object) -> None:
    """Change a property.

    Raises:
        RefusedError: There is no such object or property, it is read-only, or the value is wrong.
    """
    owner, found = _find(path, name)
    if found.set is None:
        raise RefusedError(f"Property '{owner.type}.{name}' is not writable")
    found.set(vm, value)


def list_properties(path: str) -> list[dict[str, str]]:
    """Return the name and type of each property of an object.

    Raises:
        RefusedError: There is no such object.
    """
    if not path:
        raise RefusedError("Path '' is ambiguous")
    return [{"name": name, "type": each.type} for name, each in resolve(path).properties.items()]


def property_values(vm: BalloonControl, path: str) -> list[dict[str, object]]:
    """Return the name, type and value of each property of an object.

    Raises:
        RefusedError: There is no such object.
    """
    properties = resolve(path).properties
    return [
        {"name": name, "type": each.type, "value": each.get(vm)}
        for name, each in properties.items()
    ]
