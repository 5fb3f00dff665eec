"""Models without their weights: what they take in bytes, from a preset or a config.json."""
