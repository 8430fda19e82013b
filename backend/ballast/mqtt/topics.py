"""The topics: `PREFIX/HOST/availability`, and below `PREFIX/HOST/VM` what belongs to a VM."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

ONLINE, OFFLINE = b"online", b"offline"
"""The two payloads of an availability topic, as Home Assistant spells them."""

MAX_TOPIC_BYTES = 65535
"""The longest UTF-8 string of MQTT (5.0, 1.5.4)."""

_MAX_PREFIX_LENGTH = 1024
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f+#\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Wildcards, and characters that MQTT forbids or advises against (5.0, 1.5.4)."""


def check_level(text: str) -> str:
    """Return `text` if it can be one level of a topic.

    Raises:
        ValueError: It cannot.
    """
    if not text or "/" in text or _UNFIT.search(text) or len(text) > _MAX_PREFIX_LENGTH:
        raise ValueError(f"{text!r} cannot be a level of a topic")
    return text


def check_prefix(text: str) -> str:
    """Return `text` if topics can begin with it; it may have several levels.

    Raises:
        ValueError: It is empty, has an empty level or a wildcard, or is the broker's own (`$SYS`).
    """
    if text.startswith("$") or len(text) > _MAX_PREFIX_LENGTH:
        raise ValueError(f"{text!r} cannot be what topics begin with")
    for level in text.split("/"):
        check_level(level)
    return text


def is_topic_name(text: str) -> bool:
    """Whether a message can be published to `text` (MQTT 5.0, 4.7)."""
    size = len(text.encode(errors="replace"))
    return 0 < size <= MAX_TOPIC_BYTES and not _UNFIT.search(text)


@dataclass(frozen=True, slots=True)
class VmTopics:
    """The topics of one VM.

    Attributes:
        root: What they all begin with.
    """

    root: str

    @property
    def availability(self) -> str:
        """`online` while a QEMU is connected to the VM's balloon, else `offline`; retained."""
        return f"{self.root}/availability"

    @property
    def state(self) -> str:
        """What the VM should have and has; retained."""
        return f"{self.root}/state"

    @property
    def stats(self) -> str:
        """The guest's statistics."""
        return f"{self.root}/stats"

    @property
    def event(self) -> str:
        """QMP events as they happen."""
        return f"{self.root}/event"

    @property
    def command(self) -> str:
        """Where targets are sent to."""
        return f"{self.root}/target/set"

    @property
    def result(self) -> str:
        """What became of a target whose sender named no response topic."""
        return f"{self.root}/target/result"


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics of one host.

    Attributes:
        prefix: What all topics begin with.
        host: The host's level.
    """

    prefix: str
    host: str

    @property
    def root(self) -> str:
        """What all topics of this host begin with."""
        return f"{self.prefix}/{self.host}"

    @property
    def availability(self) -> str:
        """`online` while the daemon is connected to the broker, else `offline`; retained."""
        return f"{self.root}/availability"

    def vm(self, name: str) -> VmTopics:
        """Return the topics of a VM."""
        return VmTopics(f"{self.root}/{name}")

    @property
    def all_commands(self) -> str:
        """The filter that matches the commands for every VM of this host."""
        return self.vm("+").command

    @property
    def all_vm_availabilities(self) -> str:
        """The filter that matches the availability of every VM of this host."""
        return self.vm("+").availability

    def commanded_vm(self, topic: str) -> str | None:
        """Return the name of the VM that `topic` has a command for; None if it has none."""
        return self._vm_of(topic, "/target/set")

    def available_vm(self, topic: str) -> str | None:
        """Return the name of the VM whose availability `topic` has; None if it has none."""
        return self._vm_of(topic, "/availability")

    def _vm_of(self, topic: str, ending: str) -> str | None:
        start = f"{self.root}/"
        if not topic.startswith(start) or not topic.endswith(ending):
            return None
        name = topic[len(start) : -len(ending)]
        return name if name and "/" not in name else None


def object_id(*names: str) -> str:
    """Return an identifier of letters, digits, `_` and `-`, distinct for distinct names."""
    text = "_".join(names)
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    if plain == text and not any("_" in name for name in names):
        return plain
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
    return f"{plain}_{digest[:8]}"
