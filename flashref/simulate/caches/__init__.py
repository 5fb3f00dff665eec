"""Caches to compare the window with: units in one pool of memory; this package *uses* the reference."""
