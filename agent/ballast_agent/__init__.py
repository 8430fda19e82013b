"""The agent that runs inside the guest: standard library and `ballast_protocol` only."""

