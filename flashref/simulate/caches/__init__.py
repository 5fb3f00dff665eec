"""What others use instead of a window: caches of units in one pool of memory, and the least of reads."""
