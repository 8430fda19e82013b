"""A worker that serves nothing: what the keeper's tests start, kill and replace.

Run as a program with a file that says how it behaves, which is read at the start, as code is.
What it was given it tells in a file of memory that it leaves with the keeper as `vm/takeover`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from ballast.keeper.channel import receive
from ballast.keeper.client import DismissedError, KeeperStore
from ballast.keeper.supervisor import KEEPER_FD_VARIABLE
from ballast.keeper.vault import ALIVE
from ballast_protocol.errors import OperatorError


def note(store: KeeperStore, name: str, text: str) -> None:
    """Leave a text with the keeper."""
    fd = os.memfd_create(name)
    os.write(fd, text.encode())
    store.put(name, fd)
    os.close(fd)


def serve(store: KeeperStore) -> None:
    """Obey until told to end."""
    while True:
        received = receive(store._sock, wait=True)
        if received is None:
            continue
        message, fds = received
        for fd in fds:
            os.close(fd)
        if "STOP" in message:
            store.drop("vm/takeover")
            sys.exit(0)
        if "LEAVE" in message:
            sys.exit(0)
        if "FAILED" in message:
            note(store, "vm/failed", message["FAILED"])


def beat(life: int) -> None:
    """Show signs of life for ever."""
    while True:
        os.eventfd_write(life, 1)
        time.sleep(0.005)


def main() -> None:
    behaviour = Path(sys.argv[1]).read_text()
    store = KeeperStore(socket.socket(fileno=int(os.environ[KEEPER_FD_VARIABLE])))

    def check(left: dict[str, int]) -> None:
        if behaviour == "cannot read":
            raise OperatorError("a state of version 9")

    if behaviour == "wrong use":
        sys.exit(2)
    try:
        takeover = store.wait(check)
    except DismissedError:
        return
    except OperatorError as error:
        store.complain(str(error))
        sys.exit(1)
    if behaviour == "dies":
        os.kill(os.getpid(), signal.SIGABRT)
    if behaviour == "hangs":
        signal.pause()
    left = store.take_all()
    note(
        store,
        "vm/takeover",
        f"{behaviour}|{takeover.kind}|{takeover.reason}|{','.join(sorted(left))}",
    )
    if behaviour.startswith("shows"):
        life = os.eventfd(1, os.EFD_NONBLOCK)
        store.put(ALIVE, life)
        if behaviour == "shows life":
            threading.Thread(target=beat, args=(life,), daemon=True).start()
    store.ready()
    serve(store)


if __name__ == "__main__":
    main()
