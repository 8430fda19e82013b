"""`query-qmp-schema`: what can be said to a server, in QEMU's form (qapi/introspect.json).

As QEMU does, types have names that mean nothing, so that nobody relies on them: only commands,
events and the members of objects have names that count. Types that JSON knows, and arrays of them,
are the exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ballast_protocol.qmp.json_document import JsonValue
from ballast_protocol.qmp.types import Builtin, Choice, Either, ListOf, Member, Record, Type

Info = dict[str, JsonValue]
"""One element of the schema, QEMU's `SchemaInfo`."""

TYPE_PREFIX = "b"
"""What our types' names begin with. QEMU's are bare numbers, so both can stand in one schema."""


@dataclass(frozen=True)
class CommandType:
    """What there is to know of a command besides its name.

    Attributes:
        arguments: What it takes.
        returns: What it returns.
    """

    arguments: tuple[Member, ...]
    returns: Type


def describe(commands: Mapping[str, CommandType], events: Mapping[str, Record]) -> list[Info]:
    """Return the schema of commands and events, and of every type that they use."""
    namer = _Namer()
    entities: list[Info] = [
        {
            "name": name,
            "meta-type": "command",
            "arg-type": namer.name_of(Record(each.arguments)),
            "ret-type": namer.name_of(each.returns),
        }
        for name, each in commands.items()
    ]
    entities += (
        {"name": name, "meta-type": "event", "arg-type": namer.name_of(data)}
        for name, data in events.items()
    )
    return entities + namer.infos


def merge(theirs: Sequence[Info], ours: Iterable[Info]) -> list[Info]:
    """Return a schema with everything of `theirs`, and what only `ours` has."""
    known = {each["name"] for each in theirs}
    return [*theirs, *(each for each in ours if each["name"] not in known)]


class _Namer:
    """Gives types their names, and describes each once."""

    def __init__(self) -> None:
        self.infos: list[Info] = []
        self._names: dict[Type, str] = {}

    def name_of(self, some: Type) -> str:
        # What a type is for, and what it is called in a reference, are no part of it.
        bare = _bare(some)
        if bare not in self._names:
            self._names[bare] = self._new_name(bare)
            self.infos.append({"name": self._names[bare], **self._info(bare)})
        return self._names[bare]

    def _new_name(self, some: Type) -> str:
        if isinstance(some, Builtin):
            return some.name
        if isinstance(some, ListOf):
            return f"[{self.name_of(some.element)}]"
        return f"{TYPE_PREFIX}{len(self._names)}"

    def _info(self, some: Type) -> Info:
        if isinstance(some, Builtin):
            return {"meta-type": "builtin", "json-type": some.json_type}
        if isinstance(some, ListOf):
            return {"meta-type": "array", "element-type": self.name_of(some.element)}
        if isinstance(some, Choice):
            members: list[JsonValue] = [{"name": value} for value in some.values]
            return {"meta-type": "enum", "members": members, "values": list(some.values)}
        if isinstance(some, Either):
            options: list[JsonValue] = [{"type": self.name_of(each)} for each in some.options]
            return {"meta-type": "alternate", "members": options}
        return {"meta-type": "object", "members": [self._member(each) for each in some.members]}

    def _member(self, member: Member) -> JsonValue:
        info: dict[str, JsonValue] = {"name": member.name, "type": self.name_of(member.type)}
        return {**info, "default": None} if member.is_optional else info


def _bare(some: Type) -> Type:
    if isinstance(some, Builtin):
        return Builtin(some.name, some.json_type, "")
    if isinstance(some, Choice):
        return Choice(some.values)
    if isinstance(some, ListOf):
        return ListOf(_bare(some.element))
    if isinstance(some, Either):
        return Either(tuple(_bare(each) for each in some.options))
    return Record(
        tuple(
            Member(each.name, _bare(each.type), is_optional=each.is_optional)
            for each in some.members
        )
    )
