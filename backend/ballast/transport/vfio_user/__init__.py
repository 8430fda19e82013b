"""The vfio-user shell: the balloon as a whole PCI function, served over a socket."""
