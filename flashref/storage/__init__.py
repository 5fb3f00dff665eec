"""The explicit storage model of chapters 50 to 56: devices, read plans, flash images and readers."""
