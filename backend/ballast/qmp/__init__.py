"""Each VM's QMP socket: QEMU's balloon commands for a balloon that QEMU does not have.

`control` is what a VM has to offer, `commands` what can be asked of it, `server` and `connection`
serve a socket, `throttle` paces events, and `client` is the other end, for the command line.
"""
