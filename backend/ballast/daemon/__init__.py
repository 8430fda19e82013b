"""The worker process: many VMs, each wired from device, transport, QMP and agent link."""
