"""How a soak went, as a table for people."""

from __future__ import annotations

from rich.table import Table

from ballast.sizes import format_size
from ballast.soak.killing import Kill, Outcome, percentiles
from ballast.soak.storm import StormOutcome


def table(outcome: Outcome) -> Table:
    """Return a line for each action and one for all together."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("WHILE")
    rings, agent = ("GAPS SEEN", "P50 MS", "P99 MS"), ("AGENT P50", "P99 MS")
    for heading in ("KILLS", "STOPS", *rings, *agent):
        shown.add_column(heading, justify="right")
    for action in sorted({kill.action for kill in outcome.kills}):
        _row(shown, action, [kill for kill in outcome.kills if kill.action == action])
    _row(shown, "all", outcome.kills)
    return shown


def _row(shown: Table, name: str, kills: list[Kill]) -> None:
    killed = [kill for kill in kills if not kill.was_stopped]
    seen = [kill for kill in killed if kill.gap_seconds is not None]
    figures = percentiles(kill.gap_seconds for kill in killed)
    agents = percentiles(kill.agent_gap_seconds for kill in killed)
    shown.add_row(
        *(name, str(len(killed)), str(len(kills) - len(killed)), str(len(seen))),
        *(_milliseconds(figures[name]) for name in ("p50", "p99")),
        *(_milliseconds(agents[name]) for name in ("p50", "p99")),
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def verdict(outcome: Outcome) -> str:
    """Return the result in a sentence."""
    if outcome.failure:
        return f"failed: {outcome.failure}"
    checked = format_size(outcome.verdict.verified_bytes)
    if outcome.is_ok:
        return f"ok: {checked} verified, nothing lost, books equal after each kill"
    return (
        f"failed: {outcome.verdict.wrong_bytes} of {checked} wrong, "
        f"{outcome.ledger_mismatches} times the books differed from the guest"
    )


def storm_verdict(outcome: StormOutcome) -> str:
    """Return how a storm went, in a few lines."""
    done = ", ".join(f"{count} x {name}" for name, count in sorted(outcome.done.items()))
    lines = [
        f"{outcome.seconds:.0f} s: {done}",
        f"{format_size(outcome.verdict.verified_bytes)} verified, {outcome.verdict.wrong_bytes} "
        f"bytes wrong, {outcome.oom_kills} OOM kills",
        f"{outcome.checks} checks of the books, {outcome.ledger_mismatches} differences, "
        f"{outcome.restless} times the guest did not come to rest",
    ]
    return "\n".join(
        [*lines, "ok" if outcome.is_ok else f"failed: {outcome.failure or 'see above'}"]
    )
