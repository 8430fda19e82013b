"""QEMU's own commands, with QEMU's names, semantics and errors, for a balloon of ours.

The commands that are ours alone are in `ballast_commands`.
"""

from __future__ import annotations

from typing import Annotated

from ballast.qmp import (
    ballast_commands,
    blocks_commands,
    keeper_commands,
    qom,
    registry,
    results,
    target_commands,
)
from ballast.qmp.registry import COMMANDS, EVENTS, Context, command, execute
from ballast_protocol.qmp import ErrorClass, RefusedError
from ballast_protocol.qmp.types import ANY, EMPTY, ListOf

__all__ = [
    "COMMANDS",
    "EVENTS",
    "Context",
    "ballast_commands",
    "blocks_commands",
    "command",
    "execute",
    "keeper_commands",
    "target_commands",
]

Path = Annotated[
    str, "The object: `/machine/peripheral/balloon0`, or the end of that, such as `balloon0`."
]


@command("query-version", returns=results.VERSION)
async def query_version(context: Context) -> object:
    """Return the version of Ballast, in QEMU's form."""
    return context.version.to_json()


@command("query-commands", returns=ListOf(results.COMMAND_INFO))
async def query_commands(context: Context) -> object:
    """Return the names of all commands; `qmp-shell` completes them."""
    return [{"name": name} for name in COMMANDS]


@command("query-qmp-schema", returns=ListOf(results.SCHEMA_INFO))
async def query_qmp_schema(context: Context) -> object:
    """Return all commands, events and their types, in the form of QEMU's introspection."""
    return registry.schema()


@command("query-name", returns=results.NAME_INFO)
async def query_name(context: Context) -> object:
    """Return the VM's name."""
    return {"name": context.vm.name}


@command("balloon", returns=EMPTY)
async def balloon(
    context: Context, *, value: Annotated[int, "The logical size wanted, in bytes."]
) -> object:
    """Ask the guest for a logical size; more than its RAM means all of it.

    Unlike QEMU's this is accepted before the guest's driver is there, and remembered.
    """
    if value <= 0:
        raise RefusedError("Parameter 'value' expects a size")
    ram_bytes = context.vm.ram_bytes
    context.vm.set_target(value if ram_bytes is None else min(value, ram_bytes))
    return {}


@command("query-balloon", returns=results.BALLOON_INFO)
async def query_balloon(context: Context) -> object:
    """Return the logical size that the guest says it has; `DeviceNotActive` without a driver."""
    actual_bytes = context.vm.actual_bytes
    if actual_bytes is None:
        raise RefusedError("No balloon device has been activated", ErrorClass.DEVICE_NOT_ACTIVE)
    return {"actual": actual_bytes}


@command("qom-get", returns=ANY)
async def qom_get(
    context: Context, *, path: Path, property: Annotated[str, "The property's name."]
) -> object:
    """Return a property of the balloon.

    `guest-stats` is `{"stats": {...}, "last-update": Unix seconds}`, with 2⁶⁴-1 for every
    statistic that the guest has not sent, and a `last-update` of 0 before it sent any. A reset of
    the guest takes both back to that.
    """
    return qom.get_property(context.qom_tree, context.vm, path, property)


@command("qom-set", returns=EMPTY)
async def qom_set(
    context: Context,
    *,
    path: Path,
    property: Annotated[str, "The property's name."],
    value: Annotated[object, "Its new value."],
) -> object:
    """Change a property of the balloon.

    There is one: `guest-stats-polling-interval`, the seconds between two polls for statistics; 0
    ends the polling, and what was sent last stays readable.
    """
    qom.set_property(context.qom_tree, context.vm, path, property, value)
    return {}


@command("qom-list", returns=ListOf(results.PROPERTY_INFO))
async def qom_list(context: Context, *, path: Path) -> object:
    """Return the properties of an object, its children among them."""
    return qom.list_properties(context.qom_tree, path)


@command("qom-list-get", returns=ListOf(results.PROPERTY_VALUES))
async def qom_list_get(
    context: Context, *, paths: Annotated[list[str], "The objects, as in `qom-list`."]
) -> object:
    """Return the properties of several objects with their values."""
    return [
        {"properties": qom.property_values(context.qom_tree, context.vm, path)} for path in paths
    ]
