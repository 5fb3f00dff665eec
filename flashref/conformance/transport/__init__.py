"""How an implementation is reached: calls that are watched, processes, and values as JSON."""
