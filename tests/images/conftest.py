from __future__ import annotations

from support.guests import accelerator_name, guest_image, machine, qemu, socket_dir

__all__ = ["accelerator_name", "guest_image", "machine", "qemu", "socket_dir"]
