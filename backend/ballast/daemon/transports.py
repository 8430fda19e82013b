"""Makes what speaks with a VM's QEMU."""

from __future__ import annotations

from ballast.balloon.device import BalloonDevice
from ballast.daemon.config import VmConfig
from ballast.daemon.kept import Mode
from ballast.daemon.paths import VmPaths
from ballast.state.file import StateFile
from ballast.streams.fdstore import VmStore
from ballast.transport.server import DeviceServer
from ballast.transport.vfio_user.server import VfioUserServer
from ballast.transport.vhost_user.server import VhostUserServer
from ballast.virtio_pci.layout import Variant


def make_transport(
    config: VmConfig,
    device: BalloonDevice,
    paths: VmPaths,
    store: VmStore,
    state: StateFile,
    mode: Mode,
) -> DeviceServer:
    """Return the server of a VM's device; nothing listens yet.

    Args:
        config: What it is to be.
        device: What is behind it.
        paths: Where it listens, unless the configuration says otherwise.
        store: Where its descriptors are kept.
        state: Where all else is kept that a successor needs.
        mode: Who keeps them.
    """
    path, fd = None, config.fd
    if fd is None:
        path = config.socket_path or paths.device(config.transport)
    elif mode == "parent":
        fd = None  # it was inherited by the parent, and is in the store as long as it lives
    if config.transport == "vhost-user":
        kept = None if mode == "none" else state
        return VhostUserServer(device, path=path, fd=fd, store=store, state=kept)
    variant = Variant(config.variant)
    return VfioUserServer(device, path=path, fd=fd, variant=variant, store=store, state=state)
