"""Virtqueues over guest memory, seen from the device's side. Everything in them is untrusted."""
