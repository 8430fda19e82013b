"""QEMU's own tools as clients of ours."""

from __future__ import annotations

from pathlib import Path

from support.backend import until
from support.balloon_control import MIB, FakeBalloonControl, FakeStats
from support.qmp_peer import serving
from support.qmp_tools import qmp_shell, qmp_tui


async def test_qmp_shell(tmp_path: Path) -> None:
    vm = FakeBalloonControl(guest_stats=FakeStats({4: 77}, 5))
    async with serving(tmp_path / "qmp.sock", vm):
        replies = await qmp_shell(
            tmp_path / "qmp.sock",
            [
                "balloon value=536870912",
                "query-balloon",
                "qom-set path=balloon0 property=guest-stats-polling-interval value=2",
                "qom-get path=balloon0 property=guest-stats",
                "ballast-free-page-hint action=never",
                "query-qmp-schema",
            ],
            tmp_path,
        )
    assert vm.target_bytes == 512 * MIB
    assert vm.stats_polling_interval == 2
    assert replies[1] == {"return": {"actual": 512 * MIB}}
    assert replies[3]["return"]["last-update"] == 5
    assert replies[3]["return"]["stats"]["stat-free-memory"] == 77
    assert replies[4]["error"]["desc"] == "Parameter 'action' does not accept value 'never'"
    assert {each["name"] for each in replies[5]["return"]} >= {"balloon", "int", "BALLOON_CHANGE"}


async def test_qmp_tui(tmp_path: Path) -> None:
    async with serving(tmp_path / "qmp.sock") as server, qmp_tui(tmp_path / "qmp.sock") as tui:
        await until(lambda: any(each._session.in_command_mode for each in server._clients))
        server.emit("BALLOON_CHANGE", {"actual": 1234567})
        await tui.see('"package": "ballast 1.2.3"')
        await tui.see('"return": {}')
        await tui.see('"actual": 1234567')
