"""Messages between keeper and worker: those of `sd_notify`, and a few of the same form.

A message is a datagram of assignments, one a line. Descriptors go along with the one that names
them, so a message that has been sent is whole whatever becomes of its sender.

From the worker:

=================================  ===============================================================
``FDSTORE=1 FDNAME=N`` + 1 fd      keep this, instead of an older one of that name
``FDSTOREREMOVE=1 FDNAME=N``       let it go
``LOADED=1``                       the process has loaded its code, and waits
``READY=1``                        the worker serves
``STATUS=TEXT``                    what went wrong, before it ends
``STANDBY=1``                      the worker has checked what it would take over, and can
``RELOAD=1``                       replace me by a new version
``ATTACH=new|serving``             the first message to a keeper that runs as a service
=================================  ===============================================================

From the keeper:

=================================  ===============================================================
``FDNAMES=A:B:...`` + fds          some of what is held; `CHECK` or `GO` follows
``CHECK=1``                        look at it, and say `STANDBY`
``GO=1 REASON=... ...``            it is yours: serve
``CONNECTION=1 FDNAME=N`` + 1 fd   QEMU has connected; it is held under that name already
``LEAVE=1``                        end now and let everything be: a successor waits
``STOP=1``                         end for good, let go of everything
``FAILED=TEXT ATTEMPT=N``          the upgrade has failed
``REJECTED=N``                     this could not be kept: the store is full
``REFUSED=TEXT``                   another worker is at work
=================================  ===============================================================
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 1 << 16
"""Longer ones are cut off by the kernel, and then not understood."""

MAX_FDS = 128
"""Descriptors in one message; the kernel allows 253."""

Message = dict[str, str]


def encode(**assignments: object) -> bytes:
    """Return a message; line ends in its values become spaces."""
    return "\n".join(
        f"{key}={' '.join(str(value).splitlines())}" for key, value in assignments.items()
    ).encode()


def decode(data: bytes) -> Message:
    """Return a message's assignments; what is none is left out."""
    lines = data[:MAX_MESSAGE_BYTES].decode(errors="replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)
