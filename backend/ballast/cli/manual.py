"""Manual pages of `ballast` and its commands, out of what `--help` says.

`python -m ballast.cli.manual DIRECTORY` writes one for each (man-pages(7), man(7)).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from ballast.cli.main import app
from ballast.daemon.version import ballast_version

SECTION = 1
"""User commands."""

EXIT_STATUSES: Mapping[str, str] = {
    "0": "Done.",
    "1": "Failed; standard error says why.",
    "2": "Wrong use.",
    "3": "Timed out.",
}

FILES: Mapping[str, str] = {
    "/run/ballast/VM/": "The runtime directory of a VM, with its sockets, where root serves it.",
    "$XDG_RUNTIME_DIR/ballast/VM/": "The same for other users.",
}

ENVIRONMENT: Mapping[str, str] = {
    "BALLAST_RUNTIME_DIR": "The directory of runtime directories, instead of those.",
    "BALLAST_CACHE": "Where a QEMU and a guest that were downloaded are kept.",
    "BALLAST_DEBIAN_MIRROR": "Where they are downloaded from.",
    "BALLAST_MQTT_PASSWORD_FILE": "The file with the password for the MQTT broker.",
}


@dataclass(frozen=True)
class Command:
    """One command, as a manual page tells of it.

    Attributes:
        words: How it is called: `ballast`, `image`, `build`.
        about: Paragraphs; the first is a sentence that says all.
        arguments: What each positional argument is.
        options: What each option does.
        commands: Its sub-commands.
    """

    words: tuple[str, ...]
    about: str
    arguments: Mapping[str, str]
    options: Mapping[str, str]
    commands: tuple[Command, ...] = field(default=())

    @property
    def name(self) -> str:
        """The name of its page."""
        return "-".join(self.words)

    @property
    def summary(self) -> str:
        """One line."""
        return " ".join(self.about.partition("\n\n")[0].split())


def commands() -> Command:
    """Return `ballast` with all its commands."""
    # typer's commands are click's, of whichever click it brings; they have no public types.
    return _read(typer.main.get_command(app), ("ballast",), None)


def _read(command: Any, words: tuple[str, ...], parent: Any) -> Command:
    context = command.context_class(
        command, info_name=words[-1], parent=parent, **command.context_settings
    )
    shown = [each for each in command.get_params(context) if not getattr(each, "hidden", False)]
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    options = (each.get_help_record(context) for each in shown if not _is_argument(each))
    return Command(
        words,
        inspect.cleandoc(command.help or ""),
        {_argument(each): str(each.help or "") for each in shown if _is_argument(each)},
        dict(filter(None, options)),
        tuple(_read(command.get_command(context, each), (*words, each), context) for each in names),
    )


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _argument(parameter: Any) -> str:
    """Return a positional argument as a synopsis shows it."""
    name = str(parameter.metavar or parameter.name.upper())
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def pages(root: Command) -> dict[str, str]:
    """Return the manual pages of a command and all below it, by their file names."""
    found = {}
    todo: list[tuple[Command, Command | None]] = [(root, None)]
    while todo:
        command, parent = todo.pop()
        found[f"{command.name}.{SECTION}"] = "\n".join(_page(command, parent)) + "\n"
        todo += [(each, command) for each in command.commands]
    return found


def _page(command: Command, parent: Command | None) -> Iterator[str]:
    yield f'.TH {_text(command.name.upper())} {SECTION} "" "Ballast {ballast_version()}" "Ballast"'
    yield from (".SH NAME", f"{_text(command.name)} \\- {_text(command.summary.rstrip('.'))}")
    yield from (".SH SYNOPSIS", f".B {_text(' '.join(command.words))}")
    rest = ["[OPTIONS]", *(["COMMAND"] if command.commands else command.arguments)]
    yield _text(" ".join(rest))
    yield from (".SH DESCRIPTION", *_paragraphs(command.about))
    yield from _list("ARGUMENTS", command.arguments)
    yield from _list("OPTIONS", command.options)
    below = {_reference(each): each.summary for each in command.commands}
    yield from _list("COMMANDS", below)
    yield from _list("EXIT STATUS", EXIT_STATUSES)
    if parent is None:
        yield from _list("FILES", FILES)
        yield from _list("ENVIRONMENT", ENVIRONMENT)
    else:
        yield from (".SH SEE ALSO", f".BR {_text(parent.name)} ({SECTION})")


def _reference(command: Command) -> str:
    return f"{command.name}({SECTION})"


def _list(title: str, items: Mapping[str, str]) -> Iterator[str]:
    if items:
        yield f".SH {title}"
    for name, meaning in items.items():
        yield from (".TP", f"\\fB{_text(name)}\\fR", _marked(" ".join(meaning.split())) or "\\&")


def _paragraphs(text: str) -> Iterable[str]:
    for paragraph in filter(None, text.split("\n\n")):
        yield from (".PP", _marked(" ".join(paragraph.split())))


def _marked(text: str) -> str:
    """Return text with Markdown's `code` in bold and *stress* in italics."""
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _text(text))
    return re.sub(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)", r"\\fI\1\\fR", text)


def _text(text: str) -> str:
    """Return text of which nothing is a request or an escape of roff's."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def main(directory: str) -> None:
    """Write all pages."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for name, text in pages(commands()).items():
        (target / name).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
