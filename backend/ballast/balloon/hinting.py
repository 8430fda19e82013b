"""Free-page hinting: one round at a time, started by the host (virtio 1.3, section 5.5.6.5).

The guest lists its free memory without waiting for us, and may use it again before we look. So a
hint is information, never permission: nothing is discarded here. What the round tells is how much
memory the guest could give up without reclaim.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ballast.memory.map import MemoryMap
from ballast.queue.chain import Chain
from ballast_protocol.virtio.balloon import HINT_COMMAND_ID_MIN, HintCommand


class HintState(Enum):
    """Where a round is; the names are QEMU's."""

    STOP = "stop"
    REQUESTED = "requested"
    START = "start"
    DONE = "done"


@dataclass
class HintingRound:
    """The state of hinting between host and guest.

    Attributes:
        state: Where the round is.
        hinted_bytes: What the guest has listed in this round.
    """

    state: HintState = HintState.STOP
    hinted_bytes: int = 0
    _command_id: int = HINT_COMMAND_ID_MIN - 1

    @classmethod
    def after(cls, command_id: int, *, is_over: bool) -> HintingRound:
        """Return what follows a predecessor's rounds.

        One that was under way is over: which of its hints have been counted is not known, and the
        guest gets its pages back.
        """
        following = cls(_command_id=command_id or HINT_COMMAND_ID_MIN - 1)
        if is_over:
            following.finish()
        return following

    @property
    def command_id(self) -> int:
        """The id of the last round, whether or not it is over."""
        return self._command_id

    @property
    def config_value(self) -> int:
        """What `free_page_hint_cmd_id` reads as."""
        if self.state is HintState.STOP:
            return HintCommand.STOP
        if self.state is HintState.DONE:
            return HintCommand.DONE
        return self._command_id

    def start(self) -> None:
        """Ask the guest for a new round, ending the one that runs."""
        following = self._command_id + 1
        self._command_id = following if following < 1 << 32 else HINT_COMMAND_ID_MIN
        self.state, self.hinted_bytes = HintState.REQUESTED, 0

    def finish(self) -> None:
        """Let the guest have its hinted pages back."""
        self.state = HintState.DONE

    def command(self, value: int) -> bool:
        """Take a command that the guest sent; return whether it ended a running round."""
        if self.state is HintState.REQUESTED and value == self._command_id:
            self.state = HintState.START
            return False
        if self.state is HintState.START and value != self._command_id:
            self.state = HintState.STOP
            return True
        return False

    def take(self, chain: Chain, memory: MemoryMap) -> tuple[bool, int]:
        """Take one buffer: a command, hinted ranges, or both.

        Returns:
            Whether that ended a running round, and how many bytes were hinted.

        Raises:
            AddressError: The command is not in the guest's memory.
        """
        is_over = False
        if chain.readable:
            is_over = self.command(int.from_bytes(chain.read(memory, 4), "little"))
        return is_over, sum(each.length for each in chain.writable if self.hint(each.length))

    def hint(self, length: int) -> bool:
        """Take one hinted range; return whether it belongs to the running round."""
        if self.state is not HintState.START:
            return False
        self.hinted_bytes += length
        return True
