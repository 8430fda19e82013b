"""The protocols that Ballast speaks: bytes in, typed values out. No I/O, no clock."""
