"""Chapter 94: the reference passes every vector, and wrong results are found and shown."""

import contextlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
import vector_folders
from vector_mutants import MUTANTS

from flashref.conformance import reference
from flashref.conformance.adapter import OPERATIONS, Unsupported
from flashref.conformance.transport.subject import Breach, InProcess
from flashref.conformance.vectors.compare import beyond_facts, difference_of
from flashref.conformance.vectors.published import judge_vector

shipped = vector_folders.shipped


def subject_with(**functions):
    return InProcess(SimpleNamespace(**{**vars(reference), **functions}))


@pytest.mark.req("VEC-7")
def test_the_reference_passes(shipped):
    subject = InProcess(reference)
    for vector in shipped.values():
        judge_vector(subject, vector)


@pytest.mark.req("VEC-7", "VEC-8")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_implementation_fails(name, shipped):
    functions = MUTANTS[name]
    subject, failed, passed = subject_with(**functions), [], 0
    for vector in shipped.values():
        if vector.operation in functions:
            try:
                judge_vector(subject, vector)
                passed += 1
            except Breach as breach:
                failed.append((vector, breach))
    assert passed and any(breach.kind == "fail" for _, breach in failed)  # and not by breaking everything
    for vector, breach in failed:
        assert str(breach).startswith(f"{vector.id}: ") and str(breach).endswith(f" it {vector.comment}")


@pytest.mark.req("VEC-9")
def test_what_is_not_claimed_is_not_asked(shipped):
    def asked(subject):
        count = 0
        for vector in shipped.values():
            with contextlib.suppress(Unsupported):
                judge_vector(subject, vector)
                count += 1
        return count

    everything = asked(InProcess(reference))
    assert everything == len(shipped)
    assert 0 < asked(subject_with(dtypes={"F16"})) < everything
    assert 0 < asked(subject_with(max_elements=12)) < everything
    subnormal = {"dense_ffn/bounded/subnormal_F32", "dense_ffn/bounded/subnormal_BF16"}
    assert asked(subject_with(flushes_subnormals=True)) == everything - len(subnormal & shipped.keys())
    without = {name: None for name in OPERATIONS if name != "read_plan"}
    reasons = dict.fromkeys(without, "it has none")
    only_plans = asked(subject_with(**without, unsupported=reasons))
    assert only_plans == sum(vector.operation == "read_plan" for vector in shipped.values())


@pytest.mark.req("VEC-9")
@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"dtypes": {"F32", "BF16"}}, "sparse_ffn/dyadic/tail_of_33"),
        ({"dtypes": {"F16"}}, "run_decode/window/of_one_token"),
        ({"dtypes": {"F16"}}, "gather_rows/images/every_id"),
        ({"max_elements": 32}, "unpack_bundles/patterns/F16_edges"),
        ({"max_elements": 800}, "dense_ffn/bounded/n16_d64_F16"),
        ({"flushes_subnormals": True}, "dense_ffn/bounded/subnormal_BF16"),
        ({"flushes_subnormals": True}, "dense_ffn/bounded/subnormal_F32"),
    ],
)
def test_one_case_beyond_what_is_claimed(facts, name, shipped):
    if facts == {"max_elements": 32}:
        judge_vector(subject_with(**facts), shipped[name])  # 4 · 8: just as many
        facts = {"max_elements": 31}
    with pytest.raises(Unsupported):
        judge_vector(subject_with(**facts), shipped[name])


@pytest.mark.req("VEC-9")
@pytest.mark.parametrize(("value", "asked"), [(2.0**-126, True), (-(2.0**-127), False), (2.0**-149, False)])
def test_the_smallest_normal_is_none_of_the_subnormals(value, asked, shipped):
    vector = shipped["dense_ffn/bounded/relu_plain_F32"]
    x = np.float32([value] * len(vector.arguments[0]))
    facts = subject_with(flushes_subnormals=True).facts
    assert (beyond_facts(facts, vector._replace(arguments=[x, *vector.arguments[1:]])) is None) is asked


@pytest.mark.req("VEC-9")
def test_a_withdrawn_case_is_not_asked(shipped):
    vector = shipped["read_plan/plans/touching"]._replace(withdrawn="it was wrong")
    with pytest.raises(Unsupported, match="it was wrong"):
        judge_vector(subject_with(read_plan=lambda *of: 1 / 0), vector)


