from __future__ import annotations

import os
from pathlib import Path

import pytest

from ballast_images.apt import Package, PrivateApt, choose_mirror, find_mirror, parse_uris
from ballast_images.progress import SilentReporter
from ballast_protocol.errors import OperatorError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def target(
    uri: str,
    *,
    created_by: str = "Packages",
    origin: str = "Debian",
    release: str = "bookworm",
    component: str = "main",
    signed_by: str = "",
) -> str:
    return "|".join((created_by, origin, release, component, signed_by, uri))


def test_printed_uris_become_packages_with_their_epochs() -> None:
    text = (
        "'http://mirror.example/pool/main/z/zlib/zlib1g_1.3_amd64.deb' "
        "zlib1g_1%3a1.3.dfsg-1+b1_amd64.deb 88892 MD5Sum:00\n"
        "'http://mirror.example/pool/main/b/busybox/b.deb' busybox-static_1.37_amd64.deb 7 \n"
    )
    assert parse_uris(text) == (
        Package("zlib1g", "1:1.3.dfsg-1+b1", 88892),
        Package("busybox-static", "1.37", 7),
    )
    assert parse_uris(text)[0].pinned == "zlib1g=1:1.3.dfsg-1+b1"


@pytest.mark.parametrize("text", ["", "Reading package lists...\n", "W: something\n'broken\n"])
def test_other_output_is_no_package(text: str) -> None:
    assert parse_uris(text) == ()


def test_the_main_archive_is_chosen_among_others() -> None:
    targets = "\n".join(
        [
            target("http://other.example/apt/", origin="Other"),
            target("http://mirror.example/debian-security/", release="bookworm-security"),
            target("http://mirror.example/translations/", created_by="Translations"),
            target("http://mirror.example/contrib/", component="contrib"),
            target("cdrom:[Debian 12]/"),
            target("http://mirror.example/debian/"),
        ]
    )
    assert choose_mirror(targets) == "http://mirror.example/debian/"


def test_without_fetched_lists_the_keyring_tells_debian_from_others() -> None:
    targets = "\n".join(
        [
            target("http://other.example/stable/", origin=""),
            target("http://mirror.example/d/", origin="", signed_by=KEYRING),
        ]
    )
    assert choose_mirror(targets) == "http://mirror.example/d/"


def test_another_distribution_has_no_debian_mirror() -> None:
    assert choose_mirror(target("http://u.example/", origin="Ubuntu", release="noble")) is None


def test_the_mirror_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_DEBIAN_MIRROR", "http://mine.example/debian")
    assert find_mirror() == "http://mine.example/debian"


def test_without_apt_the_error_says_which_qemu_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OperatorError, match="apt-get and apt-cache and dpkg-deb") as raised:
        PrivateApt(tmp_path / "apt", SilentReporter())
    assert "vhost-user-test-device-pci and vfio-user-pci" in raised.value.hint


FAKE_APT = """#!/bin/sh
{configuration}
case "$*" in
*update*)
    fd=$(echo "$*" | sed -n 's/.*Status-Fd=\\([0-9]*\\).*/\\1/p')
    echo dlstatus:1:50.0:half >"/proc/self/fd/$fd"
    echo ran >>"{log}"
    [ ! -e "{log}.broken" ] || {{ echo "E: Could not resolve the mirror"; exit 100; }} ;;
*show*) printf 'Package: a\\nDepends: b (= 1), c | d, e:any\\n' ;;
esac
"""


class FakeApt:
    """An apt-get on PATH that notes what it is asked for and in which configuration."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log"
        tools = directory / "tools"
        tools.mkdir()
        script = FAKE_APT.format(log=self.log, configuration=f'cp "$APT_CONFIG" "{directory}/conf"')
        for name, text in (
            ("apt-get", script),
            ("apt-cache", script),
            ("dpkg-deb", "#!/bin/sh\n"),
            (
                "apt-config",
                "#!/bin/sh\necho 'Acquire::http::Proxy \"http://p.example\";'\n"
                "echo 'Acquire::AllowInsecureRepositories \"1\";'\n",
            ),
        ):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.path = f"{tools}:{os.environ['PATH']}"
        self.configuration = directory / "conf"


@pytest.fixture
def fake_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApt:
    fake = FakeApt(tmp_path)
    keyring = tmp_path / "keyring"
    keyring.touch()
    monkeypatch.setattr("ballast_images.apt.KEYRINGS", (keyring,))
    monkeypatch.setenv("PATH", fake.path)
    monkeypatch.setenv("BALLAST_DEBIAN_MIRROR", "http://mirror.example/debian")
    return fake


def test_lists_are_fetched_once_and_again_on_refresh(fake_apt: FakeApt, tmp_path: Path) -> None:
    apt = PrivateApt(tmp_path / "apt", SilentReporter())
    apt.update()
    apt.update()
    assert fake_apt.log.read_text() == "ran\n"
    apt.update(refresh=True)
    assert fake_apt.log.read_text() == "ran\nran\n"


def test_apt_keeps_to_its_own_directories_but_uses_the_systems_proxy(
    fake_apt: FakeApt, tmp_path: Path
) -> None:
    apt = PrivateApt(tmp_path / "apt", SilentReporter())
    apt.update()
    configuration = fake_apt.configuration.read_text()
    assert 'Acquire::http::Proxy "http://p.example";' in configuration
    assert "AllowInsecure" not in configuration
    assert f'Dir::State "{tmp_path}/apt/state";' in configuration
    sources = (tmp_path / "apt/sources.list").read_text()
    assert f"signed-by={tmp_path}/keyring] http://mirror.example/debian trixie main" in sources
    assert "trixie-backports main" in sources


def test_a_failure_shows_what_apt_said(fake_apt: FakeApt, tmp_path: Path) -> None:
    fake_apt.log.with_name("log.broken").touch()
    apt = PrivateApt(tmp_path / "apt", SilentReporter())
    with pytest.raises(OperatorError, match="Could not resolve the mirror"):
        apt.update()


def test_dependencies_are_the_first_alternatives(fake_apt: FakeApt, tmp_path: Path) -> None:
    apt = PrivateApt(tmp_path / "apt", SilentReporter())
    assert apt.dependencies(Package("a", "1", 0)) == ("b", "c", "e")


def test_without_debians_keys_nothing_is_fetched(
    fake_apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ballast_images.apt.KEYRINGS", (tmp_path / "missing",))
    with pytest.raises(OperatorError, match="could not be verified"):
        PrivateApt(tmp_path / "apt", SilentReporter())
