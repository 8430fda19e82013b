"""The few QOM objects that a balloon's operators look for, at the paths where QEMU has them.

Tools reach the statistics with `qom-get` on `/machine/peripheral/ID`.
"""

from __future__ import annotations

import functools
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
_PERIPHERAL = ("machine", "peripheral")
_OWN_PROPERTIES = [name for name in _BALLOON.properties if name != "type"]

BALLOON_ID = "balloon0"
"""The device's id if nobody says another."""

Tree = Mapping[tuple[str, ...], QomObject]
"""Objects by the parts of their paths."""


@functools.cache
def balloon_tree(balloon_id: str) -> Tree:
    """Return the objects down to a balloon that has this id."""
    peripheral, path = "/" + "/".join(_PERIPHERAL), (*_PERIPHERAL, balloon_id)
    return {
        path: _BALLOON,
        _PERIPHERAL: _container(balloon_id, f"{peripheral}/{balloon_id}", _BALLOON.type),
        _PERIPHERAL[:1]: _container("peripheral", peripheral, "container"),
        (): _container("machine", "/machine", "container"),
    }


def resolve(tree: Tree, path: str) -> QomObject:
    """Return the object at an absolute path, or at a partial one such as `balloon0`.

    Raises:
        RefusedError: There is none.
    """
    parts = tuple(part for part in path.split("/") if part)
    for place, found in tree.items():
        is_end = parts and not path.startswith("/") and place[-len(parts) :] == parts
        if is_end or (path and parts == place):
            return found
    raise RefusedError(f"Device '{path}' not found", ErrorClass.DEVICE_NOT_FOUND)


def is_balloon(tree: Tree, path: str) -> bool:
    """Return whether a path leads to the balloon."""
    try:
        return resolve(tree, path) is _BALLOON
    except RefusedError:
        return False


def is_own_property(name: object) -> bool:
    """Return whether a property of the balloon is one that only a balloon has."""
    return name in _OWN_PROPERTIES


def _find(tree: Tree, path: str, name: str) -> tuple[QomObject, Property]:
    found = resolve(tree, path)
    if name not in found.properties:
        raise RefusedError(f"Property '{found.type}.{name}' not found")
    return found, found.properties[name]


def get_property(tree: Tree, vm: BalloonControl, path: str, name: str) -> object:
    """Return the value of a property.

    Raises:
        RefusedError: There is no such object or property.
    """
    _, found = _find(tree, path, name)
    return found.get(vm)


def set_property(tree: Tree, vm: BalloonControl, path: str, name: str, value: object) -> None:
    """Change a property.

    Raises:
        RefusedError: There is no such object or property, it is read-only, or the value is wrong.
    """
    owner, found = _find(tree, path, name)
    if found.set is None:
        raise RefusedError(f"Property '{owner.type}.{name}' is not writable")
    found.set(vm, value)


def list_properties(tree: Tree, path: str) -> list[dict[str, str]]:
    """Return the name and type of each property of an object.

    Raises:
        RefusedError: There is no such object.
    """
    if not path:
        raise RefusedError("Path '' is ambiguous")
    properties = resolve(tree, path).properties
    return [{"name": name, "type": each.type} for name, each in properties.items()]


def property_values(tree: Tree, vm: BalloonControl, path: str) -> list[dict[str, object]]:
    """Return the name, type and value of each property of an object.

    Raises:
        RefusedError: There is no such object.
    """
    properties = resolve(tree, path).properties
    return [
        {"name": name, "type": each.type, "value": each.get(vm)}
        for name, each in properties.items()
    ]
