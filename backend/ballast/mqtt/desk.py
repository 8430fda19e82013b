"""Where commands arrive: each is taken over once and carried out, and its sender gets a result.

A command is acknowledged when it has been taken over, which is when the VM's governor has it: from
then on it is ours to carry out and to answer. Before that the broker keeps it, and sends it again
if the connection is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ballast.mqtt import payloads
from ballast.mqtt.command import Memory, Request, parse_command
from ballast.mqtt.outbox import Outbox
from ballast.mqtt.promises import Promises
from ballast.mqtt.topics import Topics, is_topic_name
from ballast.qmp.control import BalloonControl
from ballast_protocol.errors import BallastError, OperatorError

log = logging.getLogger(__name__)

MAX_RUNNING = 256
"""Commands that are being carried out at the same time; more are refused."""


@dataclass(slots=True)
class DeskCounters:
    """What has come in.

    Attributes:
        commands: Commands that were taken over.
        refused: Those among them that could not be carried out at all.
        repeated: Commands that had come before, and were not carried out again.
        ignored: Retained commands, which are as old as they may be.
    """

    commands: int = 0
    refused: int = 0
    repeated: int = 0
    ignored: int = 0


class Desk:
    """Takes commands for VMs.

    Attributes:
        counters: What has come in.
    """

    def __init__(
        self,
        topics: Topics,
        vms: Mapping[str, BalloonControl],
        outbox: Outbox,
        awaited_changed: Callable[[str], None] = lambda vm_name: None,
    ) -> None:
        """Make it.

        Args:
            topics: The topics of this host.
            vms: The VMs by name.
            outbox: Where results go.
            awaited_changed: Called with a VM's name when other resizes of it are waited for.
        """
        self.counters = DeskCounters()
        self._topics = topics
        self._vms = vms
        self._outbox = outbox
        self._awaited_changed = awaited_changed
        self._memory = Memory()
        self._running: dict[asyncio.Task[None], tuple[str, int, Request]] = {}

    def take(self, vm_name: str, request: Request, acknowledge: Callable[[], None]) -> None:
        """Take a command over, if it is one; `acknowledge` is called when the broker may forget it.

        A retained one is left alone: nobody knows how old it is, and it would come again with every
        new session.
        """
        if request.is_retained:
            self.counters.ignored += 1
            log.warning(
                "MQTT: ignoring the retained command on %s; publish commands without retain, and "
                "clear this one by publishing an empty retained message",
                request.topic,
            )
            acknowledge()
        elif self._memory.is_redelivery(request):
            self.counters.repeated += 1
            acknowledge()
        elif self._memory.is_known(request):
            self.counters.repeated += 1
            result = self._memory.result(request)
            if result is not None:
                self._promise(vm_name, request, result)
            acknowledge()
        else:
            self.counters.commands += 1
            self._begin(vm_name, request, acknowledge)

    def _begin(self, vm_name: str, request: Request, acknowledge: Callable[[], None]) -> None:
        try:
            vm, number = self._start(vm_name, request)
        except BallastError as error:
            self.counters.refused += 1
            self._answer(vm_name, request, payloads.failure(vm_name, error))
        else:
            self._await(vm, number, request)
        acknowledge()

    def _await(self, vm: BalloonControl, number: int, request: Request) -> None:
        task = asyncio.create_task(self._wait(vm, number, request))
        self._running[task] = (vm.name, number, request)
        task.add_done_callback(self._forget)
        self._awaited_changed(vm.name)

    def _forget(self, task: asyncio.Task[None]) -> None:
        vm_name, _, _ = self._running.pop(task)
        self._awaited_changed(vm_name)

    def awaited(self, vm_name: str) -> list[tuple[int, Request]]:
        """Return the resizes of a VM that are waited for, by number, and for whom."""
        running = self._running.values()
        return [(number, request) for name, number, request in running if name == vm_name]

    def go_on(self, vm_name: str, promises: Promises) -> None:
        """Keep what another process has promised."""
        for owed in promises.owed:
            payload, correlation = owed.payload.encode(), owed.correlation_data
            self._outbox.result(owed.topic, payload, correlation, vm_name)
        for awaited in promises.awaited:
            request = awaited.request()
            self._memory.is_known(request)
            self._await(self._vms[vm_name], awaited.resize, request)

    def _start(self, vm_name: str, request: Request) -> tuple[BalloonControl, int]:
        """Start the resize that a request asks for, and return its number.

        Raises:
            BallastError: It cannot be carried out.
        """
        vm = self._vms.get(vm_name)
        if vm is None:
            raise OperatorError(
                f"no VM named {vm_name} is being served on {self._topics.host}",
                hint=f"These are: {', '.join(sorted(self._vms)) or 'none'}.",
            )
        if len(self._running) >= MAX_RUNNING:
            raise OperatorError("too many commands at once", hint="Try again later.")
        return vm, vm.governor.start_resize(parse_command(request.payload).request())

    async def _wait(self, vm: BalloonControl, number: int, request: Request) -> None:
        try:
            result = payloads.outcome(vm.name, await vm.governor.wait(number))
        except OperatorError:
            # It ended with a process before this one, or the VM is not served any more.
            result = payloads.interrupted(vm.name)
        self._answer(vm.name, request, result)

    def _answer(self, vm_name: str, request: Request, result: Mapping[str, object]) -> None:
        payload = payloads.encode(result)
        self._memory.finish(request, payload)
        self._promise(vm_name, request, payload)

    def _promise(self, vm_name: str, request: Request, payload: bytes) -> None:
        topic = request.response_topic
        if topic is None or not is_topic_name(topic) or self._topics.commanded_vm(topic):
            topic = self._topics.vm(vm_name).result
        self._outbox.result(topic, payload, request.correlation, vm_name)

    async def close(self) -> None:
        """Wait for no more results, and tell their receivers; the targets stay in force."""
        running = dict(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task, (vm_name, _, request) in running.items():
            if task.cancelled():
                self._answer(vm_name, request, payloads.interrupted(vm_name))
