from __future__ import annotations

from pathlib import Path

import pytest

from ballast.qmp import reference
from ballast.qmp.commands import COMMANDS, EVENTS
from ballast_protocol.errors import OperatorError

PAGE = Path(__file__).parents[3] / "docs/qmp.md"


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert reference.insert(text) == text, "run `make docs`"


def test_everything_is_in_it() -> None:
    text = reference.render()
    for name, declaration in COMMANDS.items():
        section = text.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
        assert all(f"| `{each.name}`" in section for each in declaration.arguments), name
    assert all(f"### `{name}`\n" in text for name in EVENTS)


def test_a_page_without_marks_is_left_alone() -> None:
    with pytest.raises(OperatorError, match="lacks"):
        reference.insert("# QMP\n")
