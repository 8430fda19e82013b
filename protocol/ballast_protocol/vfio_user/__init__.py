"""vfio-user: how a client such as QEMU uses a whole PCI device that another process is."""
