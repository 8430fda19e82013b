"""vhost-user: how a front-end such as QEMU lends its virtqueues to a back-end elsewhere."""
