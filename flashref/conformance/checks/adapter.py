"""Checks of chapter 96, and of the ids of chapter 00: what every operation must do, whatever it computes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flashref.conformance.adapter import OPERATIONS, AdapterError, Facts, checked_facts
from flashref.conformance.checks import bundle, decode, ffn, gather, plan, predictor, slots, window
from flashref.conformance.checks.check import Call, Check, ask, dtypes_of, must_refuse, sizes_of
from flashref.conformance.strategies import stored
from flashref.conformance.transport.subject import Breach, Subject, unchanged
from flashref.definitions import stride_model
from flashref.types import FFN, Predictor

EVERY = tuple(operation for operation in OPERATIONS if operation != "logits")


def unpackings(facts: Facts) -> st.SearchStrategy[Call]:
    """unpack_bundles of bytes packed by hand."""
    return bundle.packings(facts).map(
        lambda call: Call("unpack_bundles", (*call.arguments[:-1], bundle.packed_by_hand(call)))
    )


def valid_calls(facts: Facts) -> dict[str, st.SearchStrategy[Call]]:
    """Operation → valid calls of it, for every operation that is provided."""
    calls = {
        "predict_active": predictor.plain_predictions(facts),
        "dense_ffn": ffn.dense(ffn.plain_networks)(facts),
        "sparse_ffn": ffn.sparse(ffn.plain_networks)(facts),
        "bundle_layout": bundle.layouts(facts),
        "pack_bundles": bundle.packings(facts),
        "unpack_bundles": unpackings(facts),
        "read_plan": plan.plans(facts),
        "gather_rows": gather.gatherings(facts),
        "run_window": window.anything(facts),
        "run_slots": slots.runs("swap_with_last", "fill_holes")(facts),
        "run_decode": decode.decodings()(facts),
    }
    return {operation: calls[operation] for operation in EVERY if operation in facts.operations}


def bad_calls(facts: Facts) -> dict[str, st.SearchStrategy[Call]]:
    """Operation → calls of it that must be refused."""
    calls: dict[str, Any] = {
        "predict_active": predictor.bad_predictors(facts),
        "dense_ffn": ffn.bad_networks(facts).filter(lambda call: call.operation == "dense_ffn"),
        "sparse_ffn": bad_sparse_ids(facts),
        "bundle_layout": bundle.bad_layouts(facts),
        "pack_bundles": bundle.bad_packings(facts),
        "read_plan": st.sampled_from(plan.bad_plans(facts)),
        "gather_rows": gather.bad_gatherings(facts),
        "run_window": bad_windows(facts),
        "run_slots": slots.bad_deltas(facts),
    }
    return {name: cases for name, cases in calls.items() if name in facts.operations}


@st.composite
def bad_sparse_ids(draw: st.DrawFn, facts: Facts) -> Call:
    """sparse_ffn of ids that the layer has not."""
    x, network = draw(ffn.dyadic_networks(facts))
    ids, note = draw(ffn.bad_ids(len(network.up)))
    return Call("sparse_ffn", (x, *network, ids), note)


def every_bad_window(call: Call) -> list[Call]:
    """The call with a token of each kind of bad ids, and with sizes outside the domain."""
    n, k, capacities, actives = call.arguments
    bad = [
        ((n, k, capacities, [[*actives[0], [ids] * len(capacities)], *actives[1:]]), note)
        for ids, note in ffn.every_bad_ids(n)
    ]
    bad += [
        ((0, k, capacities, [[]]), "n = 0"),
        ((n, 0, capacities, actives), "k = 0"),
        ((n, k, [-1] * len(capacities), actives), "a capacity of -1"),
    ]
    return [Call("run_window", arguments, note) for arguments, note in bad]


def bad_windows(facts: Facts) -> st.SearchStrategy[Call]:
    """run_window with a token of bad ids, or a size outside the domain."""
    return window.anything(facts).flatmap(lambda call: st.sampled_from(every_bad_window(call)))


def bad_window_ids(facts: Facts) -> st.SearchStrategy[Call]:
    """run_window with a token of bad ids."""
    return bad_windows(facts).filter(lambda call: "id" in call.note.split())


def small_calls(facts: Facts) -> dict[str, Call]:
    """One small valid call of each operation that is provided, the same every time."""
    dtype = dtypes_of(facts)[0]
    n, d = sizes_of(facts, [(3, 1)])[0]
    x, every = np.ones(d, np.float32), np.arange(n)
    up, factor = (stored(np.ones(shape, np.float32), dtype) for shape in ((n, d), (1, d)))
    network = FFN("relu", up, up)
    layout, packed = (n, d, dtype, ["up", "down"], 64), np.zeros(n * 64, np.uint8)
    packed = packed[: n * stride_model(bundle.bundle_bytes_of(d, dtype, ["up", "down"]), 64)]
    image = np.zeros(-(-len(packed) // 64) * 64, np.uint8)
    predictor = Predictor(factor, stored(np.ones((n, 1), np.float32), dtype), None, 0.0)
    tokens = [every[:1], every, every[:0], every[-1:]]
    calls = [
        Call("predict_active", (x, *predictor)),
        Call("dense_ffn", (x, *network)),
        Call("sparse_ffn", (x, *network, every)),
        Call("bundle_layout", (*layout, 64, None, every)),
        Call("pack_bundles", (*layout, None, [up, up])),
        Call("unpack_bundles", (*layout, None, packed)),
        Call("read_plan", (np.array([[0, 10], [64, 10], [500, 1]]), 64, 0)),
        Call("gather_rows", (image, *layout, 0, None, every, 0)),
        Call("run_window", (n, 2, [1, n], [[[ids] * 2 for ids in tokens]] * 2)),
        slots.call_of(4, "swap_with_last", dtype, [([], [0, 1]), ([0], [2, 3])]),
        Call(
            "run_decode",
            (
                [[network, predictor]] * 2,
                np.stack([x, -x, x])[None],
                2,
                [1, n],
                "resident",
                "fill_holes",
                64,
                0,
                1,
            ),
        ),
    ]
    return {call.operation: call for call in calls if call.operation in facts.operations}


def bad_id_examples(facts: Facts) -> list[Call]:
    """Each kind of ids that must be refused, for each operation that takes ids."""
    small = small_calls(facts)
    examples = {
        "sparse_ffn": ffn.bad_sparse_examples,
        "bundle_layout": bundle.bad_extent_examples,
        "gather_rows": gather.bad_gathering_examples,
    }
    calls = [call for name, examples_of in examples.items() if name in small for call in examples_of(facts)]
    return calls + (every_bad_window(small["run_window"])[:-3] if "run_window" in small else [])


def refusal_examples(facts: Facts) -> list[list[Call]]:
    """Each operation's small call, and every call of it that must be refused."""
    small = small_calls(facts)
    bad = bad_id_examples(facts) + ffn.bad_network_examples(facts) + bundle.every_bad_layout(facts)
    bad += plan.bad_plans(facts) + slots.bad_delta_examples(facts)
    bad += every_bad_window(small["run_window"])[-3:] if "run_window" in small else []
    return [[small[call.operation], call] for call in bad if call.operation in small]


