"""virtio over PCI (virtio 1.3, section 4.1): registers, capabilities, numbers. Little-endian."""
