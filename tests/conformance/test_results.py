"""What `checked_result` takes of each operation, and what it calls a wrong type (IOP-2)."""

import numpy as np
import pytest
from random_calls import VALID

from flashref.conformance import reference
from flashref.conformance.adapter import OPERATIONS
from flashref.conformance.transport.results import WrongType, checked_result
from flashref.conformance.transport.subject import unchanged

pytestmark = pytest.mark.req("IOP-2")


def changed(result, *path, to):
    """The result with another part at a path of indices or names; `to` makes it from the old part."""
    if not path:
        return to(result)
    first, *rest = path
    copy = dict(result) if isinstance(result, dict) else list(result)
    copy[first] = changed(copy[first], *rest, to=to)
    return copy


def longer(part):
    return [*part, part[0]] if isinstance(part, list | tuple) else np.concatenate([part, part[:1]])


def wide(part):
    return np.asarray(part, np.float64)


def a_dimension_more(part):
    return np.asarray(part)[None]


def three_numbers(part):
    return np.zeros((len(part), 3), np.int64)


def text(part):
    return "none"


# Operation → path of a part, and what is made of it.
WRONG = {
    "predict_active": [((), wide), ((), a_dimension_more), ((), text)],
    "dense_ffn": [((), wide), ((), longer), ((), a_dimension_more)],
    "sparse_ffn": [((), wide), ((), longer)],
    "bundle_layout": [((), longer), ((0,), wide), ((1,), longer), ((1,), three_numbers)],
    "pack_bundles": [((), wide), ((), a_dimension_more)],
    "unpack_bundles": [((), longer), ((0,), longer), ((0,), wide)],
    "read_plan": [((), three_numbers), ((), wide)],
    "gather_rows": [((), longer), ((0,), wide), ((0,), a_dimension_more), ((1,), longer), ((1,), wide)],
    "run_window": [((), longer), ((0,), longer), ((0, 0), longer), ((0, 0, 0), longer), ((0, 0, 0, 0), wide)],
    "run_slots": [((), longer), ((0,), longer), ((0, 1), wide), ((0, 1), longer), ((0, 2), wide)],
    "run_decode": [
        ((), longer),
        ((0,), wide),
        ((0,), longer),
        ((1,), text),
        ((1,), lambda counters: {**counters, "misses": counters["loaded"]}),
        ((1, "loaded"), wide),
        ((1, "loaded"), longer),
    ],
}
CASES = [(name, path, change) for name, parts in WRONG.items() for path, change in parts]


def arguments_and_answer(operation):
    """A call with something in it, and the reference's answer."""
    for seed in range(50):
        arguments = VALID[operation](np.random.default_rng(seed))
        answer = checked_result(operation, arguments, getattr(reference, operation)(*arguments))
        parts = answer if isinstance(answer, list) else [answer]
        parts = [*parts, *parts[0]] if operation == "run_slots" else parts
        if all(isinstance(part, int) or len(part) for part in parts):
            return arguments, answer
    raise AssertionError(operation)


@pytest.mark.parametrize("operation", WRONG)
def test_a_right_result_comes_back_with_its_bits(operation):
    arguments, answer = arguments_and_answer(operation)
    assert unchanged(checked_result(operation, arguments, answer), answer)
    assert set(WRONG) == set(OPERATIONS) - {"logits"}


@pytest.mark.parametrize(
    ("operation", "path", "change"), CASES, ids=[f"{o}-{p}-{getattr(c, '__name__', '')}" for o, p, c in CASES]
)
def test_a_result_of_another_form_is_a_wrong_type(operation, path, change):
    arguments, answer = arguments_and_answer(operation)
    with pytest.raises(WrongType, match=f"^{operation} gave "):
        checked_result(operation, arguments, changed(answer, *path, to=change))


def test_logits_are_a_row_for_each_token():
    arguments = "folder", np.arange(2), "exact"
    right = np.zeros((2, 5), np.float32)
    counters = {"loaded": np.zeros((2, 3), np.int64)}
    for given in ({}, counters):
        assert checked_result("logits", arguments, [right, given])[0] is not None
    for wrong in (right[:1], right.astype(np.float64), right[0]):
        with pytest.raises(WrongType):
            checked_result("logits", arguments, [wrong, {}])


def test_an_empty_list_is_no_ids_and_no_reads():
    plan = checked_result("read_plan", (np.zeros((0, 2), np.int64), 64, 0), [])
    assert (plan.shape, plan.dtype) == ((0, 2), np.int64)
    arguments = VALID["predict_active"](np.random.default_rng(0))
    assert checked_result("predict_active", arguments, []).dtype == np.int64
    assert checked_result("predict_active", arguments, [3, 4]).tolist() == [3, 4]
