from __future__ import annotations

from ballast_images.kernel_log import complaints

LOG = """\
<4>[    1.147031] mtrr: your CPUs had inconsistent fixed MTRR settings
<4>[    1.540524] ACPI: IRQ 4 override to edge(!), high(!)
<4>[    9.000000] WARNING: CPU: 0 PID: 1 at drivers/virtio/virtio_balloon.c:1
<3>[   10.000000] virtio_balloon virtio1: Out of puff!
"""


def test_what_the_machine_makes_every_kernel_say_is_no_complaint() -> None:
    assert complaints("\n".join(LOG.splitlines()[:2])) == []


def test_the_rest_is() -> None:
    assert complaints(LOG) == LOG.splitlines()[2:]
