"""How a VM that `ballast launch` runs is run by others: libvirt, systemd, containers.

Each form is a pure function of a plan and of what is to be known of the place where it is used
(`model.Site`). `formats.FORMATS` has them all.
"""
