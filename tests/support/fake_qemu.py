"""QEMU's monitor without QEMU: one client at a time, commands in order, events at will."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ballast_protocol.qmp.json_stream import JsonStream
from ballast_protocol.virtio.balloon import STATISTIC_UNSET, STATISTICS

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": "Debian"},
        "capabilities": ["oob"],
    }
}

Reply = dict[str, Any]


class FakeQemu:
    """Answers as told.

    Attributes:
        answers: What commands return, or an error; or a function of their arguments that does.
        asked: The commands that came, in order, `query-status` aside.
        enabled: The capabilities that the client has enabled.
        gate: While it is set to an event, commands wait for that; those out of band do not.
        is_mute: Whether a client is left without a greeting.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "qmp_capabilities": {},
            "query-status": {"status": "running", "running": True},
        }
        self.asked: list[Reply] = []
        self.enabled: list[str] = []
        self.gate: asyncio.Event | None = None
        self.is_mute = False
        self._turn = asyncio.Lock()
        self._order = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client when the one before has left."""
        async with self._turn:
            if self.is_mute:
                await reader.read()
                writer.close()
                return
            self._writer = writer
            self._send(GREETING)
            stream = JsonStream()
            while data := await reader.read(1 << 16):
                stream.feed(data)
                while (document := stream.next_document()) is not None:
                    assert isinstance(document.value, dict)
                    task = asyncio.create_task(self._answer(document.value))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            self._writer = None
            writer.close()

    async def _answer(self, message: Any) -> None:
        name = message.get("execute") or message.get("exec-oob")
        if name == "qmp_capabilities":
            self.enabled = message.get("arguments", {}).get("enable", [])
        elif name != "query-status":
            self.asked.append({key: value for key, value in message.items() if key != "id"})
        if "execute" in message:
            async with self._order:
                if self.gate is not None and name not in ("qmp_capabilities", "query-status"):
                    await self.gate.wait()
        answer = self.answers.get(str(name))
        if callable(answer):
            answer = answer(message.get("arguments", {}))
        is_error = isinstance(answer, dict) and "class" in answer
        echo = {"id": message["id"]} if "id" in message else {}
        if answer is None:
            desc = f"The command {name} has not been found"
            answer, is_error = {"class": "CommandNotFound", "desc": desc}, True
        self._send({"error" if is_error else "return": answer, **echo})

    def emit(self, event: Reply) -> None:
        """Send an event."""
        self._send(event)

    def _send(self, message: Reply) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\r\n")

    def hang_up(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()


@asynccontextmanager
async def fake_qemu(path: Path) -> AsyncIterator[FakeQemu]:
    """Run one; at the end its socket and its connection are gone."""
    qemu = FakeQemu()
    server = await asyncio.start_unix_server(qemu.converse, path)
    try:
        yield qemu
    finally:
        server.close()
        qemu.hang_up()
        with suppress(FileNotFoundError):
            os.unlink(path)
        for task in qemu._tasks:
            task.cancel()
        await asyncio.sleep(0)


@dataclass
class FakeBalloon:
    """The balloon of a fake QEMU.

    Attributes:
        place: Where it is; empty if there is none.
        ram_bytes: The machine's size.
        actual_bytes: The guest's.
        interval: The polling interval; all that it ever was is in `intervals`.
        last_update: When statistics came.
        answers_polls: Whether the guest answers when it is polled.
    """

    place: str = "/machine/peripheral"
    ram_bytes: int = 1 << 30
    actual_bytes: int = 1 << 30
    interval: int = 0
    last_update: int = 0
    answers_polls: bool = True
    intervals: list[int] = field(default_factory=list)

    def serve(self, qemu: FakeQemu) -> None:
        """Have a QEMU answer for it."""
        qemu.answers |= {
            "query-memory-size-summary": {"base-memory": self.ram_bytes, "plugged-memory": 0},
            "qom-list": self._listed,
            "qom-get": self._get,
            "qom-set": self._set,
            "query-balloon": lambda _: self._or_inactive({"actual": self.actual_bytes}),
            "balloon": self._move,
        }

    def _or_inactive(self, answer: Reply) -> Reply:
        desc = "No balloon device has been activated"
        return answer if self.place else {"class": "DeviceNotActive", "desc": desc}

    def _listed(self, arguments: Reply) -> Any:
        balloon = {"name": "b", "type": "child<virtio-balloon-pci>"}
        return [balloon] if arguments["path"] == self.place else []

    def _get(self, arguments: Reply) -> Any:
        assert arguments["path"] == f"{self.place}/b"
        if arguments["property"] == "guest-stats":
            unset = {each.name: STATISTIC_UNSET for each in STATISTICS}
            sent = {"stat-free-memory": 77} if self.last_update else {}
            return {"stats": {**unset, **sent}, "last-update": self.last_update}
        return self.interval

    def _set(self, arguments: Reply) -> Any:
        self.interval = arguments["value"]
        self.intervals.append(self.interval)
        if self.interval and self.answers_polls:
            self.last_update += 1
        return {}

    def _move(self, arguments: Reply) -> Any:
        self.actual_bytes = arguments["value"]
        return self._or_inactive({})