@pytest.mark.req("VEC-8")
def test_a_refusal_and_a_result_in_the_wrong_place(shipped):
    def refuses(*of):
        raise ValueError("not today")

    with pytest.raises(Breach, match="refused a valid input: ValueError: not today"):
        judge_vector(subject_with(read_plan=refuses), shipped["read_plan/plans/touching"])
    judge_vector(subject_with(read_plan=refuses), shipped["read_plan/refusals/block_of_three"])
    with pytest.raises(Breach, match="accepted what must be refused"):
        judge_vector(subject_with(read_plan=lambda *of: []), shipped["read_plan/refusals/block_of_three"])


@pytest.mark.req("VEC-7")
def test_a_bound_is_shown_with_its_numbers_and_met_exactly(shipped):
    vector = shipped["dense_ffn/bounded/n61_d13_F32"]
    y, bound = vector.expectation.result, vector.expectation.bound
    inside = np.nextafter((y + bound).astype(np.float32), np.float32(-np.inf))
    judge_vector(subject_with(dense_ffn=lambda *of: inside), vector)
    judge_vector(subject_with(dense_ffn=lambda *of: np.float32(y)), vector)
    outside = np.nextafter(inside, np.float32(np.inf))
    with pytest.raises(Breach, match=r"the error is \S+, 1(\.0\d)? times the bound"):
        judge_vector(subject_with(dense_ffn=lambda *of: np.nextafter(outside, np.float32(np.inf))), vector)
    wrong = np.float32(y)
    wrong[3] += np.float32(3 * bound[3])
    wrong[5] += np.float32(8 * bound[5])
    with pytest.raises(Breach) as caught:
        judge_vector(subject_with(dense_ffn=lambda *of: wrong), vector)
    text = str(caught.value)
    shown = re.search(r"worst element 5: got (\S+) \(\S+\), exact (\S+) ", text).groups()
    assert [float.fromhex(one) for one in shown] == [float(wrong[5]), float(y[5])]
    assert "times the bound" in text and vector.comment in text
    with pytest.raises(Breach, match="worst element 0: got nan"):
        judge_vector(subject_with(dense_ffn=lambda *of: np.full_like(wrong, np.nan)), vector)


@pytest.mark.req("VEC-7")
def test_only_a_zero_may_have_either_sign(shipped):
    vector = shipped["dense_ffn/dyadic/zeros_of_both_signs"]
    for zero in (0.0, -0.0):
        judge_vector(subject_with(dense_ffn=lambda *of, zero=zero: np.full(2, zero, np.float32)), vector)
    with pytest.raises(Breach, match=r"element 1: got 0x1p-149 \(1.4012\S+e-45\), expected 0x0p\+0 \(0\)"):
        judge_vector(subject_with(dense_ffn=lambda *of: np.float32([0, 2.0**-149])), vector)

    def without_signs(*of):
        return [matrix + np.float16(0) for matrix in reference.unpack_bundles(*of)]

    rows = shipped["unpack_bundles/patterns/F16_edges"]
    with pytest.raises(Breach):  # stored weights keep their zeros' signs
        judge_vector(subject_with(unpack_bundles=without_signs), rows)


@pytest.mark.req("VEC-7")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda must, may: must[1:], "misses the ids"),
        (lambda must, may: np.arange(12), "has the ids"),
        (lambda must, may: must[::-1], "not strictly ascending"),
        (lambda must, may: np.sort(np.concatenate([must, must[:1]])), "not strictly ascending"),
        (lambda must, may: must, None),
        (lambda must, may: np.union1d(must, may), None),
    ],
)
def test_within_a_band_either_answer_is_right(change, text, shipped):
    bands = [vector for vector in shipped.values() if vector.expectation.kind == "either"]
    vector = next(vector for vector in bands if 1 < len(vector.expectation.must) < 10)
    answer = change(vector.expectation.must, vector.expectation.may)
    subject = subject_with(predict_active=lambda *of: answer)
    if text is None:
        return judge_vector(subject, vector)
    with pytest.raises(Breach, match=text):
        judge_vector(subject, vector)


