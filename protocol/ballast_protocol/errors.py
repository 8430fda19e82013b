"""Whose fault it is: the one tree of errors that Ballast raises on purpose.

::

    BallastError
    ├── InternalError       ours: a caller inside Ballast broke a contract; please report it
    ├── PeerError           the other end of a socket (QEMU, an agent, a client) broke a protocol
    │   ├── TruncatedError  a message ended before its fixed part did
    │   └── MalformedError  a message is whole but says something that the protocol forbids
    ├── GuestError          the guest's driver or memory is wrong; counted and skipped, never fatal
    │   ├── AddressError    an address outside the guest's current memory
    │   └── QueueError      a virtqueue that breaks the virtio specification
    └── OperatorError       the request, the command line or the machine; says what to do about it
        ├── TimedOutError   what was asked for did not happen in the time allowed
        └── StateError      what an earlier process left cannot be used by this one

What follows from each: an `InternalError` ends the task that met it and is logged with its
traceback; a `PeerError` ends that one connection; a `GuestError` is counted in the device's
metrics; an `OperatorError` is shown as one sentence plus its hint, without a traceback.

This module runs in the guest too, so it keeps to Python 3.9.
"""

from __future__ import annotations


class BallastError(Exception):
    """Root of every error that Ballast raises on purpose."""


class InternalError(BallastError):
    """A caller inside Ballast broke a contract: a bug of ours."""


class PeerError(BallastError):
    """The other end of a connection broke its protocol; the connection cannot go on."""


class TruncatedError(PeerError):
    """A message ended before its fixed part did."""


class MalformedError(PeerError):
    """A message is whole but says something that its protocol forbids."""


class GuestError(BallastError):
    """The guest's driver or memory is wrong. Counted and skipped, never fatal to the daemon."""


class AddressError(GuestError):
    """An address range that does not lie wholly inside the guest's current memory."""


class QueueError(GuestError):
    """A virtqueue whose contents break the virtio specification."""


class OperatorError(BallastError):
    """What the operator asked for, or the machine it was asked on, cannot do this.

    Attributes:
        hint: What to do about it, one sentence; empty where the message says it all.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class TimedOutError(OperatorError):
    """What was asked for did not happen in the time allowed."""


class StateError(OperatorError):
    """What an earlier process left for this one is damaged, or of a version unknown here."""
