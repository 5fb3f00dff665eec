"""flashref: the executable reference of "LLM in a flash" (arXiv 2312.11514).

Each public name belongs to a chapter of specs/. Importing this needs neither JAX nor Hypothesis.
"""

from flashref.bundle import bundle_extents, bundle_layout, pack_bundles, unpack_bundles
from flashref.decode import decode_layer, empty_layer
from flashref.ffn import active_neurons, dense_ffn, sparse_ffn
from flashref.gather import gather_rows
from flashref.predictor import active_band, predict_active
from flashref.types import FFN, Device, Extent, Predictor, same
from flashref.window import empty_window, resident_neurons, window_update

__version__ = "0.1.0"
SPEC_VERSION = "1.3"

__all__ = [
    "FFN",
    "SPEC_VERSION",
    "Device",
    "Extent",
    "Predictor",
    "active_band",
    "active_neurons",
    "bundle_extents",
    "bundle_layout",
    "decode_layer",
    "dense_ffn",
    "empty_layer",
    "empty_window",
    "gather_rows",
    "pack_bundles",
    "predict_active",
    "resident_neurons",
    "same",
    "sparse_ffn",
    "unpack_bundles",
    "window_update",
]
