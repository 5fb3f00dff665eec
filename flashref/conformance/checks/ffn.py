"""Checks of chapter 10: networks against exact rational arithmetic, and within the derived bound."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flashref.arithmetic import SLOPES
from flashref.bounds import TINY, ffn_bound, unit_roundoff
from flashref.conformance.adapter import FFN_PARAMETERS, Facts
from flashref.conformance.checks.check import (
    Call,
    Check,
    ask,
    dtypes_of,
    expect_bits,
    expect_close,
    expect_equal,
    ints,
    must_refuse,
    sizes_of,
)
from flashref.conformance.definitions import exact_active, exact_ffn
from flashref.conformance.strategies import (
    DYADIC_SIZES,
    LARGE,
    active_sets,
    dyadic_cases,
    ffns,
    plain_cases,
    seeded_dyadic,
    stored,
)
from flashref.conformance.transport.subject import Subject
from flashref.ffn import take_neurons
from flashref.types import FFN, Array, widen

Network = tuple[Array, FFN]
BOTH = ("dense_ffn", "sparse_ffn")


def dyadic_networks(facts: Facts) -> st.SearchStrategy[Network]:
    """(x, ffn) on which float32 is exact in every order: drawn and seeded ones."""
    most = facts.max_elements
    drawn = dyadic_cases(dtypes_of(facts)).filter(lambda case: most is None or case[1].up.size <= most)
    return drawn | seeded_dyadic_networks(facts)


@st.composite
def seeded_dyadic_networks(draw: st.DrawFn, facts: Facts) -> Network:
    """(x, ffn) of dyadic values from a seed, none of them special."""
    sizes = sizes_of(facts)
    activation, gated = draw(st.sampled_from(sorted(DYADIC_SIZES)))
    n, d, bits = draw(st.sampled_from([s for s in DYADIC_SIZES[activation, gated] if s[:2] in sizes]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def arrays(shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
        return st.builds(lambda: seeded_dyadic(random, shape, bits))

    dtype = draw(st.sampled_from(dtypes_of(facts)))
    return seeded_dyadic(random, (d,), bits), draw(ffns(arrays, n, d, dtype, activation, gated))


def plain_networks(facts: Facts) -> st.SearchStrategy[Network]:
    """(x, ffn) anywhere in the domain: drawn small ones, and large ones where every value differs."""
    small = plain_cases(dtypes_of(facts), sizes_of(facts), not facts.flushes_subnormals)
    return st.one_of(small, small, seeded_networks(facts))


@st.composite
def seeded_networks(draw: st.DrawFn, facts: Facts) -> Network:
    """(x, ffn) of the largest size at which the bound has teeth, filled from a seed as a model is."""
    n, d = sizes_of(facts, [LARGE])[0]
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def arrays(shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
        return st.builds(lambda: random.standard_normal(shape).astype(np.float32))

    x = random.standard_normal(d).astype(np.float32)
    return x, draw(ffns(arrays, n, d, draw(st.sampled_from(dtypes_of(facts)))))


def smooth_tails(operation: str) -> Callable[[Facts], list[Call]]:
    """One neuron, and an activation that is small beside its argument: where 1 + erf and 1 + tanh cancel."""

    def calls(facts: Facts) -> list[Call]:
        dtype = dtypes_of(facts)[0]
        one, ids = np.ones(1, np.float32), [ints([0])] if operation == "sparse_ffn" else []
        weights = [stored(np.array([[z]], np.float32), dtype) for z in (1.0, -0.75, -2.5, -4.0, -5.5)]
        return [
            Call(operation, (one, *FFN(name, up, weights[0]), *ids), f"the tail of {name}")
            for name in SLOPES
            for up in weights
        ]

    return calls


def ties(operation: str) -> Callable[[Facts], list[Call]]:
    """A pre-activation that is just τ, which is not enough."""

    def calls(facts: Facts) -> list[Call]:
        half = stored(np.array([[0.5]], np.float32), dtypes_of(facts)[0])
        ids = [ints([0])] if operation == "sparse_ffn" else []
        return [
            Call(
                operation,
                (np.array([x], np.float32), *FFN("fatrelu", half, half, tau=0.5), *ids),
                "a tie with tau",
            )
            for x in (1.0, 0.5)
        ]

    return calls


def dense(networks: Callable[[Facts], st.SearchStrategy[Network]]) -> Callable[[Facts], Any]:
    """Calls of dense_ffn on these networks."""

    def cases(facts: Facts) -> st.SearchStrategy[Call]:
        return networks(facts).map(lambda case: Call("dense_ffn", (case[0], *case[1])))

    return cases


def sparse(networks: Callable[[Facts], st.SearchStrategy[Network]]) -> Callable[[Facts], Any]:
    """Calls of sparse_ffn on these networks, over any set of ids."""

    @st.composite
    def cases(draw: st.DrawFn, facts: Facts) -> Call:
        x, ffn = draw(networks(facts))
        return Call("sparse_ffn", (x, *ffn, draw(active_sets(len(ffn.up)))))

    return cases


@st.composite
def sparse_over_active(draw: st.DrawFn, facts: Facts) -> Call:
    """sparse_ffn over every active neuron, and some of the others."""
    x, ffn = draw(dyadic_networks(facts))
    more = set(draw(active_sets(len(ffn.up))).tolist())
    active = exact_active(x, ffn)
    return Call("sparse_ffn", (x, *ffn, ints(sorted(active | more))))


def network_of(call: Call) -> tuple[Array, FFN, list[int] | None]:
    """x, the FFN, and the ids that are summed (None: all) of a call of dense_ffn or sparse_ffn."""
    x, rest = call.arguments[0], call.arguments[1:]
    ids = rest[-1].tolist() if call.operation == "sparse_ffn" else None
    return x, FFN(*rest[: len(FFN_PARAMETERS)]), ids


def judge_exact(subject: Subject, call: Call) -> None:
    """The values of exact arithmetic, without a tolerance."""
    x, ffn, ids = network_of(call)
    exact = exact_ffn(x, ffn, ids)
    expect_close("y", ask(subject, call), exact, [0.0] * len(exact))


def judge_dense_value(subject: Subject, call: Call) -> None:
    """The value of all neurons, although only some are summed."""
    x, ffn, _ = network_of(call)
    exact = exact_ffn(x, ffn)
    expect_close("y over every active neuron", ask(subject, call), exact, [0.0] * len(exact))


def judge_bounded(subject: Subject, call: Call) -> None:
    """The exact value, within the derived bound of the neurons that are summed."""
    x, ffn, ids = network_of(call)
    exact = exact_ffn(x, ffn, ids)
    chosen = ffn if ids is None else take_neurons(ffn, ids)
    expect_close("y", ask(subject, call), exact, bounds(subject.facts, x, chosen, exact))


def bounds(facts: Facts, x: Array, ffn: FFN, exact: Sequence[Fraction]) -> Iterator[float]:
    """The bound of each output in the arithmetic that the implementation declares (ACC-6)."""
    within = ffn_bound(x, ffn, unit_roundoff(facts.accumulate)).tolist()
    if facts.accumulate == "F32":
        return iter(within)
    u = unit_roundoff("F32")  # wider inside, and rounded once to the float32 result
    return (bound + u * (abs(float(y)) + bound) + TINY for bound, y in zip(within, exact, strict=True))


def empty_or_bad_ids(facts: Facts) -> st.SearchStrategy[Call]:
    """sparse_ffn of no neuron at all, or of ids that no layer has."""

    def call(case: Network, ids: Array | None, note: str) -> Call:
        return Call("sparse_ffn", (case[0], *case[1], ints([]) if ids is None else ids), note)

    @st.composite
    def bad(draw: st.DrawFn) -> Call:
        case = draw(dyadic_networks(facts))
        ids, note = draw(bad_ids(len(case[1].up)))
        return call(case, ids, note)

    return bad() | plain_networks(facts).map(lambda case: call(case, None, ""))


def judge_empty_or_bad_ids(subject: Subject, call: Call) -> None:
    """Bad ids are refused; the empty set is +0 plus the down bias."""
    if call.note:
        return must_refuse(subject, call)
    x, ffn, _ = network_of(call)
    due = np.zeros_like(x) if ffn.down_bias is None else widen(ffn.down_bias) + np.float32(0)
    return expect_equal("y of no neuron", ask(subject, call).tolist(), due.tolist())


def every_bad_ids(n: int) -> list[tuple[Array, str]]:
    """One list of ids of each kind that a layer of n neurons must refuse."""
    every = list(range(n))
    return [
        (ints([-1, *every]), "an id below 0"),
        (ints([*every, n]), "an id above n - 1"),
        (ints([*every, 2**32]), "an id of 2^32, which is 0 in 32 bits"),
        (ints([0, *every]), "an id twice"),
        (np.array(every, np.float64), "ids that are floats"),
        *([(ints(every[::-1]), "ids that descend")] if n > 1 else []),
    ]


def bad_sparse_examples(facts: Facts) -> list[Call]:
    """sparse_ffn of each kind of ids that must be refused."""
    n, d = sizes_of(facts, [(3, 1)])[0]
    up = stored(np.ones((n, d), np.float32), dtypes_of(facts)[0])
    return [
        Call("sparse_ffn", (np.ones(d, np.float32), *FFN("relu", up, up), ids), note)
        for ids, note in every_bad_ids(n)
    ]


@st.composite
def bad_ids(draw: st.DrawFn, n: int) -> tuple[Array, str]:
    """Ids that must be refused, and why: out of range, descending, or twice."""
    ids = draw(active_sets(n))
    kinds = ["below 0", "n", "beyond int32"]
    kinds += ["twice"] if len(ids) else []
    kinds += ["descending"] if len(ids) > 1 else []
    kind = draw(st.sampled_from(kinds))
    if kind == "below 0":
        return np.concatenate([ints([-draw(st.integers(1, n))]), ids]), "an id below 0"
    if kind == "n":
        return np.concatenate([ids, ints([n + draw(st.integers(0, 3))])]), "an id above n - 1"
    if kind == "beyond int32":
        return np.concatenate([ids, ints([2**32])]), "an id of 2^32, which is 0 in 32 bits"
    if kind == "twice":
        return np.sort(np.concatenate([ids, ids[:1]])), "an id twice"
    return ids[::-1].copy(), "ids that descend"


def bad_kinds(n: int, d: int, dtype: str) -> dict[str, Network]:
    """Each thing that may not fit → (x, ffn) with it."""
    x, up = np.ones(d, np.float32), stored(np.ones((n, d), np.float32), dtype)
    other = stored(np.ones((n, d), np.float32), "F16" if dtype == "F32" else "F32")
    good = FFN("relu", up, up.copy())
    longer, wider = np.concatenate([up, up[:1]]), np.concatenate([up, up[:, :1]], axis=1)
    return {
        "an activation that does not exist": (x, good._replace(activation="relu6")),
        "a negative tau": (x, good._replace(activation="fatrelu", tau=-0.5)),
        "a tau that is no number": (x, good._replace(activation="fatrelu", tau=float("nan"))),
        "an infinite tau": (x, good._replace(activation="fatrelu", tau=float("inf"))),
        "a down projection with a neuron more": (x, good._replace(down=longer)),
        "a down projection with a column more": (x, good._replace(down=wider)),
        "a down projection of another dtype": (x, good._replace(down=other)),
        "a gate with a neuron more": (x, good._replace(gate=longer)),
        "an up bias with an element more": (x, good._replace(up_bias=longer[:, 0].copy())),
        "a gate bias without a gate": (x, good._replace(gate_bias=up[:, 0].copy())),
        "a down bias with an element more": (x, good._replace(down_bias=wider[0].copy())),
        "an x with an element more": (np.ones(d + 1, np.float32), good),
        "an x in float64": (np.ones(d), good),
    }


@st.composite
def bad_networks(draw: st.DrawFn, facts: Facts) -> Call:
    """dense_ffn or sparse_ffn with one thing that does not fit."""
    n, d = draw(st.sampled_from(sizes_of(facts)))
    bad = bad_kinds(n, d, draw(st.sampled_from(dtypes_of(facts))))
    note = draw(st.sampled_from(list(bad)))
    x, ffn = bad[note]
    operation = draw(st.sampled_from([name for name in BOTH if name in facts.operations]))
    return Call(operation, (x, *ffn) if operation == "dense_ffn" else (x, *ffn, draw(active_sets(n))), note)


def bad_network_examples(facts: Facts) -> list[Call]:
    """Each of them, for each operation."""
    n, d = sizes_of(facts, [(3, 1)])[0]
    return [
        Call(operation, (x, *ffn, *([ints([])] if operation == "sparse_ffn" else [])), note)
        for operation in BOTH
        if operation in facts.operations
        for note, (x, ffn) in bad_kinds(n, d, dtypes_of(facts)[0]).items()
    ]


def every_pattern(facts: Facts) -> list[Call]:
    """Every finite bit pattern of each 16-bit dtype, and of F32 the edges, as weights of down."""
    width = min(2048, facts.max_elements or 2048)
    calls = []
    for dtype in dtypes_of(facts):
        if dtype == "F32":
            edges = [0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x3F800001, 0x7F7FFFFF]
            bits = np.array(edges + [edge | 1 << 31 for edge in edges], np.uint32)
            weights: Array = bits.view(np.float32)
        else:
            patterns = np.arange(2**16, dtype=np.uint16)
            weights = patterns if dtype == "BF16" else patterns.view(np.float16)
        wide = widen(weights)
        weights = weights[np.isfinite(wide)]
        if facts.flushes_subnormals:
            weights = weights[~((widen(weights) != 0) & (np.abs(widen(weights)) < TINY))]
        for first in range(0, len(weights), width):
            down = np.zeros((1, width), weights.dtype)
            down[0, : len(weights[first : first + width])] = weights[first : first + width]
            up = np.zeros((1, width), weights.dtype)
            up[0, 0] = stored(np.ones(1, np.float32), dtype)[0]
            x = np.zeros(width, np.float32)
            x[0] = 1
            calls.append(Call("dense_ffn", (x, *FFN("relu", up, down)), f"{dtype} from pattern {first}"))
    return calls


def judge_patterns(subject: Subject, call: Call) -> None:
    """1 · w is w for every weight w, bit for bit but for the sign of a zero."""
    _, ffn, _ = network_of(call)
    positive_zeros = np.float32(0) + widen(ffn.down[0])
    expect_bits("1 · w", ask(subject, call) + np.float32(0), positive_zeros)


CHECKS = (
    Check("TYP-5", ("dense_ffn",), every_pattern, judge_patterns),
    Check("FFN-1", ("dense_ffn",), dense(dyadic_networks), judge_exact, ties("dense_ffn")),
    Check("FFN-2", ("dense_ffn",), dense(plain_networks), judge_bounded, smooth_tails("dense_ffn")),
    Check("FFN-4", ("sparse_ffn",), sparse(dyadic_networks), judge_exact, ties("sparse_ffn")),
    Check("FFN-5", ("sparse_ffn",), sparse(plain_networks), judge_bounded, smooth_tails("sparse_ffn")),
    Check("FFN-6", ("sparse_ffn",), sparse_over_active, judge_dense_value),
    Check("FFN-8", ("sparse_ffn",), empty_or_bad_ids, judge_empty_or_bad_ids, bad_sparse_examples),
    Check("FFN-9", BOTH, bad_networks, must_refuse, bad_network_examples),
)
