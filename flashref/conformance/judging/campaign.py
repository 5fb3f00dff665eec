"""Judging an implementation in another process, whatever it does: restarts, and patience that ends."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from hypothesis import settings

from flashref.conformance.adapter import AdapterError, Facts, Unsupported
from flashref.conformance.checks.check import Check
from flashref.conformance.judging.deviations import Deviations
from flashref.conformance.judging.runner import (
    DEVIATES,
    FAIL,
    GOOD,
    KIT_ERROR,
    NOT_DETERMINISTIC,
    NOT_RUN,
    OVERWRITES,
    PASS,
    UNSUPPORTED,
    Verdict,
    examine,
    judge_again,
    vector_verdict,
)
from flashref.conformance.requirements import requirements
from flashref.conformance.transport.codec import case_from_text
from flashref.conformance.transport.subject import Died, Subject
from flashref.conformance.vectors.files import Vector
from flashref.storage.progress import Progress

PATIENCE = 3  # hangs of a run that are waited for
FINAL = (*GOOD, NOT_RUN, KIT_ERROR, NOT_DETERMINISTIC, OVERWRITES)  # what a fresh process could not change


class Restartable(Subject, Protocol):
    """A subject in a process of its own, as `stdio.Command` is."""

    def restart(self) -> None:
        """Another process in place of this one, with nothing of its state."""

    def last_words(self, lines: Sequence[bytes]) -> tuple[bytes, int | None]:
        """What a process answers to the last of these lines, and its exit status."""


class Watched:
    """A subject whose hangs are counted: after PATIENCE of them, an operation that hung is not called again.

    left_out: the operations that were not called for this reason since `left_out` was emptied last.
    """

    def __init__(self, subject: Restartable) -> None:
        self.facts: Facts = subject.facts
        self.left_out = set[str]()
        self._subject = subject
        self._hangs, self._hung = 0, set[str]()

    def call(self, operation: str, *arguments: Any) -> Any:
        """The operation's result, checked; raises Refused, Unsupported, Breach or Died."""
        if self.given_up(operation):
            self.left_out.add(operation)
            raise Unsupported(f"{operation} hung before")
        try:
            return self._subject.call(operation, *arguments)
        except AdapterError as error:  # it could be started once, but not again
            raise Died("crashes", str(error)) from None
        except Died as died:
            if died.kind == "hangs":
                self._hangs += 1
                self._hung.add(operation)
            raise

    def last_words(self, lines: Sequence[bytes]) -> tuple[bytes, int | None]:
        """What a process answers to the last of these lines, and its exit status."""
        return self._subject.last_words(lines)

    def given_up(self, operation: str) -> bool:
        """Whether the operation is not called any more."""
        return self._hangs >= PATIENCE and operation in self._hung

    def restart(self) -> None:
        """Another process in place of this one; if it does not start, the next call says so."""
        with contextlib.suppress(AdapterError):
            self._subject.restart()


def in_order(checks: Iterable[Check]) -> list[Check]:
    """The checks in the order of the chapters."""
    places = {name: place for place, name in enumerate(requirements())}
    return sorted(checks, key=lambda check: places.get(check.requirement, len(places)))


def judge(check: Check, subject: Watched, how: settings) -> Verdict:
    """The verdict on one requirement; a failure stands if it is one in a fresh process too."""
    if (reason := out_of_patience(check, subject)) is not None:
        return Verdict(check.requirement, NOT_RUN, reason, 0, 0.0)
    subject.left_out.clear()
    return settled(check, subject, examine(check, subject, how))


def out_of_patience(check: Check, subject: Watched) -> str | None:
    """Why nothing of the check is asked any more, or None."""
    provided = [operation for operation in check.operations if operation in subject.facts.operations]
    if provided and all(map(subject.given_up, provided)):
        return f"{', '.join(provided)} hung before, and {PATIENCE} hangs of a run are waited for"
    return None


def settled(check: Check, subject: Watched, verdict: Verdict) -> Verdict:
    """The verdict after a second look: at what was left out, and at a failure in a fresh process."""
    if verdict.kind in (PASS, UNSUPPORTED) and subject.left_out:
        left_out = ", ".join(sorted(subject.left_out))
        return verdict._replace(
            kind=NOT_RUN, text=f"cases of {left_out} were left out, since it hung before; the others passed"
        )
    if verdict.kind in FINAL or verdict.repeat is None:
        return verdict
    subject.restart()
    again = judge_again(check, subject, case_from_text(verdict.repeat))
    return _only_after_others(verdict) if again.kind == PASS else verdict


def judge_vectors(
    subject: Watched, vectors: Sequence[Vector], deviations: Deviations, advance: Progress
) -> list[Verdict]:
    """A verdict on every vector; those of an operation that failed are asked again in one fresh process."""
    verdicts: dict[str, Verdict] = {}
    for done, vector in enumerate(vectors):
        advance(vector.id, done, len(vectors))
        verdicts[vector.id] = ask_vector(subject, vector)
    failed: dict[str, list[Vector]] = {}
    for vector in vectors:
        if verdicts[vector.id].kind not in FINAL:
            failed.setdefault(vector.operation, []).append(vector)
    for group in failed.values():
        subject.restart()
        for vector in group:
            verdicts[vector.id] = ask_vector_again(subject, vector, verdicts[vector.id])
    return [deviating_vector(vector, verdicts[vector.id], deviations) for vector in vectors]


def ask_vector(subject: Watched, vector: Vector) -> Verdict:
    """The first verdict on one vector."""
    if subject.given_up(vector.operation):
        reason = f"{vector.operation} hung before, and {PATIENCE} hangs of a run are waited for"
        return Verdict(vector.id, NOT_RUN, reason, 0, 0.0)
    return vector_verdict(subject, vector)


def ask_vector_again(subject: Watched, vector: Vector, verdict: Verdict) -> Verdict:
    """The verdict on a vector that failed, after another look at it in a fresh process."""
    return _only_after_others(verdict) if ask_vector(subject, vector).kind == PASS else verdict


def deviating_vector(vector: Vector, verdict: Verdict, deviations: Deviations) -> Verdict:
    """The verdict as the deviations file wants it: a case that deviates must fail."""
    if verdict.kind in (UNSUPPORTED, KIT_ERROR):
        return verdict
    reason = deviations.cases.get(vector.id)
    if reason is not None and verdict.kind == PASS:
        return verdict._replace(kind=FAIL, text=f"{vector.id}: passes now; remove the deviation ({reason})")
    if reason is None and verdict.kind != PASS:
        # What a requirement deviates in, its vectors cannot but show.
        broken = [name for name in vector.requirements if name in deviations.requirements]
        reason = deviations.requirements[broken[0]] if broken else None
    return verdict if reason is None or verdict.kind == PASS else verdict._replace(kind=DEVIATES, text=reason)


def by_operation(vectors: Sequence[Vector], verdicts: Sequence[Verdict]) -> Mapping[str, list[Verdict]]:
    """The verdicts on the vectors of each operation."""
    groups: dict[str, list[Verdict]] = {}
    for vector, verdict in zip(vectors, verdicts, strict=True):
        groups.setdefault(vector.operation, []).append(verdict)
    return groups


def _only_after_others(verdict: Verdict) -> Verdict:
    text = f"it fails only after other calls, not in a fresh process; it failed so: {verdict.text}"
    return verdict._replace(kind=NOT_DETERMINISTIC, text=text)
