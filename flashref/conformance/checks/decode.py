"""Checks of chapter 80: whole runs over several layers and sequences, values and counters."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from flashref.conformance.adapter import PLACEMENTS, SEMANTICS, Facts, Unsupported
from flashref.conformance.checks.check import (
    Call,
    Check,
    ask,
    dtypes_of,
    expect_bits,
    expect_close,
    expect_equal,
    singles,
    sizes_of,
)
from flashref.conformance.checks.ffn import bounds
from flashref.conformance.definitions import exact_ffn, exact_logits
from flashref.conformance.strategies import (
    DYADIC_SIZES,
    dyadic_arrays,
    ffns,
    plain_arrays,
    predictors,
    seeded_dyadic,
    stored,
)
from flashref.conformance.transport.subject import Breach, Subject
from flashref.conformance.vectors.compare import most_moves
from flashref.definitions import DecodeStep, decode_model
from flashref.ffn import take_neurons
from flashref.types import FFN, STORED_DTYPES, Array, Predictor, stored_dtype

OPERATIONS = ("run_decode",)
THRESHOLDS = (-0.5, 0.0, 0.25, 1.0, 100.0, -100.0)  # the last two predict nothing, and everything
LAYERS, XS, K, CAPACITIES, SEMANTIC, PLACEMENT, BLOCK, MAX_GAP, BYPASS_ROWS = range(9)  # of run_decode


def dyadic_contents(bits: int, seed: int | None) -> Callable[[tuple[int, ...]], st.SearchStrategy[Array]]:
    """Entries j · 2^−bits: drawn, which makes many of them equal, or from a seed."""
    if seed is None:
        return lambda shape: dyadic_arrays(shape, bits)
    random = np.random.default_rng(seed)
    return lambda shape: st.builds(lambda: seeded_dyadic(random, shape, bits))


@st.composite
def layers_of(draw: st.DrawFn, facts: Facts, dyadic: bool, seed: int | None) -> tuple[list[list[Any]], int]:
    """Layers of one shape and activation, as a model has, and the bits of a dyadic x; 12 of them if small."""
    sizes = sizes_of(facts)
    dtype = draw(st.sampled_from(dtypes_of(facts)))
    activation, gated = draw(st.sampled_from(sorted(DYADIC_SIZES)))
    n, d, bits = draw(st.sampled_from([s for s in DYADIC_SIZES[activation, gated] if s[:2] in sizes]))
    count = draw(st.sampled_from([1, 2, 3, 12] if n * d <= 6 else [1, 2]))

    contents, quarters = dyadic_contents(bits, seed), dyadic_contents(2, seed)

    def arrays(shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
        if dyadic:
            return contents(shape)
        return plain_arrays(shape, dtype, 8.0, not facts.flushes_subnormals)

    layers = []
    for _ in range(count):
        ffn = draw(ffns(arrays, n, d, dtype, activation if dyadic else None, gated))
        predictor = draw(predictors(quarters, n, d, dtype))
        layers.append(
            [ffn, predictor._replace(threshold=draw(st.sampled_from(THRESHOLDS[: 3 if seed else None])))]
        )
    return layers, bits


def decodings(
    dyadic: bool = True, tight: bool = False, semantics: tuple[str, ...] = SEMANTICS
) -> Callable[[Facts], st.SearchStrategy[Call]]:
    """run_decode over a few tokens, each one of a handful of vectors, so that windows have something to keep.

    tight: matrices of hardly any rows, and a small bypass buffer.
    """

    @st.composite
    def cases(draw: st.DrawFn, facts: Facts) -> Call:
        seed = draw(st.none() | st.integers(1, 2**32 - 1))
        layers, bits = draw(layers_of(facts, dyadic, seed))
        n, d = layers[0][0].up.shape
        vectors = [draw(dyadic_contents(bits, seed and seed + i)((d,))) for i in range(5 if seed else 3)]
        sequences, tokens = draw(st.integers(1, 2)), draw(st.integers(1, 8 if seed else 5))
        chosen = st.lists(st.sampled_from(range(len(vectors))), min_size=tokens, max_size=tokens)
        xs = np.stack([np.stack([vectors[i] for i in draw(chosen)]) for _ in range(sequences)])
        rows = st.integers(0, n // 2 if tight else n)
        block = 2 ** draw(st.integers(2, 8))
        return Call(
            "run_decode",
            (
                layers,
                xs,
                draw(st.integers(1, 4)),
                [draw(rows) for _ in layers],
                draw(st.sampled_from(semantics)),
                draw(st.sampled_from(PLACEMENTS)),
                block,
                draw(st.sampled_from([0, 0, block, 4 * block])),
                draw(st.integers(1, 2)) if tight else draw(st.integers(1, n)),
            ),
        )

    return lambda facts: cases(facts)


class DecodeAnswer(NamedTuple):
    """The answer of run_decode for one token in one layer, and what the definition says.

    Attributes:
        where: sequence, token and layer, in words.
        number: of the token.
        x, ffn, predicted: what the layer gets, and the ids that its predictor chooses.
        due: what the definition says.
        y, counters: the answer.
    """

    where: str
    number: int
    x: Array
    ffn: FFN
    predicted: list[int]
    due: DecodeStep
    y: Array
    counters: dict[str, int]


def tokens_of(call: Call, answer: Any) -> Iterator[DecodeAnswer]:
    """Every token of every sequence and layer of an answer of run_decode."""
    layers, xs, k, capacities, _, placement, block, max_gap, bypass_rows = call.arguments
    ys, counters = answer
    for s, sequence in enumerate(xs):
        for number, (ffn, predictor) in enumerate(layers):
            n, d = ffn.up.shape
            predicted = [predicted_ids(x, predictor) for x in sequence]
            size = (2 if ffn.gate is None else 3) * d * STORED_DTYPES[stored_dtype(ffn.up)].itemsize
            history = decode_model(
                size, predicted, k, capacities[number], placement, block, max_gap, bypass_rows
            )
            for t, due in enumerate(history):
                where = f"sequence {s}, token {t}, layer {number}"
                mine = {name: int(counts[s, t, number]) for name, counts in counters.items()}
                yield DecodeAnswer(where, t, sequence[t], ffn, predicted[t], due, ys[s, t, number], mine)


def predicted_ids(x: Array, predictor: Predictor) -> list[int]:
    """P_t, exactly."""
    return [i for i, z in enumerate(exact_logits(x, predictor)) if z > predictor.threshold]


def chosen_ids(token: DecodeAnswer, semantics: str) -> list[int]:
    """The neurons that the semantics sum."""
    return token.predicted if semantics == "predicted" else sorted(token.due.in_dram)


def judge_values(subject: Subject, call: Call) -> None:
    """y is the exact sum over the chosen neurons."""
    for token in tokens_of(call, ask(subject, call)):
        chosen = chosen_ids(token, call.arguments[SEMANTIC])
        exact = exact_ffn(token.x, token.ffn, chosen)
        expect_close(f"y, {token.where}, over the neurons {chosen}", token.y, exact, [0.0] * len(exact))


def judge_bounded(subject: Subject, call: Call) -> None:
    """y is within the bound of the chosen neurons."""
    for token in tokens_of(call, ask(subject, call)):
        chosen = chosen_ids(token, call.arguments[SEMANTIC])
        exact = exact_ffn(token.x, token.ffn, chosen)
        within = bounds(subject.facts, token.x, take_neurons(token.ffn, chosen), exact)
        expect_close(f"y, {token.where}, over the neurons {chosen}", token.y, exact, within)


def judge_semantics(subject: Subject, call: Call) -> None:
    """The same run in both semantics: each sums its own neurons."""
    for semantics in SEMANTICS:
        arguments = list(call.arguments)
        arguments[SEMANTIC] = semantics
        judge_values(subject, call._replace(arguments=arguments))


def judge_first(subject: Subject, call: Call) -> None:
    """The first token of every sequence finds nothing."""
    for token in tokens_of(call, ask(subject, call)):
        if token.number == 0:
            loaded, bypassed = (counter(token, name) for name in ("loaded", "bypassed"))
            expect_equal(f"rows loaded and bypassed, {token.where}", loaded + bypassed, len(token.predicted))
            expect_equal(f"rows evicted, {token.where}", counter(token, "evicted"), 0)


def counter(token: DecodeAnswer, name: str) -> int:
    """A counter of the answer; without it there is nothing to compare."""
    if name not in token.counters:
        raise Unsupported(f"the adapter gives no counter {name}")
    return token.counters[name]


def judge_counters(subject: Subject, call: Call) -> None:
    """Every counter is the definition's; rows moved depend on the order of slots, and have a most."""
    placement = call.arguments[PLACEMENT]
    for token in tokens_of(call, ask(subject, call)):
        if not token.counters:
            raise Unsupported("the adapter gives no counters")
        for name, got in token.counters.items():
            due = token.due.counters
            if name != "moved_rows":
                expect_equal(f"{name}, {token.where}", got, due[name])
                continue
            most = most_moves(placement, due["evicted"], due["loaded"])
            if not 0 <= got <= most:
                what = f"moved_rows, {token.where}"
                raise Breach("fail", f"{what}: {placement} moved {got} rows, and may move {most}")