@pytest.mark.req("VEC-10")
def test_slots_in_another_order_and_counters_left_out_pass(shipped):
    def newest_first(capacity, placement, deltas, rows):
        """swap_with_last, but new rows are appended with the largest id first."""
        order, of, steps = [], {}, []
        for (load, evict, _), new in zip(deltas, rows, strict=True):
            of |= dict(zip(load.tolist(), new, strict=True))
            count = len(order) - len(evict)
            tail = [neuron for neuron in order[count:] if neuron not in evict]
            moved = len(tail)
            order = [tail.pop() if neuron in evict else neuron for neuron in order[:count]]
            order += sorted(load.tolist(), reverse=True)
            matrix = np.stack([of[neuron] for neuron in order]) if order else new[:0]
            steps.append([order, matrix, moved])
        return steps

    def some_counters(*of):
        ys, counters = reference.run_decode(*of)
        return ys, {name: counters[name] for name in ("loaded", "requests")}

    def wrong_counter(*of):
        ys, counters = reference.run_decode(*of)
        return ys, {"moved_rows": counters["evicted"] + 1}

    in_order = InProcess(reference)
    other_order, differing = subject_with(run_slots=newest_first), 0
    for vector in shipped.values():
        if vector.id.startswith("run_slots/swap_with_last/"):
            judge_vector(other_order, vector)
            moved = [
                [step[2] for step in s.call("run_slots", *vector.arguments)] for s in (in_order, other_order)
            ]
            differing += moved[0] != moved[1]
    assert differing > 3
    slots = shipped["run_slots/swap_with_last/every_second_row_leaves"]
    with pytest.raises(Breach):  # rows under other ids
        judge_vector(
            subject_with(run_slots=lambda *of: [[i, r[::-1], m] for i, r, m in reference.run_slots(*of)]),
            slots,
        )
    for name in ("run_decode/window/of_one_token", "run_decode/bounded/silu_F32"):
        judge_vector(subject_with(run_decode=some_counters), shipped[name])
        with pytest.raises(Breach, match="counter moved_rows is"):
            judge_vector(subject_with(run_decode=wrong_counter), shipped[name])
        with pytest.raises(Breach, match="element 0, "):
            judge_vector(
                subject_with(run_decode=lambda *of: (reference.run_decode(*of)[0] + 1, {})), shipped[name]
            )


@pytest.mark.req("VEC-7")
@pytest.mark.parametrize(
    ("got", "says"),
    [
        (
            [0, 3],
            "worst element 1: got 0x1.8p+1 (3), exact 0x1p+1 (2); the error is 1, 2 times the bound 0.5",
        ),
        (
            [0.5, 2],
            "worst element 0: got 0x1p-1 (0.5), exact 0x0p+0 (0); the error is 0.5, and none is allowed",
        ),
        ([0, np.nan], "worst element 1: got nan (nan), exact 0x1p+1 (2); that is no finite number, and the "),
    ],
)
def test_the_worst_element_is_one_that_is_wrong(shipped, got, says):
    """An element that is right, with an error and a bound of 0, has no ratio, and must not be shown."""
    vector = shipped["dense_ffn/bounded/n61_d13_F32"]
    expectation = vector.expectation._replace(result=np.float64([0, 2]), bound=np.float64([0, 0.5]))
    text = difference_of(vector._replace(expectation=expectation), np.float32(got))
    assert text.startswith(says)


@pytest.mark.req("VEC-7")
@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "read_plan/plans/touching",
            lambda due: due.astype(np.int32),
            "result: got int32 of shape (1, 2), expected int64 of shape (1, 2)",
        ),
        ("run_window/by_hand/example", lambda due: due[:-1], "result: got 0 parts, expected 1"),
        (
            "run_window/by_hand/example",
            lambda due: [[[[due[0][0][0][0][:1], *due[0][0][0][1:]]], *due[0][1:]]],
            "load, sequence 0, token 0, layer 0: got [1], expected [1, 2]",
        ),
    ],
)
def test_a_difference_in_structure_is_shown(shipped, name, change, says):
    vector = shipped[name]
    assert difference_of(vector, vector.expectation.result) is None
    assert difference_of(vector, change(vector.expectation.result)).startswith(says)


@pytest.mark.req("VEC-10")
@pytest.mark.parametrize("moved", [-1, 0, 1])
def test_rows_moved_are_no_less_than_none(shipped, moved):
    vector = shipped["run_decode/window/of_one_token"]
    ys, counters = vector.expectation.result
    least = np.full_like(counters["loaded"], min(moved, 0))
    least.flat[0] = moved  # the first token evicts nothing, so nothing can move
    text = difference_of(vector, [ys, {**counters, "moved_rows": least}])
    assert (text is None) == (moved == 0)
    assert moved == 0 or text.startswith("counter moved_rows is ")
