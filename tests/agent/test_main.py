from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import zipapp
from pathlib import Path

import pytest

import ballast_agent
from ballast_agent.__main__ import run
from ballast_protocol.guest import Hello, MemoryReport, Message, Welcome, decode, encode
from ballast_protocol.guest_framing import FrameDecoder

ROOT = Path(__file__).parents[2]


def oldest_python() -> str | None:
    """Return a Python 3.9, the oldest that guests have, if this machine has one that starts."""
    command = shutil.which("python3.9")
    if command is None or subprocess.run([command, "-V"], capture_output=True).returncode:
        return None
    return command


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pyz")
    ignore = shutil.ignore_patterns("__pycache__", "virtio", "vhost_user", "vfio_user", "qmp")
    for room, package in (("agent", "ballast_agent"), ("protocol", "ballast_protocol")):
        shutil.copytree(ROOT / room / package, folder / "stage" / package, ignore=ignore)
    target = folder / "ballast-agent.pyz"
    zipapp.create_archive(folder / "stage", target, main="ballast_agent.__main__:main")
    return target


@pytest.fixture(params=[sys.executable, "3.9"], ids=["this-python", "python-3.9"])
def command(request: pytest.FixtureRequest, archive: Path) -> list[str]:
    python = oldest_python() if request.param == "3.9" else request.param
    if python is None:
        pytest.skip("this machine has no Python 3.9")
    # Isolated, so that nothing but the archive is imported.
    return [python, "-I", "-W", "error", str(archive)]


def test_the_version_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ballast_agent.__version__ == project["version"]


def test_report_for_programs(command: list[str]) -> None:
    done = subprocess.run([*command, "report", "--json"], capture_output=True, check=True)
    report = json.loads(done.stdout)
    assert report["meminfo_bytes"]["MemTotal"] > 0
    assert report["zones"][0]["free_blocks"]
    assert done.stderr == b""


def test_a_reader_that_has_seen_enough_is_no_failure(command: list[str]) -> None:
    with subprocess.Popen(
        [*command, "report"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_report_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report"]) == 0
    text = capsys.readouterr().out
    assert "MemTotal" in text
    assert "Free memory by size of block:" in text


def test_run_talks_until_terminated(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    arguments = [*command, "run", "--connect", f"unix:{path}", "--interval", "0.5"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
            host, _ = server.accept()
            with host:
                hello, report = talk(host)
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate()
    assert hello.interval_seconds == 0.5
    assert hello.agent_version == ballast_agent.__version__
    assert report.zones
    assert process.returncode == 0
    assert "the host wants a report every 7 s" in log
    assert log.endswith("INFO: stopped\n")


def talk(host: socket.socket) -> tuple[Hello, MemoryReport]:
    decoder = FrameDecoder()
    messages: list[Message] = []
    while len(messages) < 2:
        for frame in decoder.feed(host.recv(1 << 16)):
            messages.append(decode(frame))
            if isinstance(messages[-1], Hello):
                host.sendall(encode(Welcome(1, 7.0)))
    hello, report = messages
    assert isinstance(hello, Hello)
    assert isinstance(report, MemoryReport)
    return hello, report


def test_an_agent_without_a_port_waits_for_it(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "ballast_agent", "run", "--device", str(tmp_path / "port")]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        line = next(line for line in lines if "waiting" in line)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert line == f"ballast-agent: WARNING: {tmp_path / 'port'} is not there; waiting for it\n"
    assert process.returncode == 0


def test_a_failure_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "ballast_agent", "run", "--device", str(tmp_path / "file")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("file is not a character device\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run", "--interval", "0"],
        ["run", "--interval", "soon"],
        ["run", "--connect", "/path"],
        ["run", "--connect", "unix:"],
        ["run", "--port", "a", "--device", "b"],
    ],
)
def test_wrong_use(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(arguments)
    assert caught.value.code == 2
