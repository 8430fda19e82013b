"""A private apt: Debian packages, with their signatures checked, without root and without traces.

apt can be given directories of its own for everything that it reads and writes. With an empty
status file it believes that nothing is installed and resolves whole closures; `dpkg-deb -x` then
unpacks them anywhere. Nothing on the system changes.

The mirror is the one that the system's own apt uses, its proxy settings and the like included.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from ballast_images.progress import Advance, Reporter
from ballast_protocol.errors import OperatorError

MIRROR_VARIABLE = "BALLAST_DEBIAN_MIRROR"
"""Names a Debian mirror where apt knows none, or another one is wanted."""

RELEASE = "trixie"
BACKPORTS = f"{RELEASE}-backports"

INDEX_LIFETIME_S = 3600
"""How long fetched package lists are taken as current."""

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
"""Where the package debian-archive-keyring puts Debian's keys, by age of the package."""

_SUITES = re.compile(
    r"(oldoldstable|oldstable|stable|testing|unstable|sid|bullseye|bookworm|trixie|forky|duke)"
)
_TARGET_FORMAT = "$(CREATED_BY)|$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)|$(REPO_URI)"
_PRINTED_URI = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) ")


@dataclass(frozen=True, order=True)
class Package:
    """One Debian package in one version.

    Attributes:
        name: Its name.
        version: Its full version, with the epoch.
        size: Bytes to download.
    """

    name: str
    version: str
    size: int

    @property
    def pinned(self) -> str:
        """What apt is told to get exactly this one."""
        return f"{self.name}={self.version}"


def parse_uris(text: str) -> tuple[Package, ...]:
    """Return the packages in what `apt-get --print-uris` printed."""
    packages = []
    for match in _PRINTED_URI.finditer(text):
        name, version, _ = match["file"].split("_", 2)
        packages.append(Package(name, unquote(version), int(match["size"])))
    return tuple(packages)


def choose_mirror(targets: str) -> str | None:
    """Return the URI of Debian's main archive among apt's index targets, if it is there.

    Repositories of others and Debian's security archive are passed over. Where package lists were
    never fetched apt cannot name a repository's origin; then its keyring or its path has to do.

    Args:
        targets: Lines as `_TARGET_FORMAT` makes them.
    """
    best: tuple[int, str] | None = None
    for line in targets.splitlines():
        created_by, origin, release, component, signed_by, uri = line.split("|", 5)
        if created_by != "Packages" or component != "main" or not _SUITES.fullmatch(release):
            continue
        if origin not in ("Debian", "") or uri.startswith("cdrom:"):
            continue
        by_debian = "debian-archive-keyring" in signed_by or uri.rstrip("/").endswith("/debian")
        rank = 2 if origin == "Debian" else int(by_debian)
        if best is None or rank > best[0]:
            best = rank, uri
    return best[1] if best else None


