from __future__ import annotations

from pathlib import Path

from ballast.daemon.recipes import reference
from ballast.daemon.recipes.formats import FORMATS
from ballast.qmp.reference import between_marks

PAGE = Path(__file__).parents[4] / "docs/recipes.md"


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert between_marks(text, reference.page_text()) == text, "run `make docs`"


def test_every_form_is_in_it() -> None:
    text = reference.page_text()
    assert all(f"--format {form} " in text for form in FORMATS)
    assert all(f"| `{form}`" in PAGE.read_text() for form in FORMATS)
