"""How QEMU reaches the device: one shell for each protocol, the same device behind all."""
