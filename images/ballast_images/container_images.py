"""Builds Ballast's container images from a checkout, on a base that this machine can have."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ballast_images.apt import RELEASE
from ballast_images.engine import Engine, EngineError, execute
from ballast_images.progress import Reporter
from ballast_protocol.errors import OperatorError

PUBLIC_BASE = "docker.io/library/debian:trixie-slim"
OWN_BASE = "localhost/ballast-base:trixie"
"""What is made here where no registry is reached."""

CONTAINERFILE = Path("docker/Containerfile")
SOURCES_LABEL = "org.ballast.sources"
"""Which sources an image was built from, as `sources_digest` has it."""

BOOTSTRAP_SECONDS = 600.0
PULL_SECONDS = 300.0

_SOURCES = ("docker", "pyproject.toml", "protocol", "backend", "agent", "images")
_DERIVED = {"__pycache__", "compose.yaml", "README.md"}
_BOOTSTRAP = (
    *("mmdebstrap", "--variant=minbase", "--include=ca-certificates"),
    # As in the public image: what nobody reads in a container.
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "info", "locale")),
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
)


@dataclass(frozen=True)
class Image:
    """One of our images.

    Attributes:
        name: Under which it is found.
        target: The stage of the Containerfile.
        what: What it is, for people.
        sources: The files and folders of the checkout that decide what is in it.
    """

    name: str
    target: str
    what: str
    sources: tuple[str, ...] = _SOURCES


BACKEND = Image("localhost/ballast:latest", "backend", "the backend")
BROKER = Image("localhost/ballast-broker:latest", "broker", "mosquitto", _SOURCES[:1])
VM = Image("localhost/ballast-vm:latest", "vm", "QEMU, a keeper and a guest")
IMAGES = (BACKEND, BROKER, VM)


@dataclass(frozen=True)
class BuiltImage:
    """An image that is here.

    Attributes:
        image: Which.
        size_bytes: Its size, with the layers that it shares with others.
        built: Whether it was built now; otherwise it was current.
    """

    image: Image
    size_bytes: int
    built: bool


def checkout() -> Path:
    """Return the checkout that this program runs from.

    Raises:
        OperatorError: It runs from an installed package, without Containerfiles.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / CONTAINERFILE).is_file():
        raise OperatorError(
            "there is no docker/Containerfile here: images are built from a checkout of Ballast",
            hint="Clone the repository, and run `make images` there.",
        )
    return root


def sources_digest(root: Path, image: Image) -> str:
    """Return a digest of everything that decides what is in an image."""
    digest = hashlib.sha256()
    for path in sorted(_source_files(root, image)):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _source_files(root: Path, image: Image) -> Iterator[Path]:
    for name in image.sources:
        place = root / name
        for path in place.rglob("*") if place.is_dir() else (place,):
            if path.is_file() and _DERIVED.isdisjoint(path.relative_to(root).parts):
                yield path


def outdated(engine: Engine, root: Path) -> list[Image]:
    """Return the images that are missing here, or were built from other sources."""
    return [image for image in IMAGES if _label(engine, image) != sources_digest(root, image)]


def _label(engine: Engine, image: Image) -> str | None:
    form = f'{{{{index .Config.Labels "{SOURCES_LABEL}"}}}}'
    try:
        return engine.call("image", "inspect", "--format", form, image.name).strip()
    except EngineError:
        return None


def build_images(
    engine: Engine, root: Path, reporter: Reporter, *, base: str | None = None
) -> list[BuiltImage]:
    """Build what is missing or outdated.

    Args:
        engine: The engine.
        root: The checkout.
        reporter: Shows what takes time.
        base: A Debian 13 to build on; by default the public one, or where that cannot be had, one
            made here.

    Raises:
        OperatorError: Something cannot be built.
        TimedOutError: Something was not built in time.
    """
    wanted = outdated(engine, root)
    if wanted:
        base = base or find_base(engine, reporter)
        for image in wanted:
            values = (f"BASE={base}", f"SOURCES={sources_digest(root, image)}")
            options = (word for value in values for word in ("--build-arg", value))
            with reporter.step(f"Building {image.name}: {image.what}"):
                file = root / CONTAINERFILE
                engine.build(root, file, image.name, "--target", image.target, *options)
    return [BuiltImage(each, _size_bytes(engine, each), each in wanted) for each in IMAGES]


def _size_bytes(engine: Engine, image: Image) -> int:
    return int(engine.call("image", "inspect", "--format", "{{.Size}}", image.name))


def find_base(engine: Engine, reporter: Reporter) -> str:
    """Return an image of Debian 13 that is here, can be pulled, or is made here, in this order.

    Raises:
        OperatorError: There is none, and none can be made.
    """
    for image in (PUBLIC_BASE, OWN_BASE):
        if engine.has_image(image):
            return image
    try:
        with reporter.step(f"Pulling {PUBLIC_BASE}"):
            engine.call("pull", PUBLIC_BASE, timeout_seconds=PULL_SECONDS)
    except EngineError as error:
        _bootstrap(engine, reporter, why=error)
        return OWN_BASE
    return PUBLIC_BASE


def _bootstrap(engine: Engine, reporter: Reporter, why: EngineError) -> None:
    """Make a base from Debian's packages."""
    if shutil.which("mmdebstrap") is None:
        raise OperatorError(
            f"{PUBLIC_BASE} cannot be pulled, and mmdebstrap, which would make a base, is not "
            f"installed ({why})",
            hint="apt install mmdebstrap, or name an image of Debian 13 with --base.",
        )
    with (
        reporter.step("No registry is reached: making a base from Debian's packages"),
        tempfile.TemporaryDirectory(prefix="ballast-base-") as directory,
    ):
        archive = Path(directory) / "base.tar"
        execute([*_BOOTSTRAP, RELEASE, str(archive)], BOOTSTRAP_SECONDS)
        engine.call("import", str(archive), OWN_BASE, timeout_seconds=PULL_SECONDS)
