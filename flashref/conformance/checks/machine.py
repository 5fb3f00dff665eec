"""The state machine of chapter 80: tokens that are chosen by what earlier ones left in DRAM. DEC-7."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from flashref.conformance.adapter import Facts
from flashref.conformance.checks.check import Call, Check
from flashref.conformance.checks.decode import (
    CAPACITIES,
    LAYERS,
    OPERATIONS,
    XS,
    K,
    decodings,
    judge_counters,
    judge_values,
    predicted_ids,
)
from flashref.conformance.transport.subject import Subject
from flashref.definitions import window_model
from flashref.types import Array


def decode_machine(facts: Facts, attempt: Callable[[Call], None]) -> type[RuleBasedStateMachine]:
    """A machine that writes a text of tokens for run_decode; at its end `attempt` judges the text."""

    class DecodeMachine(RuleBasedStateMachine):
        """Rules are tokens; the window model of the first layer says which token is interesting next."""

        @initialize(call=decodings()(facts), more=st.lists(st.integers(-1, 1), min_size=60, max_size=60))
        def begin(self, call: Call, more: list[int]) -> None:
            """Layers, a window, and vectors to choose from: those drawn, and some of −1, 0 and 1."""
            self.call = call
            width = call.arguments[XS].shape[2]
            others = np.array(more[: 6 * width], np.float32).reshape(-1, width)
            self.vectors = list(np.unique(np.concatenate([*call.arguments[XS], others]), axis=0))
            self.text: list[Array] = []

        def wants(self, x: Array) -> set[int]:
            """What the first layer predicts for x."""
            return set(predicted_ids(x, self.call.arguments[LAYERS][0][1]))

        def history(self) -> list[Any]:
            """The first layer's window so far."""
            k, capacity = self.call.arguments[K], self.call.arguments[CAPACITIES][0]
            return list(window_model(k, capacity, [self.wants(x) for x in self.text]))

        def most(self, ids: set[int]) -> Array:
            """The vector that wants the most of these neurons."""
            return max(self.vectors, key=lambda x: len(self.wants(x) & ids))

        @precondition(lambda self: len(self.text) < 8)
        @rule(index=st.integers(0, 11))
        def any_token(self, index: int) -> None:
            """One of the vectors."""
            self.text.append(self.vectors[index % len(self.vectors)])

        @precondition(lambda self: 0 < len(self.text) < 8)
        @rule()
        def the_same_token(self) -> None:
            """The last token again: with room, nothing is read."""
            self.text.append(self.text[-1])

        @precondition(lambda self: 0 < len(self.text) < 8)
        @rule()
        def what_was_just_evicted(self) -> None:
            """A token that wants back what has just left."""
            self.text.append(self.most(self.history()[-1].evict))

        @precondition(lambda self: 0 < len(self.text) < 8)
        @rule()
        def what_passed_by(self) -> None:
            """A token that wants again what was read and not kept."""
            self.text.append(self.most(self.history()[-1].bypass))

        @precondition(lambda self: 0 < len(self.text) < 8)
        @rule()
        def what_will_leave(self) -> None:
            """A token that wants what only the oldest token in the window keeps."""
            window = [self.wants(x) for x in self.text[-self.call.arguments[K] :]]
            self.text.append(self.most(window[0] - set[int]().union(*window[1:])))

        @precondition(lambda self: len(self.text) < 8)
        @rule()
        def as_much_as_possible(self) -> None:
            """The token that wants most: more than the rows, if any does."""
            self.text.append(max(self.vectors, key=lambda x: len(self.wants(x))))

        @precondition(lambda self: len(self.text) < 8)
        @rule()
        def as_little_as_possible(self) -> None:
            """The token that wants least: nothing, if any does."""
            self.text.append(min(self.vectors, key=lambda x: len(self.wants(x))))

        def teardown(self) -> None:
            """The text is run and judged."""
            if getattr(self, "text", None):
                arguments = list(self.call.arguments)
                arguments[XS] = np.stack(self.text)[None]
                attempt(self.call._replace(arguments=arguments))

    return DecodeMachine


def judge_run(subject: Subject, call: Call) -> None:
    """Counters and values of the whole text."""
    judge_counters(subject, call)
    judge_values(subject, call)


CHECKS = (Check("DEC-7", OPERATIONS, decodings(), judge_run, machine=decode_machine),)
