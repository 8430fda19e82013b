"""The QMP commands: QEMU's names and semantics for what QEMU has, `ballast-` for what is ours.

A command's arguments are declared by its function's keyword parameters and nowhere else: `COMMANDS`
holds what was read from them, for checking and for describing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

from ballast.qmp import qom
from ballast.qmp.control import BalloonControl
from ballast.qmp.guest_stats import named_stats
from ballast_protocol.qmp import (
    NEGOTIATE,
    NEGOTIATE_ARGUMENTS,
    Argument,
    Command,
    ErrorClass,
    Kind,
    RefusedError,
    Version,
    check_arguments,
)

MAX_TIMEOUT_SECONDS = 60.0
"""A client's next command waits for this one, so none may ask for more patience than that."""

_KINDS: dict[object, Kind] = {
    int: Kind.INTEGER,
    float: Kind.NUMBER,
    bool: Kind.BOOLEAN,
    str: Kind.STRING,
    object: Kind.ANY,
}


@dataclass(frozen=True)
class Context:
    """What a command works on.

    Attributes:
        vm: The VM whose socket the command came from.
        version: Who we are.
        unix_seconds: The wall clock.
    """

    vm: BalloonControl
    version: Version
    unix_seconds: Callable[[], float]


Run = Callable[..., Coroutine[object, object, object]]
_AnyRun = TypeVar("_AnyRun", bound=Run)


@dataclass(frozen=True)
class Declaration:
    """A command that clients can execute.

    Attributes:
        arguments: What it takes.
        run: The coroutine function behind it; None where the session answers by itself.
    """

    arguments: tuple[Argument, ...]
    run: Run | None


COMMANDS: dict[str, Declaration] = {NEGOTIATE: Declaration(NEGOTIATE_ARGUMENTS, None)}
"""Every command by name."""


def _declare(parameter: inspect.Parameter, hint: object) -> Argument:
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = Kind.STRING if choices else _KINDS[hint]
    is_optional = parameter.default is not inspect.Parameter.empty
    return Argument(parameter.name, kind, is_optional, choices)


def command(name: str) -> Callable[[_AnyRun], _AnyRun]:
    """Register a coroutine function `(context, *, arguments...)` as the command `name`."""

    def register(run: _AnyRun) -> _AnyRun:
        hints = get_type_hints(run)
        parameters = inspect.signature(run).parameters.values()
        arguments = tuple(
            _declare(each, hints[each.name])
            for each in parameters
            if each.kind is each.KEYWORD_ONLY
        )
        COMMANDS[name] = Declaration(arguments, run)
        return run

    return register


async def execute(context: Context, request: Command) -> object:
    """Run a command and return what it answers.

    Raises:
        RefusedError: There is no such command, its arguments are wrong, or QEMU's semantics
            refuse it.
        OperatorError: The VM cannot do this.
        TimedOutError: It did not happen in the time allowed.
    """
    declaration = COMMANDS.get(request.name)
    if declaration is None or declaration.run is None:
        raise RefusedError(
            f"The command {request.name} has not been found", ErrorClass.COMMAND_NOT_FOUND
        )
    check_arguments(declaration.arguments, request.arguments)
    return await declaration.run(context, **request.arguments)


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout <= MAX_TIMEOUT_SECONDS:
        raise RefusedError(
            f"Parameter 'timeout' expects seconds, more than 0 and at most {MAX_TIMEOUT_SECONDS:g}"
        )


@command("query-version")
async def query_version(context: Context) -> object:
    """Return the version of Ballast, in QEMU's form."""
    return context.version.to_json()


@command("query-commands")
async def query_commands(context: Context) -> object:
    """Return the names of all commands; `qmp-shell` completes them."""
    return [{"name": name} for name in COMMANDS]


@command("query-name")
async def query_name(context: Context) -> object:
    """Return the VM's name."""
    return {"name": context.vm.name}


@command("balloon")
async def balloon(context: Context, *, value: int) -> object:
    """Ask the guest for a logical size in bytes; more than its RAM means all of it.

    Unlike QEMU's this is accepted before the guest's driver is there, and remembered.
    """
    if value <= 0:
        raise RefusedError("Parameter 'value' expects a size")
    ram_bytes = context.vm.ram_bytes
    context.vm.set_target(value if ram_bytes is None else min(value, ram_bytes))
    return {}


@command("query-balloon")
async def query_balloon(context: Context) -> object:
    """Return the logical size that the guest says it has."""
    actual_bytes = context.vm.actual_bytes
    if actual_bytes is None:
        raise RefusedError("No balloon device has been activated", ErrorClass.DEVICE_NOT_ACTIVE)
    return {"actual": actual_bytes}


@command("qom-get")
async def qom_get(context: Context, *, path: str, property: str) -> object:
    """Return a property of the balloon."""
    return qom.get_property(context.vm, path, property)


@command("qom-set")
async def qom_set(context: Context, *, path: str, property: str, value: object) -> object:
    """Change a property of the balloon."""
    qom.set_property(context.vm, path, property, value)
    return {}


@command("qom-list")
async def qom_list(context: Context, *, path: str) -> object:
    """Return the properties of an object, its children among them."""
    return qom.list_properties(path)


@command("ballast-status")
async def ballast_status(context: Context) -> object:
    """Return everything that is known about the VM's memory."""
    vm = context.vm
    return {
        "name": vm.name,
        "ram-bytes": vm.ram_bytes,
        "target-bytes": vm.target_bytes,
        "actual-bytes": vm.actual_bytes,
        **vm.status(),
    }


@command("ballast-stats")
async def ballast_stats(
    context: Context,
    *,
    fresh: bool = False,
    timeout: float = 5.0,  # noqa: ASYNC109 - the name is the protocol's
) -> object:
    """Return the guest's statistics with their age, asking the guest for new ones if `fresh`."""
    _check_timeout(timeout)
    if fresh:
        await context.vm.refresh_stats(timeout)
    stats = context.vm.guest_stats
    age = max(0.0, context.unix_seconds() - stats.last_update) if stats.last_update else None
    return {
        "stats": named_stats(stats),
        "last-update": stats.last_update,
        "age-seconds": age,
        "fresh": fresh,
    }


@command("ballast-ledger")
async def ballast_ledger(context: Context) -> object:
    """Return the pages that the guest's kernel has given up, as runs of 4 KiB page frames."""
    return {"runs": [[first, count] for first, count in context.vm.ledger_runs()]}


@command("ballast-free-page-hint")
async def ballast_free_page_hint(context: Context, *, action: Literal["start", "stop"]) -> object:
    """Start or end a round of free page hinting."""
    if action == "start":
        context.vm.start_hinting()
    else:
        context.vm.stop_hinting()
    return {}


@command("ballast-report")
async def ballast_report(
    context: Context,
    *,
    timeout: float = 5.0,  # noqa: ASYNC109 - the name is the protocol's
) -> object:
    """Return a fresh memory report of the agent in the guest."""
    _check_timeout(timeout)
    return await context.vm.request_agent_report(timeout)
