"""How the kit reaches an implementation: calls that are watched, processes, and values as JSON."""
