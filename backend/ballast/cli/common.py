"""What several commands share: option types, tables, JSON, and shell completion of VM names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ballast.daemon.config import Transport, VariantName
from ballast.daemon.paths import VmPaths, served_names
from ballast.sizes import format_size, parse_size
from ballast_protocol.errors import OperatorError

console = Console()
"""Where results go."""

messages = Console(stderr=True)
"""Where messages and progress go."""


def complete_vm(incomplete: str) -> list[str]:
    """Return the names of served VMs that begin as typed."""
    return [name for name in served_names() if name.startswith(incomplete)]


VmName = Annotated[
    str, typer.Argument(help="The VM's name.", autocompletion=complete_vm, show_default=False)
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
QemuPath = Annotated[
    Path | None,
    typer.Option("--qemu", help="The QEMU to use; otherwise PATH, then Debian's.", dir_okay=False),
]


TransportName = Annotated[
    Transport, typer.Option("--transport", help="What QEMU speaks to the balloon.")
]
Variant = Annotated[
    VariantName,
    typer.Option(
        "--variant",
        help=(
            "With vfio-user: msix-mapped is fast and safe from a dead server; intx can be "
            "hot-unplugged, which QEMU 11.1 does not survive with MSI-X."
        ),
    ),
]


def size_argument(text: str) -> int:
    """Parse a size on the command line.

    Raises:
        typer.BadParameter: It is not a size, which is wrong use.
    """
    try:
        size = parse_size(text)
    except OperatorError as error:
        raise typer.BadParameter(f"{error}. {error.hint}") from error
    if size <= 0:
        raise typer.BadParameter("a guest needs more than 0 bytes")
    return size


def rate_argument(text: str) -> int:
    """Parse bytes per second on the command line: a size, or 0.

    Raises:
        typer.BadParameter: It is neither, which is wrong use.
    """
    try:
        return parse_size(str(text).removesuffix("/s"))
    except OperatorError as error:
        raise typer.BadParameter(f"{error} (per second). {error.hint}") from error


def print_json(value: object) -> None:
    """Print a value as JSON, in one piece and without colours."""
    typer.echo(json.dumps(value, indent=2))


def qmp_socket(name: str) -> Path:
    """Return the QMP socket of a VM."""
    return VmPaths(name).qmp


def size_cell(value: object) -> str:
    """Return a size for a table; a dash where there is none."""
    return format_size(value) if isinstance(value, int) else "-"


def dig(value: object, *keys: str) -> object:
    """Return what is at a path of keys in nested mappings, or None."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def write_text(path: Path, text: str) -> None:
    """Write a file that the operator asked for.

    Raises:
        OperatorError: It cannot be written.
    """
    try:
        path.write_text(text)
    except OSError as error:
        raise OperatorError(f"cannot write {path}: {error.strerror}") from error
