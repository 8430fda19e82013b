"""The process that owns what must live as long as a VM, so that the one that thinks may die.

It holds descriptors by name, accepts QEMU's connections, starts the worker and hands everything to
the next one when it is gone. It reads nothing that a guest or QEMU can write, waits for nobody, and
needs the standard library only. `docs/keeper.md` tells the whole.
"""
