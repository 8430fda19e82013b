"""What operators have asked of a VM, and how far it got, in memory that outlives the process.

The device's own state is the transport's to keep. Here is what comes from above: the target, the
resize under way, the part of it that an agent takes, and settings that were changed at run time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ballast.daemon.blocks import BlocksState
from ballast.daemon.counters import CountersState, KeptCounters
from ballast.mqtt.promises import Promises
from ballast.state.document import Document, adapter_of
from ballast.state.file import StateFile
from ballast.state.record import Record
from ballast.streams.fdstore import VmStore
from ballast_protocol.errors import OperatorError, StateError

log = logging.getLogger(__name__)

WHAT = "wishes"
"""The name in the store."""

GOVERNOR_FORM = 1
"""Of the governor's record; its values have a version of their own besides."""

Content = TypeVar("Content")


@dataclass(frozen=True)
class Settings:
    """What was changed at run time.

    Attributes:
        stats_polling_interval: Seconds between two polls for statistics; 0 to poll on demand only.
    """

    stats_polling_interval: int = 0


class Wishes:
    """One VM's; without a predecessor it begins with none.

    What a predecessor left and this version does not understand is told in the log, and left out:
    a VM without its target is better than none. An upgrade is refused in that case, by `check`.
    """

    def __init__(self, store: VmStore) -> None:
        """Take over what a predecessor left."""
        self._store = store
        self._file: StateFile | None = None
        self._counters: KeptCounters | None = None
        left = store.take(WHAT)
        if left is not None:
            with _told("all that was asked for"):
                self._file = _opened(left)

    def governor(self) -> Mapping[str, object] | None:
        """Return the values of the governor; None if there are none."""
        with _told("the target"):
            return _governor(self._file) if self._file else None
        return None

    def blocks(self) -> BlocksState | None:
        """Return what an agent is relied on for; None if it never was."""
        return self._load("blocks", BlocksState)

    def settings(self) -> Settings | None:
        """Return the settings; None if none were changed."""
        return self._load("settings", Settings)

    def count(self, groups: Mapping[str, object]) -> KeptCounters:
        """Have counters go on from what a predecessor has counted; closed with these wishes."""
        left = self._load("counters", CountersState)
        self._counters = KeptCounters(groups, left, self._save_counters)
        return self._counters

    def promises(self) -> Promises | None:
        """Return what is owed to those who sent targets over MQTT; None if nothing ever was."""
        return self._load("mqtt", Promises)

    def _load(self, name: str, kind: type[Content]) -> Content | None:
        with _told(name):
            return Document(self._file.record(name), kind).load() if self._file else None
        return None

    def save_governor(self, values: Mapping[str, object]) -> None:
        """Keep the values of the governor."""
        self._record("governor").save(json.dumps(values).encode(), GOVERNOR_FORM)

    def save_blocks(self, state: BlocksState) -> None:
        """Keep what an agent is relied on for."""
        Document(self._record("blocks"), BlocksState).save(state)

    def save_settings(self, settings: Settings) -> None:
        """Keep the settings."""
        Document(self._record("settings"), Settings).save(settings)

    def _save_counters(self, state: CountersState) -> None:
        """Keep what was counted."""
        Document(self._record("counters"), CountersState).save(state)

    def save_promises(self, promises: Promises) -> None:
        """Keep what is owed to those who sent targets over MQTT."""
        Document(self._record("mqtt"), Promises).save(promises)

    def _record(self, name: str) -> Record:
        if self._file is None:
            self._file = StateFile.create()
            self._store.put(WHAT, self._file.fd)
        return self._file.record(name)

    def close(self) -> None:
        """Forget them; the store forgets them too."""
        if self._counters is not None:
            self._counters.close()
        if self._file is not None:
            self._file.close()
            self._file = None
            self._store.drop(WHAT)


def warm_up() -> None:
    """Do beforehand what takes time, for a process that is to take over at once when it has to."""
    for kind in (BlocksState, CountersState, Settings):
        adapter_of(kind)


def check(left: Mapping[str, int]) -> None:
    """See whether all wishes that a predecessor left can be understood.

    Args:
        left: Descriptors by name, which stay the caller's.

    Raises:
        StateError: One of them cannot.
    """
    for name, fd in left.items():
        if name.endswith(f"/{WHAT}"):
            file = _opened(os.dup(fd))
            try:
                _governor(file)
                Document(file.record("blocks"), BlocksState).load()
                Document(file.record("settings"), Settings).load()
                Document(file.record("mqtt"), Promises).load()
            finally:
                file.close()


def _opened(fd: int) -> StateFile:
    try:
        return StateFile.open(fd)
    except StateError:
        os.close(fd)
        raise


def _governor(file: StateFile) -> Mapping[str, object] | None:
    record = file.record("governor")
    data = record.load()
    if data is None:
        return None
    if record.form > GOVERNOR_FORM:
        raise StateError(f"the saved target is of format {record.form}, which is unknown here")
    values = json.loads(data)
    if not isinstance(values, dict):
        raise StateError("the saved target makes no sense")
    return values


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (OperatorError, ValueError) as error:
        log.error("%s could not be taken over from the process before: %s", what, error)