def any_valid(facts: Facts) -> st.SearchStrategy[Call]:
    """A valid call of any operation."""
    return st.sampled_from(list(valid_calls(facts))).flatmap(lambda name: valid_calls(facts)[name])


def bad_ids_anywhere(facts: Facts) -> st.SearchStrategy[Call]:
    """A call of any operation that takes ids, with ids that must be refused."""
    takers = {
        "sparse_ffn": bad_sparse_ids(facts),
        "bundle_layout": bundle.bad_extent_ids(facts),
        "gather_rows": gather.bad_gatherings(facts),
        "run_window": bad_window_ids(facts),
    }
    return st.one_of([cases for name, cases in takers.items() if name in facts.operations])


@st.composite
def pairs(draw: st.DrawFn, facts: Facts) -> list[Call]:
    """A call, and others of the same operation to be made before it is repeated."""
    name = draw(st.sampled_from(list(valid_calls(facts))))
    return draw(st.lists(valid_calls(facts)[name], min_size=2, max_size=3))


@st.composite
def refused_between(draw: st.DrawFn, facts: Facts) -> list[Call]:
    """A valid call, and a bad one of the same operation."""
    name = draw(st.sampled_from(list(bad_calls(facts))))
    return [draw(valid_calls(facts)[name]), draw(bad_calls(facts)[name])]


