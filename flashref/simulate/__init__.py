"""Replaying traces of activation under a method and a device (paper Table 2)."""
