"""The balloon device: virtqueues in, pages out. Knows no transport, no clock and no event loop."""