def judge_batches(subject: Subject, call: Call) -> None:
    """What is read, in which batches: requests and bytes as read."""
    for token in tokens_of(call, ask(subject, call)):
        for name in ("requests", "read_bytes"):
            expect_equal(f"{name}, {token.where}", counter(token, name), token.due.counters[name])


def judge_independence(subject: Subject, call: Call) -> None:
    """Each sequence and each layer gets what it gets alone."""
    ys, counters = ask(subject, call)
    arguments = list(call.arguments)
    for s in range(len(call.arguments[XS])):
        arguments[XS] = call.arguments[XS][s : s + 1]
        alone, counted = ask(subject, call._replace(arguments=tuple(arguments)))
        expect_bits(f"sequence {s}: y + 0 in a batch, against alone", ys[s : s + 1] + 0, alone + 0)
        for name in counters:
            expect_bits(
                f"sequence {s}: {name} in a batch, against alone", counters[name][s : s + 1], counted[name]
            )
    arguments[XS] = call.arguments[XS]
    for number, layer in enumerate(call.arguments[LAYERS]):
        arguments[LAYERS], arguments[CAPACITIES] = [layer], [call.arguments[CAPACITIES][number]]
        alone, _ = ask(subject, call._replace(arguments=tuple(arguments)))
        mine = ys[:, :, number : number + 1]
        expect_bits(f"layer {number}: y + 0 among others, against alone", mine + 0, alone + 0)


