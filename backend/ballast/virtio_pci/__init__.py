"""A modern virtio-pci device without any I/O: accesses of its regions in, bytes and effects out."""
