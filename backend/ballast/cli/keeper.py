"""`ballast keeper`: the keeper as a service of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ballast.cli.common import dig
from ballast.daemon.keeping import become_keeper, default_socket
from ballast_protocol.errors import OperatorError

OnlyKeeper = Annotated[
    bool,
    typer.Option(
        "--keeper",
        help="Run a `ballast keeper` beside QEMU and no worker: `ballast serve VM --keeper PATH` "
        "does the work in another container, may come and go, and has the balloon's options.",
    ),
]
WorkerTimeout = Annotated[
    float,
    typer.Option(min=0, metavar="SECONDS", help="With --keeper: how long to wait for a worker."),
]


def keeper(
    socket: Annotated[
        Path | None,
        typer.Option(
            help="Where workers attach; by default keeper.sock in the runtime directory.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Hold QEMU's connections for workers that come and go.

    For when the worker runs elsewhere, in a container of its own for example: run this where
    it ends no sooner than QEMU, and `ballast serve --keeper PATH` where you like. One worker
    at a time is served; when it ends, the next gets everything.
    """
    path = socket or default_socket()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"cannot make {path.parent}: {error.strerror}") from error
    become_keeper("--socket", str(path))


def restarts_text(status: Mapping[str, object]) -> str:
    """Return what a VM's `ballast-status` says of restarts; empty if there is nothing to tell."""
    restarts, reason = dig(status, "keeper", "restarts"), dig(status, "keeper", "last-reason")
    gap = dig(status, "keeper", "last-gap-seconds")
    parts = []
    if isinstance(restarts, int) and restarts:
        parts.append(f"worker restarted {'once' if restarts == 1 else f'{restarts} times'}")
    if parts and reason:
        took = f", guest waited {gap * 1000:.0f} ms" if isinstance(gap, int | float) else ""
        parts.append(f"last: {reason}{took}")
    # A keeper in another container has a process id there; here it is 0.
    is_kept = dig(status, "keeper", "keeper-pid") is not None
    if dig(status, "keeper", "mode") in ("parent", "service") and not is_kept:
        parts.append("its keeper is gone: do not stop this process while the VM runs")
    return "; ".join(parts)
