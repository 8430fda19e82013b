from __future__ import annotations

import importlib.metadata

import pytest

from ballast.daemon import version as version_module
from ballast.daemon.version import ballast_version, qmp_version


@pytest.mark.parametrize(
    ("installed", "expected"),
    [("1.2.3", (1, 2, 3)), ("0.1.0.dev3+g1", (0, 1, 0)), ("2.0rc1", (2, 0, 0))],
)
def test_the_greeting_has_three_numbers(
    monkeypatch: pytest.MonkeyPatch, installed: str, expected: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(version_module, "version", lambda _name: installed)
    found = qmp_version()
    assert (found.major, found.minor, found.micro) == expected
    assert found.package == f"ballast-{installed}"


def test_a_checkout_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(version_module, "version", missing)
    assert ballast_version() == "0+unknown"
