"""Checks of chapter 96, and of the ids of chapter 00: what every operation must do, whatever it computes."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from flashref.conformance.adapter import OPERATIONS, Facts, checked_facts
from flashref.conformance.check import Call, Check, ask, must_refuse
from flashref.conformance.checks import bundle, decode, ffn, gather, plan, predictor, slots, window
from flashref.conformance.subject import Breach, Subject, unchanged

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


@st.composite
def bad_windows(draw: st.DrawFn, facts: Facts) -> Call:
    """run_window with a token of bad ids, or a size outside the domain."""
    call = draw(window.anything(facts))
    n, k, capacities, actives = call.arguments
    ids, note = draw(ffn.bad_ids(n))
    bad_token = [[*actives[0], [ids] * len(capacities)], *actives[1:]]
    bad = [
        (note, (n, k, capacities, bad_token)),
        ("k = 0", (n, 0, capacities, actives)),
        ("a capacity of -1", (n, k, [-1] * len(capacities), actives)),
    ]
    note, arguments = draw(st.sampled_from(bad))
    return Call("run_window", arguments, note)


def any_valid(facts: Facts) -> st.SearchStrategy[Call]:
    """A valid call of any operation."""
    return st.sampled_from(list(valid_calls(facts))).flatmap(lambda name: valid_calls(facts)[name])


def bad_ids_anywhere(facts: Facts) -> st.SearchStrategy[Call]:
    """A call of any operation that takes ids, with ids that must be refused."""
    takers = {
        "sparse_ffn": bad_sparse_ids(facts),
        "bundle_layout": bundle.bad_extent_ids(facts),
        "gather_rows": gather.bad_gatherings(facts),
        "run_window": bad_windows(facts),
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
    checked_facts(subject.facts)


def judge_answered(subject: Subject, call: Call) -> None:
    """The call is answered; what is wrong with the answer as such is a breach of its own."""
    ask(subject, call)


def judge_repeated(subject: Subject, calls: Sequence[Call]) -> None:
    """The first call, asked again after the others, gives the same bits."""
    first = ask(subject, calls[0])
    at_once = ask(subject, calls[0])
    for call in calls[1:]:
        ask(subject, call)
    for when, again in (("at once", at_once), ("after other calls", ask(subject, calls[0]))):
        if not unchanged(first, again):
            raise Breach(
                "not deterministic", f"{calls[0].operation} gave something else when asked again {when}"
            )


def judge_refusal(subject: Subject, calls: Sequence[Call]) -> None:
    """A refusal leaves nothing behind."""
    valid, bad = calls
    before = ask(subject, valid)
    must_refuse(subject, bad)
    if not unchanged(before, ask(subject, valid)):
        raise Breach(
            "fail", f"{valid.operation} gave something else after it had refused a call ({bad.note})"
        )


CHECKS = (
    Check(
        "TYP-2", ("sparse_ffn", "bundle_layout", "gather_rows", "run_window"), bad_ids_anywhere, must_refuse
    ),
    Check("IOP-1", EVERY, lambda facts: [None], judge_declaration),
    Check("IOP-2", EVERY, any_valid, judge_answered),
    Check("IOP-3", EVERY, any_valid, judge_answered),
    Check("IOP-4", EVERY, any_valid, judge_answered),
    Check("IOP-5", EVERY, pairs, judge_repeated),
    Check("IOP-6", EVERY, any_valid, judge_answered),
    Check("IOP-7", EVERY, refused_between, judge_refusal),
)