def missed_but_resident(facts: Facts) -> list[Call]:
    """Neuron 1 is predicted for token 0 only, is still there for token 1, and fires: the semantics differ."""
    ffn = FFN("relu", singles([[1, 1], [1, 1]]), singles([[1, 0], [0, 1]]))
    predictor = Predictor(singles([[1, 0], [0, 1]]), singles([[1, 1], [1, 0]]), None, 0.0)
    xs = singles([[[1, 0], [0, 1]]])
    blocks = 64, 0, 2
    if "F32" not in facts.dtypes:
        return []
    return [
        Call("run_decode", ([[ffn, predictor]], xs, 2, [2], s, p, *blocks))
        for s in SEMANTICS
        for p in PLACEMENTS
    ]


def rows_that_move(facts: Facts) -> list[Call]:
    """Neuron i is predicted where x_i is 1: rows leave from everywhere, others move, and some pass by."""
    if facts.max_elements is not None and facts.max_elements < 16:
        return []
    dtype = dtypes_of(facts)[0]
    one, down = (
        stored(np.asarray(m, np.float32), dtype) for m in (np.eye(4), 1 + np.arange(16).reshape(4, 4))
    )
    layer = [FFN("relu", one, down, down_bias=down[0]), Predictor(one, one, None, 0.5)]
    wanted = "1110", "0100", "0111", "1001", "0110", "0000", "1111", "0001", "1010"
    xs = np.array([[[int(bit) for bit in token] for token in wanted]], np.float32)
    return [
        Call("run_decode", ([layer], xs, k, [capacity], "resident", placement, 64, 0, 1))
        for k, capacity in ((1, 4), (2, 2))
        for placement in PLACEMENTS
    ]


def by_hand(facts: Facts) -> list[Call]:
    """The cases that caught real engines."""
    return missed_but_resident(facts) + rows_that_move(facts)


CHECKS = (
    Check("DEC-1", OPERATIONS, decodings(), judge_first, missed_but_resident),
    Check("DEC-2", OPERATIONS, decodings(), judge_values, by_hand),
    Check("DEC-3", OPERATIONS, decodings(), judge_semantics, by_hand),
    Check("DEC-6", OPERATIONS, decodings(dyadic=False), judge_bounded),
    Check("DEC-9", OPERATIONS, decodings(), judge_independence),
    Check("DEC-10", OPERATIONS, decodings(tight=True), judge_batches),
)
