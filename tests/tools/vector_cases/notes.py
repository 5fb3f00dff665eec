"""The classes of bugs that cases are flagged with. Each happened in a public project."""

from collections.abc import Mapping


def _note(catches: str, effect: str) -> Mapping[str, str]:
    return {"catches": catches, "effect": effect}


NOTES: Mapping[str, Mapping[str, str]] = {
    "activation": _note(
        "an activation that is hard-coded, or evaluated in a form that cancels", "wrong output"
    ),
    "batch": _note(
        "one answer, buffer or window for all sequences of a batch", "right for one sequence only"
    ),
    "bf16": _note("bfloat16 bits taken for float16, or float32 truncated", "wrong weights"),
    "bias": _note("a bias that is lost, added after the mask, or left out for an empty set", "wrong output"),
    "boundary": _note("an off-by-one at a size of 0, 1 or all", "a crash, or a neuron too few"),
    "capacity": _note(
        "a cache below one token's set, or of no row", "a crash, missing neurons, useless reads"
    ),
    "counters": _note(
        "reads or moves that are not counted, or counted though nothing happens", "a wrong cost"
    ),
    "dyadic": _note(
        "errors of structure", "results must match to the bit, in whatever order they are summed"
    ),
    "eviction": _note(
        "a row dropped that the same token needs, or one token too early or late", "wrong output"
    ),
    "fp16": _note("subnormal float16 decoded with a wrong exponent, signed zeros lost", "wrong weights"),
    "gap": _note(
        "reads merged across too large a gap, or not merged", "a wrong cost, or bytes of another neuron"
    ),
    "layers": _note(
        "a window that moves once a layer instead of once a token, layers in the order 0, 1, 10, 2",
        "wrong neurons as soon as there are more layers than tokens in the window",
    ),
    "layout": _note(
        "a writer and a reader that share no definition of where rows lie", "plausible wrong numbers"
    ),
    "offsets": _note("byte offsets in 32 bits, or in a float", "bytes of another neuron"),
    "order": _note("rows taken by their position where they are meant by their id", "wrong output"),
    "precision": _note("sums or weights of less than float32", "output off by more than rounding explains"),
    "refusal": _note(
        "ids that are clamped or wrapped, shapes that are broadcast", "a wrong answer instead of an error"
    ),
    "semantics": _note("summing the predicted rows for the resident ones, or the reverse", "wrong output"),
    "shrink": _note(
        "a window that grows back after it had to shrink", "neurons counted as there that are gone"
    ),
    "stale": _note(
        "a row, a mask or a buffer of an earlier token or layer", "wrong output some tokens later"
    ),
    "swap": _note(
        "a hole that is the last row, or a last row that is itself deleted", "a row lost or doubled"
    ),
    "tail": _note("counts rounded down to a multiple of a block", "the last neurons vanish"),
    "threshold": _note(
        "a threshold that is unused, scaled, not strict, or applied to a probability", "wrong neurons"
    ),
    "underflow": _note("subnormal numbers that are lost", "wrong output for tiny weights"),
}