class PrivateApt:
    """apt with all its state in one directory.

    Args:
        directory: Where it keeps package lists; made if missing.
        reporter: Shows what takes time.

    Raises:
        OperatorError: apt, dpkg-deb, Debian's keys or a mirror of Debian is missing.
    """

    def __init__(self, directory: Path, reporter: Reporter) -> None:
        self._directory = directory
        self._reporter = reporter
        self._configuration = directory / "apt.conf"
        _require_tools()
        self._write_configuration(find_mirror(), find_keyring())

    def update(self, *, refresh: bool = False) -> None:
        """Fetch the package lists, unless they are younger than `INDEX_LIFETIME_S`.

        Args:
            refresh: Fetch them in any case.
        """
        stamp = self._directory / "updated"
        if not refresh and stamp.exists():
            age_s = time.time() - stamp.stat().st_mtime
            if 0 <= age_s < INDEX_LIFETIME_S:
                return
        with self._reporter.step("Fetching Debian's package lists") as advance:
            self._fetch(advance, "-o", "APT::Update::Error-Mode=any", "update", cwd=self._directory)
        stamp.touch()

    def closure(self, names: Sequence[str], *, suite: str) -> tuple[Package, ...]:
        """Return `names` and all that they depend on, with nothing taken as installed."""
        options = ("--print-uris", "--no-install-recommends", "-t", suite)
        return parse_uris(self._get("install", *options, *names))

    def exactly(self, names: Iterable[str], *, suite: str) -> tuple[Package, ...]:
        """Return `names` alone, in the version of `suite`."""
        return parse_uris(self._get("download", "--print-uris", "-t", suite, *names))

    def dependencies(self, package: Package) -> tuple[str, ...]:
        """Return the names that `package` depends on; of alternatives the first."""
        shown = self._capture("apt-cache", "show", package.pinned)
        for line in shown.splitlines():
            if line.startswith("Depends: "):
                clauses = line.removeprefix("Depends: ").split(",")
                return tuple(
                    re.split(r"[ :(|]", clause.strip(), maxsplit=1)[0] for clause in clauses
                )
        return ()

    def unpack(self, packages: Sequence[Package], root: Path, what: str) -> dict[str, str]:
        """Download `packages`, which apt verifies, and unpack them over each other into `root`.

        Returns:
            The SHA-256 of each package by its name and version.
        """
        archives = root.parent / "archives"
        archives.mkdir()
        root.mkdir()
        size_mb = sum(package.size for package in packages) / 1e6
        with self._reporter.step(f"Downloading {what} ({size_mb:.0f} MB)") as advance:
            self._fetch(advance, "download", *(p.pinned for p in packages), cwd=archives)
        digests: dict[str, str] = {}
        files = sorted(archives.iterdir())
        with self._reporter.step(f"Unpacking {what}") as advance:
            for done, file in enumerate(files):
                advance(done / len(files))
                name, version, _ = file.name.split("_", 2)
                digests[f"{name}={unquote(version)}"] = hashlib.sha256(
                    file.read_bytes()
                ).hexdigest()
                self._capture("dpkg-deb", "-x", str(file), str(root))
        shutil.rmtree(archives)
        # apt's index of its lists is four times the size of the lists, and soon made again.
        self._get("clean")
        return digests

    def _write_configuration(self, mirror: str, keyring: Path) -> None:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        (self._directory / "sources.list").write_text(
            "".join(
                f"deb [arch=amd64 signed-by={keyring}] {mirror} {suite} main\n"
                for suite in (RELEASE, BACKPORTS)
            )
        )
        self._configuration.write_text(_configuration(self._directory))

    def _get(self, *arguments: str) -> str:
        return self._capture("apt-get", "-qq", *arguments)

    def _capture(self, *command: str) -> str:
        result = subprocess.run(
            command,
            cwd=self._directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise _failure(command[0], result.stderr)
        return result.stdout

    def _fetch(self, advance: Advance, *arguments: str, cwd: Path) -> None:
        """Run an apt-get that downloads, and pass on how far it says it is."""
        reader, writer = os.pipe()
        command = ["apt-get", "-qq", "-o", f"APT::Status-Fd={writer}", *arguments]
        with os.fdopen(reader) as status, tempfile.TemporaryFile("w+") as output:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=self._environment(),
                    pass_fds=(writer,),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            finally:
                os.close(writer)
            with process:
                _follow(status, advance)
            if process.returncode:
                output.seek(0)
                raise _failure("apt-get", output.read())

    def _environment(self) -> dict[str, str]:
        own = {"APT_CONFIG": str(self._configuration), "DEBIAN_FRONTEND": "noninteractive"}
        return {**os.environ, **own, "LC_ALL": "C"}


def find_mirror() -> str:
    """Return the URI of the Debian mirror to use.

    Raises:
        OperatorError: apt knows none.
    """
    override = os.environ.get(MIRROR_VARIABLE)
    if override:
        return override
    _require_tools()
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", _TARGET_FORMAT],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    mirror = choose_mirror(targets)
    if mirror is None:
        raise OperatorError(
            "apt on this machine knows no mirror of Debian",
            hint=f"Set {MIRROR_VARIABLE} to the URI of one, or install QEMU yourself.",
        )
    return mirror


def _require_tools() -> None:
    missing = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if not shutil.which(tool)]
    if missing:
        raise OperatorError(
            f"provisioning needs {' and '.join(missing)}, which this machine does not have",
            hint="Run on Debian 12 or later, or install QEMU 10.2 or later yourself; it must have "
            "the devices vhost-user-test-device-pci and vfio-user-pci.",
        )


def find_keyring() -> Path:
    """Return the file with the keys that Debian signs its archive with.

    Raises:
        OperatorError: This machine does not have it.
    """
    for keyring in KEYRINGS:
        if keyring.exists():
            return keyring
    raise OperatorError(
        "Debian's archive keys are missing, so packages could not be verified",
        hint="Install the package debian-archive-keyring.",
    )


def _configuration(directory: Path) -> str:
    """Return an apt.conf that stands alone but keeps how the system fetches, proxies and all."""
    dump = subprocess.run(
        ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True
    ).stdout
    inherited = [
        line
        for line in dump.splitlines()
        if not re.match(r"Acquire::(IndexTargets|Languages|Allow\w*Insecure|AllowWeak)", line)
    ]
    own = {
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::sourcelist": directory / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": directory / "state",
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory / "cache",
        "Acquire::Languages": "none",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        # The user _apt, which root's apt would become, cannot reach a cache in somebody's home.
        "APT::Sandbox::User": "root",
    }
    return "\n".join([*inherited, *(f'{key} "{value}";' for key, value in own.items())]) + "\n"


def _follow(status: Iterable[str], advance: Advance) -> None:
    """Read apt's `dlstatus:FILES:PERCENT:TEXT` lines until it closes the pipe."""
    for line in status:
        kind, _, rest = line.partition(":")
        percent = rest.partition(":")[2].partition(":")[0]
        if kind == "dlstatus":
            advance(float(percent) / 100)


def _failure(program: str, output: str) -> OperatorError:
    lines = [line for line in output.splitlines() if line.startswith(("E:", "Err:"))]
    reason = " ".join(lines or output.splitlines()[-3:]) or "no message"
    return OperatorError(
        f"{program} failed: {reason}",
        hint="Check that this machine can reach its Debian mirror (try `apt-get update`).",
    )
