"""`ballast bench`: measured against QEMU's own balloon, interleaved, on one machine in one run."""
