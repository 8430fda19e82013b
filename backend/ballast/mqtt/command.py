"""What is sent to `target/set`, and how a command that comes twice is recognised."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ballast.policy.resize import (
    DEFAULT_STALL_SECONDS,
    DEFAULT_TIMEOUT_SECONDS,
    OnFailure,
    ResizeRequest,
)
from ballast.sizes import parse_size
from ballast_protocol.errors import OperatorError

MAX_COMMAND_BYTES = 4096
"""The longest payload that is looked at."""

_HINT = 'Send a size like 1G or 1073741824, or JSON like {"value": "1G", "timeout": 60}.'


Size = Annotated[
    int,
    BeforeValidator(lambda each: parse_size(each) if isinstance(each, str) else each),
    Field(lt=1 << 63, strict=True),
]
Seconds = Annotated[float, Field(strict=True)]


class TargetCommand(BaseModel):
    """A target for a VM; the same as the arguments of QMP's `ballast-resize`.

    Attributes:
        value: The size that the guest should have, in bytes.
        timeout: How long it may take to get there, in seconds.
        stall_timeout: How many seconds without progress end it; 0 means that only `timeout` does.
        rate: How many bytes the guest gives up each second at most; 0 for no limit, None for the
            VM's own.
        on_failure: What holds if the target is not reached.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Annotated[Size, Field(gt=0)]
    timeout: Seconds = DEFAULT_TIMEOUT_SECONDS
    stall_timeout: Seconds = DEFAULT_STALL_SECONDS
    rate: Annotated[Size, Field(ge=0)] | None = None
    on_failure: Literal["keep", "settle", "rollback"] = "keep"

    def request(self) -> ResizeRequest:
        """Return it as the governor wants it."""
        return ResizeRequest(
            target_bytes=self.value,
            timeout_seconds=self.timeout,
            stall_seconds=self.stall_timeout,
            rate_bytes=self.rate,
            on_failure=OnFailure(self.on_failure),
        )


def parse_command(payload: bytes) -> TargetCommand:
    """Return what a payload asks for: a size as people write it, or a JSON object.

    Raises:
        OperatorError: It is neither.
    """
    if len(payload) > MAX_COMMAND_BYTES:
        raise OperatorError(f"a command of more than {MAX_COMMAND_BYTES} bytes", hint=_HINT)
    try:
        text = payload.decode().strip()
    except UnicodeDecodeError:
        raise OperatorError("the command is not UTF-8", hint=_HINT) from None
    options = _parse_json(text) if text.startswith(("{", "[", '"')) else {"value": text}
    try:
        return TargetCommand.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part).replace("_", "-") for part in first["loc"])
        raise OperatorError(f"{where or 'the command'}: {first['msg']}", hint=_HINT) from None
    except OperatorError as error:
        raise OperatorError(str(error), hint=_HINT) from None


def _parse_json(text: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"the command is not JSON: {error}", hint=_HINT) from None
    if isinstance(value, str):
        return {"value": value}
    if not isinstance(value, dict):
        raise OperatorError("the command is not a JSON object", hint=_HINT)
    return {key.replace("-", "_"): item for key, item in value.items()}


@dataclass(frozen=True, slots=True)
class Request:
    """A message that somebody sent to us.

    Attributes:
        topic: Where to.
        payload: What.
        qos: The quality of service that it came with; more than 0 has to be acknowledged.
        is_retained: Whether it lay at the broker when we subscribed.
        is_duplicate: Whether the broker sends it again, not knowing what became of it.
        packet_id: The number to acknowledge.
        response_topic: Where its sender expects the result; None if nowhere.
        correlation: What its sender wants to see in the result.
    """

    topic: str
    payload: bytes
    qos: int = 0
    is_retained: bool = False
    is_duplicate: bool = False
    packet_id: int = 0
    response_topic: str | None = None
    correlation: bytes | None = None

    @property
    def key(self) -> bytes | None:
        """What a repetition of the same request has in common with it; None without correlation."""
        if self.correlation is None:
            return None
        return _digest(self.topic.encode(), (self.response_topic or "").encode(), self.correlation)

    @property
    def fingerprint(self) -> bytes:
        """What the broker's redelivery of this message has in common with it."""
        packet_id = self.packet_id.to_bytes(2)
        return _digest(packet_id, self.topic.encode(), self.correlation or b"", self.payload)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.digest()


class Memory:
    """The requests of late, so that one that comes again is not carried out again.

    A sender may repeat a request with the same correlation data; the broker may deliver one again
    whose acknowledgement it has not seen. Only so many are remembered.
    """

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._results: OrderedDict[bytes, bytes | None] = OrderedDict()
        self._delivered: OrderedDict[bytes, None] = OrderedDict()

    def is_redelivery(self, request: Request) -> bool:
        """Whether the broker has delivered this very message before; remembers it if not."""
        if not request.qos:
            return False
        seen = request.is_duplicate and request.fingerprint in self._delivered
        self._delivered[request.fingerprint] = None
        self._delivered.move_to_end(request.fingerprint)
        if len(self._delivered) > self._limit:
            self._delivered.popitem(last=False)
        return seen

    def is_known(self, request: Request) -> bool:
        """Whether a request with this correlation has come before; remembers it if not."""
        key = request.key
        if key is None:
            return False
        if key in self._results:
            return True
        self._results[key] = None
        if len(self._results) > self._limit:
            self._results.popitem(last=False)
        return False

    def finish(self, request: Request, result: bytes) -> None:
        """Remember what became of a request."""
        key = request.key
        if key is not None and key in self._results:
            self._results[key] = result

    def result(self, request: Request) -> bytes | None:
        """Return what became of a request; None if it is still being carried out, or unknown."""
        return None if request.key is None else self._results.get(request.key)
