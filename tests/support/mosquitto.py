"""A real mosquitto that a test starts, kills and starts again, and its own clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ballast_images.broker import Broker

PATIENCE_SECONDS = 60.0
"""How long a test waits for what must come; a busy machine needs it."""


_PROBE = "test/subscribed"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody announces."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@dataclass
class Mosquitto:
    """A broker on this machine.

    Attributes:
        programs: What is run.
        directory: Where it keeps what it remembers, after every change.
        options: Lines of its configuration besides those every test needs.
        client_options: What its clients need on their command lines.
        port: Where it listens, the same after a restart.
    """

    programs: Broker
    directory: Path
    options: Sequence[str] = ("allow_anonymous true",)
    client_options: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    _process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def start(self) -> None:
        configuration = self.directory / "mosquitto.conf"
        configuration.write_text(
            "\n".join(
                (
                    # Started by root it would become another user, who cannot read the directory.
                    "user root",
                    f"listener {self.port} 127.0.0.1",
                    "persistence true",
                    f"persistence_location {self.directory}/",
                    "autosave_on_changes true",
                    "autosave_interval 1",
                    *self.options,
                    "",
                )
            )
        )
        self._process = await asyncio.create_subprocess_exec(
            self.programs.mosquitto, "-c", configuration, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await self._listens():
                assert self._process.returncode is None, "mosquitto has ended"
                await asyncio.sleep(0.02)
        # Who subscribes gets this last, and so knows that all the subscriptions are in force.
        await self.publish(_PROBE, "here", retain=True)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def kill(self) -> None:
        """End it as a crash does."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def terminate(self) -> None:
        """End it as an operator does."""
        assert self._process is not None
        self._process.terminate()
        await self._process.wait()

    def forget_everything(self) -> None:
        for database in self.directory.glob("mosquitto.db*"):
            database.unlink()

    async def remembers(self, session: str) -> None:
        """Wait until a client's session would survive `kill`."""
        database = self.directory / "mosquitto.db"
        await until(lambda: database.exists() and session.encode() in database.read_bytes())

    # Its clients ------------------------------------------------------------------------------

    def _client(self, *arguments: str) -> list[str]:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-V", "5", *self.client_options]
        return [*where, *arguments]

    async def publish(
        self,
        topic: str,
        payload: str,
        *,
        qos: int = 1,
        retain: bool = False,
        response_topic: str | None = None,
        correlation: str | None = None,
    ) -> None:
        properties = []
        if response_topic is not None:
            properties += ["-D", "publish", "response-topic", response_topic]
        if correlation is not None:
            properties += ["-D", "publish", "correlation-data", correlation]
        process = await asyncio.create_subprocess_exec(
            self.programs.publish,
            *self._client("-t", topic, "-m", payload, "-q", str(qos), *properties),
            *(["-r"] if retain else []),
        )
        assert await process.wait() == 0

    async def run(self, name: str, *arguments: str) -> str:
        """Run a client with this broker besides its arguments, and return what it prints."""
        (program,) = [each for each in self.programs.programs if each.name == name]
        process = await asyncio.create_subprocess_exec(
            program, *self._client(*arguments), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode()

    async def request(self, topic: str, payload: str) -> Any:
        """Publish and return the response, as `mosquitto_rr` prints it."""
        words = ("-t", topic, "-m", payload, "-q", "1", "-e", "test/responses")
        return json.loads(await self.run("mosquitto_rr", *words))

    @asynccontextmanager
    async def subscriber(self, *topics: str, session: str | None = None) -> AsyncIterator[Inbox]:
        """Run `mosquitto_sub`, which connects again by itself; `session` outlives the broker."""
        arguments = [word for topic in (*topics, _PROBE) for word in ("-t", topic)]
        if session is not None:
            arguments += ["-c", "-i", session, "-x", "3600"]
        process = await asyncio.create_subprocess_exec(
            self.programs.subscribe,
            *self._client(*arguments, "-q", "1", "-F", "%j"),
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        inbox = Inbox(process)
        try:
            await inbox.message(_PROBE)
            yield inbox
        finally:
            await inbox.close()


class Inbox:
    """What `mosquitto_sub` prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.messages: list[dict[str, Any]] = []
        self._process = process
        self._arrived = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            async with self._arrived:
                self.messages.append(json.loads(line))
                self._arrived.notify_all()

    async def message(self, topic: str, *, containing: str = "") -> dict[str, Any]:
        """Return, and take out, the first message to a topic that has a text in its payload."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._arrived:
            while True:
                for message in self.messages:
                    if message["topic"] == topic and containing in (message.get("payload") or ""):
                        self.messages.remove(message)
                        return message
                await self._arrived.wait()

    async def payload(self, topic: str, *, containing: str = "") -> Any:
        """Return the JSON payload of the first message to a topic that has a text in it."""
        message = await self.message(topic, containing=containing)
        return json.loads(message["payload"])

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading
