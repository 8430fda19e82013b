"""Manual pages, read by groff; and the shell's completion, read by bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ballast.cli import manual
from ballast.cli.manual import Command


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return manual.pages(manual.commands())


def test_every_command_has_a_page(pages: dict[str, str]) -> None:
    assert {"ballast.1", "ballast-demo.1", "ballast-image-build.1"} <= set(pages)
    for each in manual.commands().commands:
        assert f"\\fBballast\\-{each.words[-1]}(1)\\fR" in pages["ballast.1"]


def test_a_page_says_what_help_says(pages: dict[str, str]) -> None:
    page = pages["ballast-launch.1"]
    assert ".B ballast launch\n[OPTIONS] VM [\\-\\- QEMU ARGUMENTS]\n" in page
    assert "\n.TP\n\\fB\\-m, \\-\\-memory SIZE\\fR\nRAM." in page
    assert "\\fB\\-h, \\-\\-help\\fR" in page
    assert "Timed out." in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_nothing_to_say(pages: dict[str, str], tmp_path: Path) -> None:
    for name, text in pages.items():
        (tmp_path / name).write_text(text)
        command = ["groff", "-ww", "-z", "-man", "-Tutf8", "-Kutf8", name]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, ""), name


def test_nothing_in_a_text_is_taken_for_roff() -> None:
    command = Command(("x",), ".so /etc/passwd\n\n'br `a-b` *c* \\n", {}, {"-x": ""})
    page = manual.pages(command)["x.1"]
    assert "\n\\&.so /etc/passwd\n" in page
    assert "\n\\&'br \\fBa\\-b\\fR \\fIc\\fR \\en\n" in page
    assert page.endswith("\n")


def test_a_shell_completes_commands() -> None:
    environment = {**os.environ, "COMP_WORDS": "ballast dem", "COMP_CWORD": "1"}
    completed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'ballast'; from ballast.cli.main import main; main()",
        ],
        env={**environment, "_BALLAST_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout.split() == ["demo"]
