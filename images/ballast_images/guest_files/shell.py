"""Runs commands in the guest for the host: JSON lines over a virtio-serial port.

::

    host  -> {"hello": true}
    guest -> {"ready": {"session": "...", "boot_id": "...", "release": "6.12..."}}
    host  -> {"id": 7, "argv": ["sh", "-c", "free"], "stdin": null, "timeout": 60.0}
    guest -> {"id": 7, "status": 0, "stdout": "...", "stderr": "", "timed_out": false}

The guest also says that it is ready when it starts. Commands run side by side, each in a process
group of its own, which is killed when its time is up. Of each output stream the first
`MAX_OUTPUT_BYTES` are kept. A command is over when its output is closed: whatever it leaves
running in the background has to be redirected.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any

PORT = "/dev/virtio-ports/org.ballast.shell.0"

MAX_OUTPUT_BYTES = 1 << 20
"""How much of a command's standard output, and of its standard error, is sent to the host."""

MAX_LINE_BYTES = 8 << 20
"""A request longer than this is dropped."""

NO_HOST_PAUSE_S = 0.05
"""How long to wait before looking again whether the host is there."""

STATUS_NOT_STARTED = 127
"""What a shell says of a command that it cannot start."""


def run(argv: list[str], stdin: str | None, timeout_s: float | None) -> dict[str, Any]:
    """Run one command to its end, or until its time is up, and return the answer's fields."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        message = f"{argv[0]}: {error.strerror}\n"
        return _answer(STATUS_NOT_STARTED, b"", message.encode(), False)
    outputs = [bytearray(), bytearray()]
    readers = [
        threading.Thread(target=_drain, args=(stream, kept), daemon=True)
        for stream, kept in zip((process.stdout, process.stderr), outputs)
    ]
    if stdin is not None:
        readers.append(
            threading.Thread(target=_feed, args=(process.stdin, stdin.encode()), daemon=True)
        )
    for reader in readers:
        reader.start()
    timed_out = _wait(process, readers, timeout_s)
    return _answer(process.returncode, bytes(outputs[0]), bytes(outputs[1]), timed_out)


def _wait(
    process: subprocess.Popen[bytes], readers: list[threading.Thread], timeout_s: float | None
) -> bool:
    """Wait for the command and its output; kill its group and return True if it takes too long."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for reader in readers:
        reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    timed_out = any(reader.is_alive() for reader in readers)
    if not timed_out:
        try:
            process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            timed_out = True
    if timed_out:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return timed_out


def _drain(stream: Any, kept: bytearray) -> None:
    with stream:
        for chunk in iter(lambda: stream.read1(1 << 16), b""):
            kept += chunk[: MAX_OUTPUT_BYTES - len(kept)]


def _feed(stream: Any, data: bytes) -> None:
    try:
        with stream:
            stream.write(data)
    except BrokenPipeError:
        # The command did not want to read all of it.
        pass


def _answer(status: int, stdout: bytes, stderr: bytes, timed_out: bool) -> dict[str, Any]:
    return {
        "status": status,
        "stdout": stdout.decode(errors="replace"),
        "stderr": stderr.decode(errors="replace"),
        "timed_out": timed_out,
    }


class Service:
    """Answers the host on one port, which is a file descriptor open for reading and writing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._session = os.urandom(16).hex()

    def serve(self, *, is_serial: bool = True) -> None:
        """Answer until the port fails or, if it is no serial port, until it is closed.

        Args:
            is_serial: Whether an end of file means that the host is away for now.
        """
        self.say_ready()
        pending = bytearray()
        while True:
            chunk = self._read()
            if not chunk:
                if not is_serial:
                    return
                # The port polls as hung up for as long as the host is not connected.
                pending.clear()
                time.sleep(NO_HOST_PAUSE_S)
            pending += chunk
            *lines, rest = pending.split(b"\n")
            pending = rest if len(rest) <= MAX_LINE_BYTES else bytearray()
            for line in lines:
                self._handle(bytes(line))

    def say_ready(self) -> None:
        """Tell the host who answers. The leading newline ends what a predecessor left half said."""
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot_id = file.read().strip()
        ready = {"session": self._session, "boot_id": boot_id, "release": os.uname().release}
        self._send({"ready": ready}, prefix=b"\n")

    def _read(self) -> bytes:
        select.select([self._port], [], [])
        return os.read(self._port, 1 << 16)

    def _handle(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except ValueError:
            # An empty line, or one whose beginning went to a predecessor.
            return
        if not isinstance(request, dict):
            return
        if "hello" in request:
            self.say_ready()
        elif "argv" in request:
            threading.Thread(target=self._run, args=(request,), daemon=True).start()

    def _run(self, request: dict[str, Any]) -> None:
        answer = run(request["argv"], request.get("stdin"), request.get("timeout"))
        self._send({"id": request["id"], **answer})

    def _send(self, message: dict[str, Any], prefix: bytes = b"") -> None:
        data = prefix + json.dumps(message).encode() + b"\n"
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self._port, view) :]


def main() -> int:
    """Serve the port that the first argument names."""
    port = os.open(sys.argv[1] if len(sys.argv) > 1 else PORT, os.O_RDWR)
    Service(port).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
