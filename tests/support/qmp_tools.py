"""QEMU's own QMP tools, with somebody at their keyboard."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

_TOOLS = Path(sys.executable).parent
_SCREEN = (50, 160)
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[a-zA-Z]|[()][A-Z0-9]|[=>])|\x0e|\x0f")
_F5 = b"\x1b[15~"
_REDRAW_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0


async def qmp_shell(socket: Path, commands: Sequence[str], home: Path) -> list[Any]:
    """Type commands into `qmp-shell`, and return what each was answered.

    Args:
        socket: Where the server is.
        commands: One a line, in the shell's own language.
        home: Where it may keep its history.
    """
    shell = await asyncio.create_subprocess_exec(
        *(_TOOLS / "qmp-shell", str(socket)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": str(home)},
    )
    async with asyncio.timeout(_PATIENCE_SECONDS):
        typed = "".join(f"{command}\n" for command in commands)
        output, errors = await shell.communicate(typed.encode())
    assert shell.returncode == 0, errors.decode()
    lines = output.decode().splitlines()
    assert any(line.startswith("Connected to QEMU") for line in lines), output
    return [json.loads(line[line.index("{") :]) for line in lines if "{" in line]


@asynccontextmanager
async def qmp_tui(socket: Path) -> AsyncIterator[Tui]:
    """Run `qmp-tui` on a terminal of its own, and end it with the context."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *_SCREEN, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(_TOOLS / "qmp-tui", str(socket)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    try:
        yield Tui(ours)
        assert process.returncode is None
    finally:
        process.kill()
        await process.wait()
        os.close(ours)


class Tui:
    """A running `qmp-tui`, which is looked at; it talks by itself."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._shown = ""

    async def see(self, text: str) -> None:
        """Wait until the terminal has shown a text; spaces do not matter."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while text.replace(" ", "") not in self._seen():
                await self._read()

    def _seen(self) -> str:
        return re.sub(r"\s", "", _ESCAPES.sub("", self._shown))

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._terminal, readable.set)
        try:
            async with asyncio.timeout(_REDRAW_SECONDS):
                await readable.wait()
        except TimeoutError:
            # It draws what it has received when a key is pressed.
            os.write(self._terminal, _F5)
        else:
            self._shown += os.read(self._terminal, 1 << 16).decode(errors="replace")
        finally:
            loop.remove_reader(self._terminal)
