"""Chapters 10, 20, 30 and 70 in JAX, for jit, vmap and grad; it uses the reference, and is judged by it.

A set of ids is `Padded(ids, size)`: an int32 array of fixed length m whose first `size` entries are the set,
ascending; what lies behind them is never looked at. `Window`, `Delta`, `Slots` and `Moves` have the fields of
the reference's tuples of these names, in int32 arrays. `FFN` and `Predictor` are those of flashref.types; as
a pytree an FFN's activation is structure, so jit takes it as static.

Nothing can be raised while a program runs. A function that takes ids therefore gives `valid` as well, a bool
array of shape (): False if an id is out of range, out of order or there twice, or if there are more ids than
places. Rows and results are NaN then (BF16: the bits 0x7FC0), and a state comes back unchanged; nothing is
clamped or wrapped. JAX itself cuts int64 to int32 without a word: pass a caller's ids through `pad_ids`,
which refuses what does not fit. What shapes and dtypes show raises at once. Bytes, offsets and times stay
out of JAX.

Weights are stored as F32, F16 or BF16 bits, arithmetic is float32, products have precision "highest". On a
CPU, XLA reads subnormal float32 values (and BF16 ones) as zero and flushes such results: that cannot be
avoided. `take_rows` and `apply_moves` keep their bits. Meaning: chapters 10, 20, 30 and 70 of specs/;
accuracy: chapter 90; decisions 17 and 24.
"""

from flashref.xla.activations import ACTIVATIONS
from flashref.xla.ffn import (
    dense_ffn,
    neuron_values,
    pre_activations,
    predict_active,
    predictor_logits,
    sparse_ffn,
    sum_neurons,
    take_neurons,
)
from flashref.xla.padded import Padded, ascending_ids, pad_ids, take_rows, valid_ids, widen
from flashref.xla.pytrees import register_ffn
from flashref.xla.slots import Moves, Slots, apply_moves, empty_slots, fill_holes, swap_with_last
from flashref.xla.window import Delta, Window, empty_window, resident_neurons, window_update

register_ffn()

__all__ = [
    "ACTIVATIONS",
    "Delta",
    "Moves",
    "Padded",
    "Slots",
    "Window",
    "apply_moves",
    "ascending_ids",
    "dense_ffn",
    "empty_slots",
    "empty_window",
    "fill_holes",
    "neuron_values",
    "pad_ids",
    "pre_activations",
    "predict_active",
    "predictor_logits",
    "resident_neurons",
    "sparse_ffn",
    "sum_neurons",
    "swap_with_last",
    "take_neurons",
    "take_rows",
    "valid_ids",
    "widen",
    "window_update",
]
