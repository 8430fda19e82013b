"""The kernel's alarm for memory: a file that becomes readable when tasks have waited for it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

STALL_MICROSECONDS = 100_000
WINDOW_MICROSECONDS = 1_000_000

log = logging.getLogger(__name__)


class StallAlarm:
    """Raised when some task has waited for memory for a tenth of a second within one.

    Attributes:
        fd: To be polled for `POLLPRI`; None where the kernel does not measure stalls.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self.fd: int | None = None
        path = proc / "pressure/memory"
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(self.fd, f"some {STALL_MICROSECONDS} {WINDOW_MICROSECONDS}\0".encode())
        except OSError as error:
            log.info("stalls are not noticed, only MemAvailable is: %s: %s", path, error.strerror)
            self.close()

    def close(self) -> None:
        """Stop measuring."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
