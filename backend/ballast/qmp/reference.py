"""Writes the reference of the QMP commands and events, out of their declarations.

`python -m ballast.qmp.reference docs/qmp.md` replaces what stands between the two marks there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ballast.qmp.commands import COMMANDS, EVENTS
from ballast.qmp.registry import Declaration
from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp.types import Builtin, Choice, Either, ListOf, Member, Record, Type

BEGIN = "<!-- begin of the reference; `make docs` writes it -->"
END = "<!-- end of the reference -->"

_OURS = "ballast-"


def render() -> str:
    """Return the reference as Markdown."""
    qemus = {name: each for name, each in COMMANDS.items() if not name.startswith(_OURS)}
    ours = {name: each for name, each in sorted(COMMANDS.items()) if name.startswith(_OURS)}
    lines = ["## QEMU's commands", ""]
    for name, declaration in qemus.items():
        lines += _command(name, declaration)
    lines += ["## Commands of Ballast's own", ""]
    for name, declaration in ours.items():
        lines += _command(name, declaration)
    lines += ["## Events", ""]
    for name, event in sorted(EVENTS.items()):
        lines += [f"### `{name}`", "", event.doc, ""]
        lines += _table("data", event.data.members)
    return "\n".join(lines)


def insert(page: str) -> str:
    """Return a page with the reference as it is now.

    Raises:
        OperatorError: The page has no marks.
    """
    return between_marks(page, render())


def between_marks(page: str, text: str) -> str:
    """Return a page with a text in the place of what stands between its marks.

    Raises:
        OperatorError: The page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OperatorError(f"the page lacks {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def _command(name: str, declaration: Declaration) -> Iterator[str]:
    yield from (f"### `{name}`", "", declaration.doc, "")
    yield from _table("argument", declaration.arguments)
    if isinstance(declaration.returns, Record) and not declaration.returns.members:
        return
    yield from (f"Returns: {_type(declaration.returns)}.", "")
    record = _record(declaration.returns)
    if record is not None:
        yield from _table("member", record.members)


def _record(some: Type) -> Record | None:
    """Return the object that a result is, may be, or is a list of."""
    if isinstance(some, ListOf):
        return _record(some.element)
    if isinstance(some, Either):
        return next(filter(None, map(_record, some.options)), None)
    return some if isinstance(some, Record) else None


def _table(title: str, members: Iterable[Member]) -> Iterator[str]:
    rows = [row for member in members for row in _rows(member, "")]
    if rows:
        yield from (f"| {title} | type | meaning |", "|---|---|---|", *rows, "")


def _rows(member: Member, prefix: str) -> Iterator[str]:
    name = f"{prefix}{member.name}"
    optional = " (optional)" if member.is_optional else ""
    yield f"| `{name}`{optional} | {_type(member.type)} | {member.doc} |"
    record = _record(member.type)
    if record is not None:
        for each in record.members:
            yield from _rows(each, f"{name}.")


def _type(some: Type) -> str:
    if isinstance(some, Builtin):
        return some.name
    if isinstance(some, ListOf):
        return f"list of {_type(some.element)}"
    if isinstance(some, Choice):
        return ", ".join(f"`{value}`" for value in some.values)
    if isinstance(some, Either):
        return " or ".join(_type(each) for each in some.options)
    return "object"


def main(path: str) -> None:
    """Bring the reference in a file up to date."""
    page = Path(path)
    page.write_text(insert(page.read_text()))


if __name__ == "__main__":
    main(sys.argv[1])
