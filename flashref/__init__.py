"""flashref: the executable reference of "LLM in a flash" (arXiv 2312.11514).

Each public name belongs to a chapter of specs/. Importing this needs neither JAX nor Hypothesis.
"""

from flashref.bundle import bundle_extents, bundle_layout, pack_bundles, unpack_bundles
from flashref.types import FFN, Device, Extent, Predictor, same
from flashref.window import empty_window, resident_neurons, window_update

__version__ = "0.1.0"
SPEC_VERSION = "1.0"

__all__ = [
    "FFN",
    "SPEC_VERSION",
    "Device",
    "Extent",
    "Predictor",
    "bundle_extents",
    "bundle_layout",
    "empty_window",
    "pack_bundles",
    "resident_neurons",
    "same",
    "unpack_bundles",
    "window_update",
]
