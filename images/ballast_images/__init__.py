"""Finds or provisions QEMU, builds the guest that demo and tests boot, and drives it."""