def judge_declaration(subject: Subject, case: Any) -> None:
    """Every operation is provided or has a reason."""
    try:
        checked_facts(subject.facts)
    except AdapterError as error:
        raise Breach("fail", str(error)) from None


def judge_answered(subject: Subject, call: Call) -> None:
    """The call is answered; what is wrong with the answer as such is a breach of its own."""
    ask(subject, call)


def judge_in_turn(subject: Subject, calls: Sequence[Call]) -> None:
    """Each call is answered, and leaves the result of the one before alone."""
    for number, call in enumerate(calls, 1):
        ask(subject, call, f"call {number}")


def judge_repeated(subject: Subject, calls: Sequence[Call]) -> None:
    """The first call, asked again after the others, gives the same bits."""
    first = ask(subject, calls[0], "call 1")
    at_once = ask(subject, calls[0], "call 1 at once again")
    for number, call in enumerate(calls[1:], 2):
        ask(subject, call, f"call {number}")
    at_last = ask(subject, calls[0], "call 1 after the other calls")
    for when, again in (("at once", at_once), ("after other calls", at_last)):
        if not unchanged(first, again):
            raise Breach(
                "not deterministic", f"{calls[0].operation} gave something else when asked again {when}"
            )


def judge_refusal(subject: Subject, calls: Sequence[Call]) -> None:
    """A refusal leaves nothing behind."""
    valid, bad = calls
    before = ask(subject, valid, "call 1")
    must_refuse(subject, bad)
    if not unchanged(before, ask(subject, valid, "call 1 after call 2 was refused")):
        raise Breach(
            "fail", f"{valid.operation} gave something else after it had refused a call ({bad.note})"
        )


def at_the_ends(facts: Facts) -> list[Call]:
    """Calls at the ends of their domains: nothing is asked for, nothing fits, offsets are beyond 2^53."""

    def changed(operation: str, note: str, **named: Any) -> list[Call]:
        if operation not in small:
            return []
        arguments = dict(zip(OPERATIONS[operation], small[operation].arguments, strict=True)) | named
        return [Call(operation, tuple(arguments.values()), note)]

    small, none = small_calls(facts), np.zeros(0, np.int64)
    return [
        *changed("predict_active", "nothing is predicted", threshold=float("inf")),
        *changed("sparse_ffn", "no ids", active=none),
        *changed("bundle_layout", "no ids", ids=none),
        *changed("gather_rows", "no ids", ids=none),
        *changed("read_plan", "no extents", extents=none.reshape(0, 2)),
        *changed("read_plan", "beyond 2^53", extents=np.array([[2**53 + 1, 10], [2**60, 1]])),
        *changed("run_window", "no room", capacities=[0, 0]),
        *changed("run_window", "sequences of no tokens", actives=[[], []]),
        *changed("run_window", "no sequences", actives=[]),
        *changed("run_decode", "no room", capacities=[0, 0]),
    ]


def one_each(facts: Facts) -> list[Call]:
    """A call of each operation, and those at the ends of its domain."""
    return [*small_calls(facts).values(), *at_the_ends(facts)]


def one_after_another(facts: Facts) -> list[list[Call]]:
    """Two calls of an operation, of each that has a call at an end of its domain."""
    small = small_calls(facts)
    return [[small[call.operation], call] for call in at_the_ends(facts)]


def one_twice(facts: Facts) -> list[list[Call]]:
    """The same call again and again, of each operation."""
    return [[call, call] for call in one_each(facts)]


CHECKS = (
    Check(
        "TYP-2",
        ("sparse_ffn", "bundle_layout", "gather_rows", "run_window"),
        bad_ids_anywhere,
        must_refuse,
        bad_id_examples,
    ),
    Check("IOP-1", EVERY, lambda facts: [None], judge_declaration, runs=False),
    Check("IOP-2", EVERY, any_valid, judge_answered, one_each),
    Check("IOP-3", EVERY, any_valid, judge_answered, one_each),
    Check("IOP-4", EVERY, pairs, judge_in_turn, one_after_another),
    Check("IOP-5", EVERY, pairs, judge_repeated, one_twice),
    Check("IOP-6", EVERY, any_valid, judge_answered, one_each),
    Check("IOP-7", EVERY, refused_between, judge_refusal, refusal_examples),
)
