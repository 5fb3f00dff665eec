"""Sizes of models without weights, from a preset or a config.json; this package *uses* the reference."""
