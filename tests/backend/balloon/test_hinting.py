from ballast.balloon.hinting import HintingRound, HintState
from ballast_protocol.virtio.balloon import HINT_COMMAND_ID_MIN, HintCommand


def test_a_whole_round() -> None:
    hinting = HintingRound()
    assert hinting.config_value == HintCommand.STOP
    hinting.start()
    assert hinting.config_value == HINT_COMMAND_ID_MIN
    assert not hinting.hint(4096)
    assert not hinting.command(HINT_COMMAND_ID_MIN)
    assert hinting.state is HintState.START
    assert hinting.hint(4096)
    assert hinting.command(HintCommand.STOP)
    hinting.finish()
    assert (hinting.config_value, hinting.hinted_bytes) == (HintCommand.DONE, 4096)


def test_an_id_of_an_older_round_does_not_start_this_one() -> None:
    hinting = HintingRound()
    hinting.start()
    hinting.start()
    assert not hinting.command(HINT_COMMAND_ID_MIN)
    assert hinting.state is HintState.REQUESTED
    assert not hinting.hint(4096)


def test_ids_wrap_to_where_they_began_and_never_meet_the_reserved_ones() -> None:
    hinting = HintingRound(_command_id=(1 << 32) - 2)
    hinting.start()
    assert hinting.config_value == (1 << 32) - 1
    hinting.start()
    assert hinting.config_value == HINT_COMMAND_ID_MIN


def test_a_command_without_a_round_changes_nothing() -> None:
    hinting = HintingRound()
    assert not hinting.command(HINT_COMMAND_ID_MIN)
    assert hinting.state is HintState.STOP
