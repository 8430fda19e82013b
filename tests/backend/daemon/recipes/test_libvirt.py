"""The domain, checked against libvirt's own schema."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from lxml import etree

from ballast.daemon.recipes.libvirt import NAMESPACE, libvirt
from ballast.daemon.recipes.model import Site
from support.plans import AWKWARD, debian_files, plan


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    root = debian_files("libvirt-schemas", "libvirt-common")
    return etree.RelaxNG(file=str(root / "usr/share/libvirt/schemas/domain.rng"))


def domain(*arguments: str, **options: object) -> etree.Element:
    (file,) = libvirt(plan(*arguments, **options), Site()).files  # type: ignore[arg-type]
    assert file.path == Path("web.xml")
    return etree.fromstring(file.text)


@pytest.mark.parametrize("transport", ["vhost-user", "vfio-user"])
@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
@pytest.mark.parametrize("arguments", [(), AWKWARD])
def test_libvirt_accepts_it(
    schema: etree.RelaxNG, transport: str, accelerator: str, arguments: tuple[str, ...]
) -> None:
    schema.assertValid(domain(*arguments, transport=transport, accelerator=accelerator))


def test_libvirt_would_not_accept_anything_else(schema: etree.RelaxNG) -> None:
    changed = domain()
    changed.find("memoryBacking/access").set("mode", "mutual")
    assert not schema.validate(changed)


def test_the_memory_is_shared_and_the_only_balloon_ours() -> None:
    found = domain()
    assert found.find("memoryBacking/source").get("type") == "memfd"
    assert found.find("memoryBacking/access").get("mode") == "shared"
    assert found.findtext("memory") == str(1 << 20)
    assert found.find("devices/memballoon").get("model") == "none"


def test_what_libvirt_does_not_know_is_passed_on_word_by_word() -> None:
    passed = domain(*AWKWARD).iterfind(f"{{{NAMESPACE}}}commandline/{{{NAMESPACE}}}arg")
    words = [each.get("value") for each in passed]
    assert words[:2] == ["-chardev", "socket,id=balloon,path=/run/ballast/web/vhost-user.sock"]
    assert words[-3:] == list(AWKWARD)
    assert "unix:/run/ballast/web/monitor.sock,server=on,wait=off" in words


def devices(found: etree.Element) -> list[dict[str, object]]:
    """Return the devices that are passed on, all in JSON: QEMU makes others before libvirt's."""
    words = [each.get("value") for each in found.iter(f"{{{NAMESPACE}}}arg")]
    return [json.loads(word) for before, word in pairwise(words) if before == "-device"]


def test_the_balloon_is_made_after_what_libvirt_makes() -> None:
    balloon = {
        **{"driver": "vhost-user-test-device-pci", "id": "balloon0", "chardev": "balloon"},
        **{"virtio-id": 5, "num_vqs": 5, "vq_size": 128, "config_size": 16},
    }
    assert balloon in devices(domain())
    (vfio_user, _) = devices(domain(transport="vfio-user"))
    assert vfio_user["driver"] == "vfio-user-pci"


def test_the_agent_has_its_port() -> None:
    found = domain()
    assert found.find("devices/controller").get("type") == "virtio-serial"
    words = [each.get("value") for each in found.iter(f"{{{NAMESPACE}}}arg")]
    assert "socket,id=agent,path=/run/ballast/web/agent.sock,reconnect-ms=1000" in words
    port = {"driver": "virtserialport", "chardev": "agent", "name": "org.ballast.agent.0"}
    assert port in devices(found)


def test_the_guest_for_trials_boots_where_no_disk_is_named() -> None:
    assert domain().findtext("os/kernel") == "/srv/vmlinuz"
    assert domain(*AWKWARD).find("os/kernel") is None
