from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ballast.cli.main import app
from support.balloon_control import MIB, FakeBalloonControl, FakeBlocks
from support.served import served_vm

runner = CliRunner()


@pytest.fixture
def blocks() -> FakeBlocks:
    return FakeBlocks()


@pytest.fixture(autouse=True)
def _web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: FakeBlocks) -> Iterator[None]:
    monkeypatch.setenv("BALLAST_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    with served_vm(tmp_path, FakeBalloonControl(name="web", blocks=blocks)):
        yield


def run(*arguments: str) -> Result:
    return runner.invoke(app, arguments, catch_exceptions=True)


def test_a_sweep_says_what_the_host_got(blocks: FakeBlocks) -> None:
    result = run("sweep", "web")
    assert result.exit_code == 0
    assert "the host got 5 MiB back, of 6 MiB that were free" in result.stdout
    done = json.loads(run("sweep", "web", "--node", "1", "--timeout", "9", "--json").stdout)
    assert (done["name"], done["freed-bytes"]) == ("web", 5 * MIB)
    assert blocks.asked == [("sweep", None, 60.0), ("sweep", 1, 9.0)]


def test_a_refusal_is_an_error(blocks: FakeBlocks) -> None:
    blocks.obstacle = "the guest uses huge pages itself"
    result = run("sweep", "web")
    assert result.exit_code != 0
    assert "uses huge pages itself" in str(result.exception)


def test_compaction(blocks: FakeBlocks) -> None:
    assert "30 free blocks, 10 before" in run("compact", "web").stdout
    assert json.loads(run("compact", "web", "--json").stdout)["blocks-after"] == 30


def test_nodes_and_their_shares(blocks: FakeBlocks) -> None:
    assert "64 MiB" in run("nodes", "web").stdout
    rows = json.loads(run("nodes", "web", "--share", "1=512M", "--share", "0=2M", "--json").stdout)
    assert [(row["node"], row["share-bytes"]) for row in rows] == [(0, 2 * MIB), (1, 512 * MIB)]
    blocks.shares.clear()
    assert "no agent has told" in run("nodes", "web").stdout


@pytest.mark.parametrize("share", ["1", "x=1M", "1=many", "-1=1M", "1=-2M"])
def test_a_share_that_is_none_is_wrong_use(share: str) -> None:
    assert run("nodes", "web", f"--share={share}").exit_code == 2
