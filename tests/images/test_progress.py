from __future__ import annotations

import io

from rich.console import Console

from ballast_images.progress import ConsoleReporter


def test_without_a_terminal_a_step_is_one_plain_line() -> None:
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, width=40))
    with reporter.step("Fetching [things]") as advance:
        advance(0.5)
    assert out.getvalue() == "Fetching [things]\n"


def test_on_a_terminal_a_step_shows_how_far_it_is() -> None:
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, width=100, force_terminal=True))
    with reporter.step("Fetching") as advance:
        advance(0.5)
    assert "Fetching" in out.getvalue()
    assert "100%" in out.getvalue()
