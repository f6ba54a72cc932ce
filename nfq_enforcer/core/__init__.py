"""The pure core: bytes and times in, decisions out; no I/O, no clock, no log."""
