"""Judging an implementation whatever it does: it is restarted, and after three hangs not waited for."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hypothesis import settings

from flashref.conformance.adapter import AdapterError, Facts, Unsupported
from flashref.conformance.checks.check import Check
from flashref.conformance.judging.deviations import Deviations
from flashref.conformance.judging.runner import examine, examine_again, vector_verdict
from flashref.conformance.judging.verdict import (
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
)
from flashref.conformance.transport.codec import case_from_text
from flashref.conformance.transport.subject import Died, InProcess, Subject
from flashref.conformance.vectors.files import Vector
from flashref.storage.progress import Progress

PATIENCE = 3  # hangs of a run that are waited for
FINAL = (*GOOD, NOT_RUN, KIT_ERROR, NOT_DETERMINISTIC, OVERWRITES)  # what a fresh process could not change


class Restartable(Subject, Protocol):
    """A subject in a process of its own, as `stdio.Command` is."""

    def restart(self) -> None:
        """Start another process in the place of this one, with nothing of its state."""

    def last_words(self, lines: Sequence[bytes]) -> tuple[bytes, int | None]:
        """What a process answers to the last of these lines, and its exit status."""


class Watched:
    """A subject whose hangs are counted: after PATIENCE of them, an operation that hung is not called again.

    Attributes:
        facts: the subject's.
        left_out: the operations that were not called for this reason, since `left_out` was emptied last.
    """

    def __init__(self, subject: Restartable) -> None:
        self.facts: Facts = subject.facts
        self.left_out = set[str]()
        self._subject = subject
        self._hangs, self._hung = 0, set[str]()

    def call(self, operation: str, *arguments: Any) -> Any:
        """Call an operation, as `Subject.call`; Unsupported if it has been given up."""
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
        """Start another process in the place of this one; if it does not start, the next call says so."""
        with contextlib.suppress(AdapterError):
            self._subject.restart()


Judged = Watched | InProcess


def judge_requirement(check: Check, subject: Judged, how: settings, deviations: Deviations) -> Verdict:
    """Judge one requirement; a failure stands if it is one in a fresh process too.

    Args:
        check: of the requirement.
        subject: the implementation.
        how: Hypothesis' settings, as `profile_settings` gives them.
        deviations: those in force.
    """
    if (reason := deviations.requirements.get(check.requirement)) is not None:
        return Verdict(check.requirement, DEVIATES, reason, 0, 0.0)
    if (not_run := begin(check, subject)) is not None:
        return not_run
    return settled(check, subject, examine(check, subject, how))


def begin(check: Check, subject: Judged) -> Verdict | None:
    """Prepare a subject for a check.

    Returns:
        None; or the verdict, if every operation that the check calls was given up.
    """
    if isinstance(subject, InProcess):
        return None
    subject.left_out.clear()
    provided = [operation for operation in check.operations if operation in subject.facts.operations]
    if not provided or not all(map(subject.given_up, provided)):
        return None
    reason = f"{', '.join(provided)} hung before, and {PATIENCE} hangs of a run are waited for"
    return Verdict(check.requirement, NOT_RUN, reason, 0, 0.0)


def settled(check: Check, subject: Judged, verdict: Verdict) -> Verdict:
    """Look a second time at a verdict: what was left out is no pass, and a failure is asked again.

    Args:
        check: of the requirement.
        subject: the implementation, which is restarted for the second look.
        verdict: the first one.

    Returns:
        The verdict that stands.
    """
    if isinstance(subject, InProcess):
        return verdict
    if verdict.kind in (PASS, UNSUPPORTED) and subject.left_out:
        left_out = ", ".join(sorted(subject.left_out))
        return verdict._replace(
            kind=NOT_RUN, text=f"cases of {left_out} were left out, since it hung before; the others passed"
        )
    if verdict.kind in FINAL or verdict.repeat is None:
        return verdict
    subject.restart()
    again = examine_again(check, subject, case_from_text(verdict.repeat))
    return _only_after_others(verdict) if again.kind == PASS else verdict


def judge_vectors(
    subject: Judged, vectors: Sequence[Vector], deviations: Deviations, progress: Progress
) -> list[Verdict]:
    """Judge vectors; those of an operation that failed are asked again in one fresh process.

    Args:
        subject: the implementation.
        vectors: the cases.
        deviations: those in force.
        progress: called with the id that is judged now, the number judged before it, and the number of all.

    Returns:
        A verdict for each vector, in their order.
    """
    verdicts: dict[str, Verdict] = {}
    failed: dict[str, list[Vector]] = {}
    for done, vector in enumerate(vectors):
        progress(vector.id, done, len(vectors))
        verdicts[vector.id] = _first_verdict(subject, vector)
        if verdicts[vector.id].kind not in FINAL:
            failed.setdefault(vector.operation, []).append(vector)
    for group in failed.values():
        first = [verdicts[vector.id] for vector in group]
        verdicts |= {verdict.requirement: verdict for verdict in _second_verdicts(subject, group, first)}
    return [_deviating(vector, verdicts[vector.id], deviations) for vector in vectors]


def judge_vector(subject: Judged, vector: Vector, deviations: Deviations) -> Verdict:
    """Judge one vector; a failure stands if it is one in a fresh process too."""
    return judge_vectors(subject, [vector], deviations, lambda what, done, total: None)[0]


def _first_verdict(subject: Judged, vector: Vector) -> Verdict:
    """The verdict on one vector, unless its operation is not called any more."""
    if isinstance(subject, Watched) and subject.given_up(vector.operation):
        reason = f"{vector.operation} hung before, and {PATIENCE} hangs of a run are waited for"
        return Verdict(vector.id, NOT_RUN, reason, 0, 0.0)
    return vector_verdict(subject, vector)


def _second_verdicts(subject: Judged, vectors: Sequence[Vector], first: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts on vectors that failed, after another look at them in a fresh process."""
    if isinstance(subject, InProcess):
        return list(first)
    subject.restart()
    again = [_first_verdict(subject, vector).kind for vector in vectors]
    return [
        _only_after_others(verdict) if kind == PASS else verdict
        for verdict, kind in zip(first, again, strict=True)
    ]


def _deviating(vector: Vector, verdict: Verdict, deviations: Deviations) -> Verdict:
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
    """Group the verdicts on vectors by their operations."""
    groups: dict[str, list[Verdict]] = {}
    for vector, verdict in zip(vectors, verdicts, strict=True):
        groups.setdefault(vector.operation, []).append(verdict)
    return groups


def _only_after_others(verdict: Verdict) -> Verdict:
    text = f"it fails only after other calls, not in a fresh process; it failed so: {verdict.text}"
    return verdict._replace(kind=NOT_DETERMINISTIC, text=text)
