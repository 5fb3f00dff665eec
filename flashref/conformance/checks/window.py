"""Checks of chapter 30: whole histories against plain sets, in batches of sequences and several layers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from flashref.conformance.adapter import Facts
from flashref.conformance.checks.check import Call, Check, ask, expect_bits, expect_ids, ints
from flashref.conformance.strategies import SIZES, active_sets
from flashref.conformance.transport.subject import Breach, Subject
from flashref.definitions import WindowStep, window_model

NEURONS = sorted({n for n, _ in SIZES})


class WindowAnswer(NamedTuple):
    """The answer of run_window for one token in one layer, and what the definition says.

    Attributes:
        number: of the token.
        where: sequence, token and layer, in words.
        predicted, capacity: what was asked.
        before: the neurons that are resident by the answers so far.
        due: what the definition says.
        load, evict, bypass: the answer.
    """

    number: int
    where: str
    predicted: set[int]
    capacity: int
    before: set[int]
    due: WindowStep
    load: Any
    evict: Any
    bypass: Any

    @property
    def after(self) -> set[int]:
        """The resident set that the answer leads to."""
        return (self.before - set(self.evict.tolist())) | set(self.load.tolist())


def tokens_of(call: Call, answer: Any) -> Iterator[WindowAnswer]:
    """Every token of every sequence and layer of an answer of run_window."""
    _, k, capacities, actives = call.arguments
    for s, sequence in enumerate(actives):
        for layer, capacity in enumerate(capacities):
            predicted = [set(token[layer].tolist()) for token in sequence]
            before: set[int] = set()
            for t, due in enumerate(window_model(k, capacity, predicted)):
                where = f"sequence {s}, token {t}, layer {layer}"
                token = WindowAnswer(t, where, predicted[t], capacity, before, due, *answer[s][t][layer])
                yield token
                before = token.after


def histories(
    kind: Callable[[int], st.SearchStrategy[int]] = lambda n: st.integers(0, n),
    windows: Sequence[int] = (1, 2, 3, 4, 5),
) -> Callable[[Facts], st.SearchStrategy[Call]]:
    """run_window with capacities from `kind(n)`: several sequences, tokens and layers, of any sets."""

    @st.composite
    def cases(draw: st.DrawFn, facts: Facts) -> Call:
        n = draw(st.sampled_from(NEURONS))
        layers, tokens = draw(st.sampled_from([1, 2, 3, 12])), draw(st.integers(1, 8))
        sequences = draw(st.integers(1, 2 if layers < 12 else 1))
        repeats = draw(st.booleans())  # one set for all layers keeps large cases quick to draw

        def token() -> list[Any]:
            if repeats:
                return [draw(active_sets(n))] * layers
            return [draw(active_sets(n)) for _ in range(min(layers, 3))] * 4

        actives = [[token()[:layers] for _ in range(tokens)] for _ in range(sequences)]
        return Call(
            "run_window", (n, draw(st.sampled_from(windows)), [draw(kind(n)) for _ in range(layers)], actives)
        )

    return lambda facts: cases(facts)


def by_hand(n: int, k: int, capacity: int, *tokens: list[int]) -> Call:
    """One sequence in one layer, written out."""
    return Call("run_window", (n, k, [capacity], [[[ints(token)] for token in tokens]]))


EXAMPLES = (
    by_hand(1, 1, 0, [0], [], [0]),  # no room at all
    by_hand(5, 2, 5, [1, 2], [3], [2, 4]),  # neuron 2 leaves with its token and is wanted again
    by_hand(5, 3, 2, [0], [1], [2], [], [0]),  # room returns, token 0 must not
    by_hand(5, 2, 5, [0, 1, 2, 3, 4], [3], [0]),  # everything, then one
    by_hand(5, 3, 2, [3, 4], [0, 3, 4], [0, 1, 2]),  # bypass beside rows that are there
    by_hand(3, 4, 3, [0], [], [], [], [0]),  # nothing wanted, and the window moves on all the same
    by_hand(8, 2, 3, [0, 1, 2], [5, 6, 7], [0, 1, 2]),  # capacity is just one token's set
)


def judged(judge: Callable[[WindowAnswer], None]) -> Callable[[Subject, Call], None]:
    """A judge of answers from a judge of tokens."""

    def judge_answer(subject: Subject, call: Call) -> None:
        for token in tokens_of(call, ask(subject, call)):
            judge(token)

    return judge_answer


def first_token(token: WindowAnswer) -> None:
    """The first token finds nothing: it reads all it wants, and nothing can leave."""
    if token.number > 0:
        return
    read = set(token.load.tolist()) | set(token.bypass.tolist())
    expect_ids(f"load and bypass, {token.where}", ints(sorted(read)), token.predicted)
    expect_ids(f"evict, {token.where}", token.evict, [])


def resident_sets(token: WindowAnswer) -> None:
    """The resident set is the union of what the tokens in the window kept."""
    expect_ids(f"resident, {token.where}", ints(sorted(token.after)), token.due.resident)


def deltas(token: WindowAnswer) -> None:
    """load, evict and bypass are the differences of the definition, ascending."""
    for name in ("load", "evict", "bypass"):
        expect_ids(f"{name}, {token.where}", getattr(token, name), getattr(token.due, name))


def reads(token: WindowAnswer) -> None:
    """What is read is what is predicted and not there."""
    read = sorted(token.load.tolist() + token.bypass.tolist())
    expect_ids(f"load and bypass, {token.where}", ints(read), token.predicted - token.before)


def room(token: WindowAnswer) -> None:
    """The rows suffice, and no neuron comes back without being read."""
    if len(token.after) > token.capacity:
        raise Breach("fail", f"resident, {token.where}: {len(token.after)} neurons in {token.capacity} rows")
    if ghosts := sorted(set(token.load.tolist()) - token.predicted):
        raise Breach("fail", f"load, {token.where}: {ghosts} are loaded, but the token does not want them")
    expect_ids(f"resident, {token.where}", ints(sorted(token.after)), token.due.resident)


def overflow(token: WindowAnswer) -> None:
    """Of a set that does not fit, rows that are there stay first, then the smallest ids."""
    if len(token.predicted) > token.capacity:
        kept = token.predicted - token.due.bypass
        expect_ids(f"bypass, {token.where}", token.bypass, token.due.bypass)
        expect_ids(f"kept, {token.where}", ints(sorted(token.after & token.predicted)), kept)


def judge_extremes(subject: Subject, call: Call) -> None:
    """With room: k = 1 loads what the token before did not want; a window of all tokens evicts nothing."""
    _, k, _, actives = call.arguments
    answer = ask(subject, call)
    for s, sequence in enumerate(actives):
        for t, token in enumerate(sequence):
            for layer, active in enumerate(token):
                load, evict, _ = answer[s][t][layer]
                where = f"sequence {s}, token {t}, layer {layer}"
                before = set(sequence[t - 1][layer].tolist()) if t else set()
                if k == 1:
                    expect_ids(f"load, {where}", load, set(active.tolist()) - before)
                if k >= len(sequence):
                    expect_ids(f"evict, {where}", evict, [])


def judge_purity(subject: Subject, call: Call) -> None:
    """A sequence gets in a batch what it gets alone, and the second time what it got the first."""
    n, k, capacities, actives = call.arguments
    together, again = ask(subject, call), ask(subject, call)
    for s, sequence in enumerate(actives):
        [alone] = ask(subject, call._replace(arguments=(n, k, capacities, [sequence])))
        for t, layers in enumerate(alone):
            for layer, delta in enumerate(layers):
                where = f"sequence {s}, token {t}, layer {layer}"
                for name, ids, other, twice in zip(
                    ("load", "evict", "bypass"), together[s][t][layer], delta, again[s][t][layer], strict=True
                ):
                    expect_bits(f"{name} in a batch, against alone, {where}", ids, other)
                    expect_bits(f"{name} a second time, {where}", twice, ids)


def with_room(n: int) -> st.SearchStrategy[int]:
    """A row for every neuron."""
    return st.just(n)


def too_small(n: int) -> st.SearchStrategy[int]:
    """Hardly any rows."""
    return st.integers(0, n // 2)


OPERATIONS = ("run_window",)
anything, tight = histories(), histories(too_small)


def examples(facts: Facts) -> tuple[Call, ...]:
    """The cases that caught real engines."""
    return EXAMPLES


CHECKS = (
    Check("WIN-1", OPERATIONS, anything, judged(first_token), examples),
    Check("WIN-3", OPERATIONS, anything, judged(resident_sets), examples),
    Check("WIN-4", OPERATIONS, anything, judged(deltas), examples),
    Check("WIN-5", OPERATIONS, anything, judged(reads), examples),
    Check("WIN-6", OPERATIONS, tight, judged(room), examples),
    Check("WIN-7", OPERATIONS, tight, judged(overflow), examples),
    Check("WIN-8", OPERATIONS, histories(with_room, (1, 9)), judge_extremes),
    Check("WIN-9", OPERATIONS, anything, judge_purity, examples),
)
