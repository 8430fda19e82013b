"""A libvirt domain. libvirt does not know the balloon's device, so the domain passes it on.

The elements are those of https://libvirt.org/formatdomain.html; `qemu:commandline` is that of
https://libvirt.org/kbase/qemu-passthrough-security.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from ballast.daemon.launch import LaunchPlan, monitor_arguments
from ballast.daemon.paths import VmPaths
from ballast.daemon.qemu_args import balloon_arguments
from ballast.daemon.recipes.model import (
    Recipe,
    RecipeFile,
    Site,
    migration_steps,
    private_steps,
)
from ballast_images.guest import KERNEL_ARGUMENTS, GuestImage
from ballast_images.machine import agent_arguments

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

QEMU_USER = "libvirt-qemu"
"""Who libvirt runs QEMU as, in Debian."""


def libvirt(plan: LaunchPlan, site: Site) -> Recipe:
    """Return the domain, to be completed with disks and networks where the plan has none."""
    root = domain(plan, site.paths(plan))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    name = plan.config.name
    file = RecipeFile(Path(f"{name}.xml"), f"{text}\n")
    return Recipe((file,), (*_steps(plan, site), *private_steps(plan, site)))


def _steps(plan: LaunchPlan, site: Site) -> Iterable[str]:
    name, directory = plan.config.name, site.paths(plan).directory
    yield (
        f"Serve the balloon first: ballast launch {name} --print-command --format systemd "
        f"--user {QEMU_USER} (on Fedora: qemu) has the unit; leave out the one of QEMU."
    )
    yield f"virsh define {name}.xml && virsh start {name}"
    yield (
        f"AppArmor knows nothing of what is passed on: put `{directory}/* rw,` into "
        "/etc/apparmor.d/abstractions/libvirt-qemu.d/ballast. With SELinux the sockets need the "
        "label svirt_image_t."
    )
    if plan.arguments:
        yield (
            "Your QEMU arguments are passed on as they are: with relative paths made absolute, "
            "and better as <disk> and <interface>, which libvirt labels and gives access to."
        )
    yield from migration_steps(plan)


def domain(plan: LaunchPlan, paths: VmPaths) -> ElementTree.Element:
    """Return the domain as an element tree."""
    is_kvm = plan.accelerator == "kvm"
    root = ElementTree.Element(
        "domain", {"type": "kvm" if is_kvm else "qemu", "xmlns:qemu": NAMESPACE}
    )
    _text(root, "name", plan.config.name)
    _text(root, "memory", str(plan.memory_bytes // 1024), unit="KiB")
    # Memory that is not shared, QEMU keeps to itself without a word.
    backing = ElementTree.SubElement(root, "memoryBacking")
    ElementTree.SubElement(backing, "source", type="memfd")
    ElementTree.SubElement(backing, "access", mode="shared")
    _text(root, "vcpu", str(plan.cpus))
    _boot(root, plan.image)
    ElementTree.SubElement(ElementTree.SubElement(root, "features"), "acpi")
    ElementTree.SubElement(root, "cpu", mode="host-passthrough" if is_kvm else "maximum")
    _devices(root, plan)
    _passed_on(root, _arguments(plan, paths))
    return root


def _text(parent: ElementTree.Element, tag: str, text: str, **attributes: str) -> None:
    ElementTree.SubElement(parent, tag, attributes).text = text


def _boot(root: ElementTree.Element, image: GuestImage | None) -> None:
    boot = ElementTree.SubElement(root, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine="q35")
    if image is not None:
        _text(boot, "kernel", str(image.kernel))
        _text(boot, "initrd", str(image.initrd))
        _text(boot, "cmdline", " ".join(KERNEL_ARGUMENTS))


def _devices(root: ElementTree.Element, plan: LaunchPlan) -> None:
    devices = ElementTree.SubElement(root, "devices")
    _text(devices, "emulator", str(plan.qemu))
    serial = ElementTree.SubElement(devices, "serial", type="pty")
    ElementTree.SubElement(serial, "target", port="0")
    ElementTree.SubElement(devices, "controller", type="virtio-serial", index="0")
    # libvirt adds a balloon of QEMU's own to a domain that does not say this.
    ElementTree.SubElement(devices, "memballoon", model="none")


def _arguments(plan: LaunchPlan, paths: VmPaths) -> list[str]:
    transport = plan.config.transport
    ours = [
        *balloon_arguments(plan.config.socket_path or paths.device(transport), transport=transport),
        # As a <channel> with <reconnect>, libvirt 9 gives it an option that QEMU 11.1 has no more.
        *agent_arguments(paths.agent),
        *monitor_arguments(paths.monitor),
    ]
    return [*devices_as_json(ours), *plan.arguments]


def devices_as_json(arguments: Iterable[str]) -> Iterator[str]:
    """Yield arguments with their devices in JSON, as libvirt has its own.

    QEMU makes all other devices before those: a balloon would take the place on the bus that
    libvirt has chosen for a device of its own, and the agent's port would find no controller.
    """
    before = ""
    for each in arguments:
        yield _device_as_json(each) if before == "-device" and not each.startswith("{") else each
        before = each


def _device_as_json(device: str) -> str:
    driver, *options = device.split(",")
    pairs = (option.split("=", 1) for option in options)
    values = {name: int(text) if text.isdigit() else text for name, text in pairs}
    return json.dumps({"driver": driver, **values})


def _passed_on(root: ElementTree.Element, arguments: Iterable[str]) -> None:
    passed = ElementTree.SubElement(root, "qemu:commandline")
    for each in arguments:
        ElementTree.SubElement(passed, "qemu:arg", value=each)
