"""Every QMP command and event, declared once.

From `COMMANDS` and `EVENTS` come the check of a command's arguments, `query-commands`,
`query-qmp-schema` and the reference page. A command's arguments are the keyword parameters of its
function, and nowhere else::

    @command("ballast-example", returns=results.EXAMPLE)
    async def ballast_example(
        context: Context, *, stall_timeout: Annotated[float, "Seconds without progress."] = 5.0
    ) -> object:
        '''Do something.'''
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ballast.qmp import qom
from ballast.qmp.control import BalloonControl
from ballast_protocol.errors import InternalError
from ballast_protocol.qmp import (
    NEGOTIATE,
    NEGOTIATE_ARGUMENTS,
    Command,
    ErrorClass,
    RefusedError,
    Version,
    check_arguments,
)
from ballast_protocol.qmp.introspection import CommandType, Info, describe
from ballast_protocol.qmp.types import (
    ANY,
    BOOLEAN,
    EMPTY,
    INTEGER,
    NUMBER,
    STRING,
    Choice,
    Either,
    ListOf,
    Member,
    Record,
    Type,
)

_BUILTINS: dict[object, Type] = {
    int: INTEGER,
    float: NUMBER,
    bool: BOOLEAN,
    str: STRING,
    object: ANY,
}


def _nothing() -> Mapping[str, object]:
    return {}


@dataclass(frozen=True)
class Context:
    """What a command works on.

    Attributes:
        vm: The VM whose socket the command came from.
        version: Who we are.
        socket_status: What there is to know of the VM's QMP socket, for `ballast-status`.
        balloon_id: The id of the balloon's device in QEMU.
    """

    vm: BalloonControl
    version: Version
    socket_status: Callable[[], Mapping[str, object]] = _nothing
    balloon_id: str = qom.BALLOON_ID

    @property
    def qom_tree(self) -> qom.Tree:
        """The QOM objects that there are."""
        return qom.balloon_tree(self.balloon_id)


Run = Callable[..., Coroutine[object, object, object]]
_AnyRun = TypeVar("_AnyRun", bound=Run)


@dataclass(frozen=True)
class Declaration:
    """A command that clients can execute.

    Attributes:
        arguments: What it takes.
        returns: What it returns.
        doc: What it does.
        run: The coroutine function behind it; None where the session answers by itself.
        answers_late: Whether, with these arguments, it may take so long that the client's next
            commands do not wait for it, if replies can be told apart by their ids.
    """

    arguments: tuple[Member, ...]
    returns: Type
    doc: str
    run: Run | None
    answers_late: Callable[[Mapping[str, object]], bool] = lambda arguments: False


@dataclass(frozen=True)
class EventDeclaration:
    """An event that clients may get.

    Attributes:
        data: What it carries.
        doc: When it comes.
        period_seconds: The time between two of them at least; 0 for no limit.
        ends: A paced event that means nothing any more once this one has come.
        lasting_seconds: Clients that connect within that time get it when they are ready.
    """

    data: Record
    doc: str
    period_seconds: float = 0.0
    ends: str = ""
    lasting_seconds: float = 0.0


COMMANDS: dict[str, Declaration] = {
    NEGOTIATE: Declaration(
        NEGOTIATE_ARGUMENTS,
        EMPTY,
        "End the negotiation that every connection begins with. Must be the first command.",
        None,
    )
}
"""Every command by name."""

EVENTS: dict[str, EventDeclaration] = {
    "BALLOON_CHANGE": EventDeclaration(
        Record((Member("actual", INTEGER, "The logical size of the guest, in bytes."),)),
        "The guest says that it has another size than before. Paced as in QEMU: at most one a "
        "second, the last value always among them.",
        1.0,
    )
}
"""Every event by name."""


def _declare(parameter: inspect.Parameter, hint: object) -> Member:
    doc = ""
    if get_origin(hint) is Annotated:
        hint, doc = get_args(hint)
    is_optional = parameter.default is not inspect.Parameter.empty
    name = parameter.name.replace("_", "-")
    return Member(name, _type_of(hint), doc, is_optional)


def _type_of(hint: object) -> Type:
    if hint in _BUILTINS:
        return _BUILTINS[hint]
    arguments = [each for each in get_args(hint) if each is not type(None)]
    if get_origin(hint) is Literal:
        return Choice(tuple(arguments))
    if get_origin(hint) is list:
        return ListOf(_type_of(arguments[0]))
    # A parameter that may be None is one that may be left out.
    if len(arguments) == 1:
        return _type_of(arguments[0])
    if get_origin(hint) is Union or arguments:
        return Either(tuple(_type_of(each) for each in arguments))
    raise InternalError(f"QMP has no type for {hint}")


def command(
    name: str,
    *,
    returns: Type = ANY,
    answers_late: Callable[[Mapping[str, object]], bool] = lambda arguments: False,
) -> Callable[[_AnyRun], _AnyRun]:
    """Register a coroutine function `(context, *, arguments...)` as a command.

    Args:
        name: The command.
        returns: What it returns.
        answers_late: As in `Declaration`.
    """

    def register(run: _AnyRun) -> _AnyRun:
        hints = get_type_hints(run, include_extras=True)
        parameters = inspect.signature(run).parameters.values()
        arguments = tuple(
            _declare(each, hints[each.name])
            for each in parameters
            if each.kind is each.KEYWORD_ONLY
        )
        COMMANDS[name] = Declaration(
            arguments, returns, inspect.getdoc(run) or "", run, answers_late
        )
        return run

    return register


def answers_late(request: Command) -> bool:
    """Return whether a client's later commands need not wait for the reply to this one."""
    declaration = COMMANDS.get(request.name)
    return (
        bool(request.echo)
        and declaration is not None
        and declaration.answers_late(request.arguments)
    )


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
    if request.is_out_of_band:
        raise RefusedError(f"The command {request.name} does not support OOB")
    check_arguments(declaration.arguments, request.arguments)
    arguments = {name.replace("-", "_"): value for name, value in request.arguments.items()}
    return await declaration.run(context, **arguments)


def schema() -> list[Info]:
    """Return the introspection of all commands and events."""
    commands = {name: CommandType(each.arguments, each.returns) for name, each in COMMANDS.items()}
    return describe(commands, {name: each.data for name, each in EVENTS.items()})
