"""docs/operations.md, done as it says: every command in it, on a real QEMU with real guests."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from ballast.daemon import config
from ballast.daemon.qemu_args import balloon_arguments
from ballast.daemon.recipes.libvirt import devices_as_json
from ballast_images.guest import KERNEL_ARGUMENTS, GuestImage
from support.system import QUICK_ALLOCATION

PAGE = Path(__file__).parents[2] / "docs/operations.md"
TIMEOUT_SECONDS = 400

PROLOGUE = """
set -euo pipefail
set -m
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

# What a person at a second terminal does without noticing.
served() {
    until test -S "$BALLAST_RUNTIME_DIR/$1/qmp.sock"; do sleep 0.1; done
}
"""

QEMU = """#!{python}
import os, sys
words, rest = sys.argv[1:], []
while words:
    word = words.pop(0)
    if word == "-drive":
        # Instead of a disk with a guest on it.
        words.pop(0)
        rest += ["-kernel", {kernel!r}, "-initrd", {initrd!r}, "-append", {append!r}]
        rest += ["-cpu", "max", "-nodefaults", "-run-with", "exit-with-parent=on"]
    elif word == "-accel":
        words.pop(0)
        rest += ["-accel", "tcg"]
    else:
        rest.append(word)
os.execv({qemu!r}, [{qemu!r}, *rest])
"""


def fences(language: str) -> list[str]:
    """Return what stands in the page's code blocks of a language."""
    # Between an opening fence and the next line that is nothing but a fence.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for found, text in blocks if found == language]


def script(root: Path) -> str:
    """Return all of the page's commands as one script."""
    pieces = [PROLOGUE]
    for number, block in enumerate(fences("sh"), 1):
        commands = block.replace("/run/", f"{root}/")
        pieces.append(f"echo 'block {number}' >&2\n{commands}")
        names = re.findall(r"^ballast serve (\w+) .*&$", block, re.MULTILINE)
        pieces += (f"served {name}\n" for name in names)
    return "\n".join(pieces)


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ops-") as directory:
        yield Path(directory)


def prepare(root: Path, qemu: Path, image: GuestImage) -> dict[str, str]:
    """Put the commands where a shell finds them, and return its environment."""
    programs = root / "bin"
    programs.mkdir()
    wrapper = programs / "qemu-system-x86_64"
    append = " ".join((*KERNEL_ARGUMENTS, QUICK_ALLOCATION))
    values = {"kernel": str(image.kernel), "initrd": str(image.initrd), "append": append}
    wrapper.write_text(QEMU.format(python=sys.executable, qemu=str(qemu), **values))
    wrapper.chmod(0o755)
    for tool in ("ballast", "qmp-shell"):
        (programs / tool).symlink_to(Path(sys.executable).parent / tool)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(root),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "BALLAST_RUNTIME_DIR": str(root / "ballast"),
    }


@pytest.mark.guest
@pytest.mark.timeout(TIMEOUT_SECONDS + 60)
@pytest.mark.asyncio
async def test_every_command_does_what_the_page_says(
    root: Path, qemu: Path, image: GuestImage
) -> None:
    environment = prepare(root, qemu, image)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", script(root)),
        cwd=root,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            # Only the shell's own end counts: what runs in the background holds the pipe open.
            output = await _until_ended(process, process.stdout)
        assert process.returncode == 0, output
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert re.search(r"old: .*768 MiB", output)
    assert re.search(r"web: .*768 MiB", output)
    assert '"actual": 805306368' in output
    assert '"status": "running"' in output
    assert "stat-available-memory" in output
    assert "vhost-user-test-device-pci" in output


async def _until_ended(process: asyncio.subprocess.Process, pipe: asyncio.StreamReader) -> str:
    output = bytearray()
    ended = asyncio.ensure_future(process.wait())
    while not ended.done():
        more = asyncio.ensure_future(pipe.read(1 << 16))
        await asyncio.wait({ended, more}, return_when=asyncio.FIRST_COMPLETED)
        if more.done():
            output += more.result()
        else:
            more.cancel()
    return output.decode(errors="replace")


def test_commands_stand_where_they_are_executed() -> None:
    for block in fences(""):
        assert not re.search(r"^(ballast|qemu-system|qmp-shell)", block, re.MULTILINE), block


def test_the_libvirt_domain_has_what_qemu_needs() -> None:
    [text] = fences("xml")
    domain = ET.fromstring(text)
    arguments = [each.get("value") for each in domain.iter() if each.tag.endswith("}arg")]
    balloon = balloon_arguments(Path("/run/ballast/web/vhost-user.sock"))
    expected = [each.replace(" ", "") for each in devices_as_json(balloon)]
    assert arguments[:4] == expected
    source, access = (domain.find(f"memoryBacking/{tag}") for tag in ("source", "access"))
    assert source is not None
    assert access is not None
    assert (source.get("type"), access.get("mode")) == ("memfd", "shared")


def test_the_configuration_can_be_loaded(tmp_path: Path) -> None:
    for number, text in enumerate(fences("toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        assert config.load(path)
