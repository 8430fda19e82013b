from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ballast_images import container_images as images
from ballast_images.engine import Engine
from ballast_images.progress import SilentReporter
from ballast_protocol.errors import OperatorError

STORE = """
log() { echo "$@" >> %(log)s; }
log "$@"
case "$1 $2" in
  "image inspect") eval image=\\${$#}
    test -e %(store)s/$(echo $image | tr '/:' '__') || exit 1
    case "$*" in
      *Size*) echo 150000000;;
      *Labels*) cat %(store)s/$(echo $image | tr '/:' '__');;
    esac;;
  "build "*) shift
    while [ $# -gt 0 ]; do
      case "$1" in -t) name=$2;; SOURCES=*) label=${1#*=};; esac
      shift
    done
    echo "$label" > %(store)s/$(echo $name | tr '/:' '__');;
  "pull "*) echo "no such host" >&2; exit 125;;
esac
"""


class FakeEngine:
    """An engine whose images are files."""

    def __init__(self, directory: Path) -> None:
        self.log, self.store = directory / "log", directory / "store"
        self.store.mkdir()
        program = directory / "podman"
        values = {"log": self.log, "store": self.store}
        program.write_text("#!/bin/sh\n" + STORE % values)
        program.chmod(0o755)
        self.engine = Engine("podman", program)

    def add(self, image: str) -> None:
        (self.store / image.replace("/", "_").replace(":", "_")).touch()

    def did(self, verb: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(verb)]


@pytest.fixture
def fake(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in ("docker", "protocol", "backend", "agent", "images"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text(name)
    (root / "pyproject.toml").write_text("[project]")
    return root


def test_this_is_a_checkout() -> None:
    assert (images.checkout() / "pyproject.toml").is_file()


def test_every_target_is_in_the_containerfile() -> None:
    text = (images.checkout() / images.CONTAINERFILE).read_text()
    for image in images.IMAGES:
        assert f" AS {image.target}\n" in text


def test_the_digest_follows_what_goes_into_images(root: Path) -> None:
    before = images.sources_digest(root, images.VM)
    (root / "docker" / "compose.yaml").write_text("services: {}")
    (root / "backend" / "__pycache__").mkdir()
    (root / "backend" / "__pycache__" / "x.pyc").write_text("x")
    assert images.sources_digest(root, images.VM) == before
    (root / "backend" / "file").write_text("other")
    assert images.sources_digest(root, images.VM) != before


def test_what_is_missing_or_outdated_is_built_and_nothing_else(
    fake: FakeEngine, root: Path
) -> None:
    fake.add(images.PUBLIC_BASE)
    built = images.build_images(fake.engine, root, SilentReporter())
    assert [each.built for each in built] == [True, True, True]
    assert {each.size_bytes for each in built} == {150_000_000}
    assert all(f"BASE={images.PUBLIC_BASE}" in line for line in fake.did("build"))
    again = images.build_images(fake.engine, root, SilentReporter())
    assert [each.built for each in again] == [False, False, False]
    (root / "agent" / "file").write_text("newer")
    assert images.outdated(fake.engine, root) == [images.BACKEND, images.VM]


def test_the_operators_base_is_taken(fake: FakeEngine, root: Path) -> None:
    images.build_images(fake.engine, root, SilentReporter(), base="mine:13")
    assert all("BASE=mine:13" in line for line in fake.did("build"))
    assert not fake.did("pull")


def test_a_base_that_was_made_here_is_used_again(fake: FakeEngine) -> None:
    fake.add(images.OWN_BASE)
    assert images.find_base(fake.engine, SilentReporter()) == images.OWN_BASE
    assert not fake.did("pull")


def test_without_a_registry_a_base_is_made(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "tr", "cat"):
        (tools / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(
        OperatorError, match="mmdebstrap, which would make a base, is not"
    ) as caught:
        images.find_base(fake.engine, SilentReporter())
    assert "--base" in caught.value.hint
    (tools / "mmdebstrap").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/made\n')
    (tools / "mmdebstrap").chmod(0o755)
    assert images.find_base(fake.engine, SilentReporter()) == images.OWN_BASE
    made = (tmp_path / "made").read_text()
    assert " trixie " in made
    assert "--variant=minbase" in made
    (line,) = fake.did("import")
    assert line.endswith(images.OWN_BASE)
