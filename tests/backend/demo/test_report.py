from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console

from ballast.demo.record import Recording, Sample
from ballast.demo.report import DemoResult, chart, save_plot, show
from ballast.demo.scenario import Step

MIB = 1 << 20


def step(name: str, *, ok: bool = True, before: int = 1700, after: int = 500) -> Step:
    return Step(
        name=name,
        ok=ok,
        target_bytes=1024 * MIB,
        actual_bytes=1024 * MIB,
        seconds=1.25,
        host_resident_before_bytes=before * MIB,
        host_resident_after_bytes=after * MIB,
        qemu_rss_shmem_before_bytes=before * MIB,
        qemu_rss_shmem_after_bytes=None,
        guest_total_bytes=949 * MIB,
        guest_free_bytes=800 * MIB,
        ledger_bytes=1024 * MIB,
        backend_cpu_seconds=0.3,
    )


def result(*steps: Step, warnings: tuple[str, ...] = (), agent: str | None = "1") -> DemoResult:
    return DemoResult(
        transport="vhost-user",
        qemu="11.1.3",
        kernel="6.12",
        accelerator="tcg",
        steps=steps,
        verified_bytes=1536 * MIB,
        kernel_warnings=warnings,
        agent_version=agent,
        free_bytes_by_order={"0": 4096, "9": 512 * MIB},
    )


GOOD = (step("inflate"), step("deflate", before=500), step("free-page-report"))


def record() -> Recording:
    samples = [
        Sample(at / 10, 1024 * MIB, None if at < 2 else (2048 - at) * MIB, 1700 * MIB, None)
        for at in range(30)
    ]
    return Recording(samples=samples, marks=[(0.5, "inflate")])


def test_ok_needs_every_step_the_agent_and_a_quiet_kernel() -> None:
    assert result(*GOOD).ok
    assert not result(*GOOD[:2]).ok
    assert not result(*GOOD[:2], step("free-page-report", ok=False)).ok
    assert not result(*GOOD, warnings=("<4>BUG",)).ok
    assert not result(*GOOD, agent=None).ok


def test_the_data_has_the_promised_form() -> None:
    data = json.loads(json.dumps(result(*GOOD).as_json()))
    assert (data["ok"], data["transport"], data["accelerator"]) == (True, "vhost-user", "tcg")
    assert [each["name"] for each in data["steps"]] == ["inflate", "deflate", "free-page-report"]
    assert data["steps"][0]["host_resident_before_bytes"] == 1700 * MIB
    assert data["agent"] == {
        "version": "1",
        "free_bytes_by_order": {"0": 4096, "9": 512 * MIB},
    }


def test_what_is_shown_fits_a_narrow_terminal_and_names_failures() -> None:
    console = Console(width=80, record=True, force_terminal=False)
    bad = result(step("inflate", ok=False), *GOOD[1:], warnings=("<4>oops",))
    show(bad, record(), console)
    text = console.export_text()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for words in ("not ok", "1700 → 500", "guest kernel: <4>oops", "the host got 1.17 GiB back"):
        assert words in text


def test_the_chart_tells_curves_apart_without_colour() -> None:
    drawn = chart(record(), width=80, in_colour=False)
    assert "\x1b" not in drawn
    for label in ("t: target", "a: actual (guest)", "h: host resident"):
        assert label in drawn


def test_the_drawing_is_svg(tmp_path: Path) -> None:
    save_plot(record(), tmp_path / "chart.svg")
    assert ElementTree.parse(tmp_path / "chart.svg").getroot().tag.endswith("svg")
