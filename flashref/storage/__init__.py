"""The explicit storage model: devices, plans, images and readers (specs/50 to 56)."""
