"""What came out of a run: counted, in words, and as JSON. Nothing in it depends on a clock."""

import html
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flashref import SPEC_VERSION
from flashref.conformance.adapter import OPERATIONS
from flashref.conformance.checks import CHECKS
from flashref.conformance.checks.check import Call, shown
from flashref.conformance.judging.runner import calls_of
from flashref.conformance.judging.verdict import DEVIATES, FAIL, GOOD, NOT_RUN, PASS, UNSUPPORTED, Verdict
from flashref.conformance.requirements import requirements
from flashref.conformance.transport.codec import case_from_text
from flashref.conformance.vectors.published import shipped_vectors

NOTHING_JUDGED = "nothing was judged: no operation ran a single case, so nothing is known of its results"
_NAMES = {PASS: "pass", DEVIATES: "deviate", UNSUPPORTED: "unsupported", FAIL: "fail", NOT_RUN: "not run"}


class Row(NamedTuple):
    """One line of a report's table.

    Attributes:
        section: the chapter, or "vectors".
        name: the requirement, or the operation whose vectors were judged.
        kind: the class of the requirement, or "vectors".
        verdict: a word.
        cases: how many were judged.
        why: on a line each, how many cases were skipped, and the first line of the reason.
    """

    section: str
    name: str
    kind: str
    verdict: str
    cases: str
    why: str


class Report(NamedTuple):
    """What came out of a run of the kit; a notebook shows it as a table.

    Attributes:
        name, version: the implementation's own.
        profile: dev, ci or nightly.
        target: the implementation as a command line names it.
        verdicts: on requirements, in the order of the chapters.
        vectors: operation → the verdicts on its vectors.
    """

    name: str
    version: str
    profile: str
    target: str
    verdicts: Sequence[Verdict]
    vectors: Mapping[str, Sequence[Verdict]]

    @property
    def every_vector(self) -> list[Verdict]:
        """The verdicts on all vectors."""
        return [verdict for group in self.vectors.values() for verdict in group]

    @property
    def judged(self) -> bool:
        """Whether the implementation ran at least one case, or no requirement that was asked for runs any."""
        asked = [one for one in self.verdicts if CHECKS[one.requirement].runs] + self.every_vector
        return not asked or any(verdict.cases for verdict in asked)

    @property
    def passed(self) -> bool:
        """Whether something was judged, and none of the verdicts is a failure."""
        return self.judged and all(one.kind in GOOD for one in [*self.verdicts, *self.every_vector])

    @property
    def summary(self) -> str:
        """The counts in one line: `spec 1.3: 52 pass, 2 deviate, 3 unsupported, 1 fail; vectors: …`."""
        parts = [f"spec {SPEC_VERSION}: {_counted(self.verdicts)}"] if self.verdicts else []
        parts += [f"vectors: {_counted(self.every_vector)}"] if self.vectors else []
        return "; ".join(parts if self.judged else [*parts, NOTHING_JUDGED])

    def as_json(self) -> dict[str, Any]:
        """Give the run as what `json` writes, equal in two runs of dev or ci."""
        return {
            "name": self.name,
            "version": self.version,
            "spec": SPEC_VERSION,
            "profile": self.profile,
            "passed": self.passed,
            "verdicts": [verdict_json(verdict) for verdict in self.verdicts],
            "vectors": [_group_json(operation, group) for operation, group in self.vectors.items()],
            "summary": {"requirements": counts(self.verdicts), "vectors": counts(self.every_vector)},
        }

    def rows(self) -> Iterator[Row]:
        """Give the table: a row for each requirement, then one for the vectors of each operation."""
        known = requirements()
        for verdict in self.verdicts:
            of = known[verdict.requirement]
            skipped = sum(verdict.skipped.values()) if verdict.cases else 0  # else the text has the reasons
            why = _lines(f"{skipped} skipped" if skipped else "", _first_line(verdict.text))
            yield Row(of.page.removesuffix(".md"), of.id, of.kind, verdict.kind, str(verdict.cases), why)
        for operation, group in self.vectors.items():
            kind = group_kind(group)
            other = next((verdict for verdict in group if verdict.kind == kind != PASS), None)
            why = _lines(_tally(group), "" if other is None else _first_line(_without_id(other)))
            yield Row("vectors", operation, "vectors", kind, str(sum(one.cases for one in group)), why)

    def skipped(self) -> dict[str, tuple[int, int]]:
        """Count what was skipped of the requirements and operations of which something was judged.

        Returns:
            Reason → (cases of requirements, vectors), the largest numbers first.
        """
        cases, vectors = Counter[str](), Counter[str]()
        for verdict in self.verdicts:
            if verdict.kind != UNSUPPORTED:  # else its text has the reasons
                cases.update(verdict.skipped)
        for group in self.vectors.values():
            if group_kind(group) != UNSUPPORTED:
                vectors.update(_skipped(group))
        reasons = sorted(cases | vectors, key=lambda reason: (-cases[reason] - vectors[reason], reason))
        return {reason: (cases[reason], vectors[reason]) for reason in reasons}

    def skips(self) -> Iterator[str]:
        """Give a line for each reason why cases were skipped: `39 cases and 25 vectors: no gelu_erf`."""
        for reason, numbers in self.skipped().items():
            named = zip(numbers, ("case", "vector"), strict=True)
            counted = [f"{many} {what}{'s' * (many > 1)}" for many, what in named if many]
            yield f"{' and '.join(counted)}: {_first_line(reason)}"

    def failures(self, vectors_of_one: int = 3) -> Iterator[str]:
        """Give the text of every failure.

        Args:
            vectors_of_one: how many failed vectors of an operation are given in full; the others are named.
        """
        for verdict in _failed(self.verdicts):
            yield failure_text(verdict, self.target)
        for operation, group in self.vectors.items():
            failed = _failed(group)
            for verdict in failed[:vectors_of_one]:
                yield failure_text(verdict, self.target)
            if others := [verdict.requirement for verdict in failed[vectors_of_one:]]:
                yield "\n  ".join([f"{len(others)} more vectors of {operation} failed:", *others])

    def __repr__(self) -> str:
        skips = [f"skipped {line}" for line in self.skips()]
        return "\n\n".join([f"{self.name} {self.version}", *skips, *self.failures(), self.summary])

    def _repr_html_(self) -> str:
        """A notebook's view: the table, the failures, and the count."""
        cells = "</td><td>"
        rows = [
            f"<tr><td>{cells.join(map(html.escape, row))}</td></tr>".replace("\n", "<br>")
            for row in self.rows()
        ]
        skips = [f"<p>skipped {html.escape(line)}</p>" for line in self.skips()]
        failures = [f"<pre>{html.escape(text)}</pre>" for text in self.failures()]
        title, end = (html.escape(text) for text in (f"{self.name} {self.version}", self.summary))
        return "\n".join(
            [f"<p><b>{title}</b></p>", "<table>", *rows, "</table>", *skips, *failures, f"<p>{end}</p>"]
        )


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Count the verdicts: every misbehaviour is a fail, and what was not run is counted by itself."""
    numbers = dict.fromkeys(_NAMES.values(), 0)
    for verdict in verdicts:
        numbers[_NAMES.get(verdict.kind, _NAMES[FAIL])] += 1
    return numbers


def group_kind(group: Sequence[Verdict]) -> str:
    """One word for the vectors of an operation: the first failure's, or what most deserves to be said."""
    kinds = [verdict.kind for verdict in group]
    bad = [kind for kind in kinds if kind not in GOOD]
    return next((kind for kind in (*bad, PASS, DEVIATES) if kind in kinds), UNSUPPORTED)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict without its seconds."""
    content = {**verdict._asdict(), "skipped": dict(verdict.skipped)}
    return {name: value for name, value in content.items() if name != "seconds"}


def failure_text(verdict: Verdict, target: str) -> str:
    """Put a failure into words: the requirement's sentence, the numbers, the call, and how to repeat it.

    Args:
        verdict: on a requirement, or on a vector.
        target: the implementation as a command line names it.

    Returns:
        A text of several lines.
    """
    name, texts = verdict.requirement, [f"  {verdict.kind}: {_without_id(verdict)}"]
    again = f"  repeat: flashref conformance {target} --repro {name}"
    if (vector := shipped_vectors().get(name)) is not None:
        call = _call_text(Call(vector.operation, vector.arguments))
        return "\n".join([f"{name} [vector of {', '.join(vector.requirements)}]", *texts, call, again])
    of = requirements().get(name)
    heading = name if of is None else f"{of.id} [{of.kind}]: {of.sentence} (specs/{of.page})"
    if verdict.repeat is not None:
        calls = [call for call in calls_of(case_from_text(verdict.repeat)) if isinstance(call, Call)]
        numbers = [""] if len(calls) == 1 else [f" {number}" for number in range(1, len(calls) + 1)]
        texts += [*map(_call_text, calls, numbers), f"{again} '{verdict.repeat}'"]
    return "\n".join([heading, *texts])


def _without_id(verdict: Verdict) -> str:
    """The text without the vector's id, where that stands beside it."""
    return verdict.text.removeprefix(f"{verdict.requirement}: ")


def _call_text(call: Call, number: str = "") -> str:
    """A line with the call; of several calls, with its number and what is special about it."""
    named = zip(OPERATIONS[call.operation], call.arguments, strict=True)
    arguments = ", ".join(f"{name}={shown(value)}" for name, value in named)
    note = f" ({call.note})" if number and call.note else ""
    return f"  call{number}{note}: {call.operation}({arguments})"


def _group_json(operation: str, group: Sequence[Verdict]) -> dict[str, Any]:
    failures = [
        {"case": verdict.requirement, "kind": verdict.kind, "text": verdict.text}
        for verdict in group
        if verdict.kind not in GOOD
    ]
    numbers = {"cases": len(group), **counts(group), "skipped": dict(_skipped(group))}
    return {"operation": operation, "kind": group_kind(group), **numbers, "failures": failures}


def _skipped(group: Iterable[Verdict]) -> Counter[str]:
    """Reason → how many vectors were skipped for it."""
    return Counter(verdict.text for verdict in group if verdict.kind == UNSUPPORTED)


def _tally(group: Sequence[Verdict]) -> str:
    """What became of the vectors: `41 pass, 1 fail, 25 skipped`; `16 skipped` if none failed; or nothing."""
    numbers = counts(group)
    words = {name: "skipped" if name == _NAMES[UNSUPPORTED] else name for name in numbers}
    kinds = [_NAMES[kind] for kind in (PASS, FAIL, DEVIATES, NOT_RUN, UNSUPPORTED)]
    parts = [f"{numbers[name]} {words[name]}" for name in kinds if numbers[name]]
    if group_kind(group) == PASS and not numbers[_NAMES[DEVIATES]]:
        parts = parts[1:]  # the cases column counts them
    return ", ".join(parts) if group_kind(group) == PASS or len(parts) > 1 else ""


def _lines(*texts: str) -> str:
    return "\n".join(text for text in texts if text)


def _failed(verdicts: Iterable[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.kind not in (*GOOD, NOT_RUN)]


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _counted(verdicts: Sequence[Verdict]) -> str:
    numbers = counts(verdicts)
    always = [_NAMES[kind] for kind in (PASS, DEVIATES, UNSUPPORTED, FAIL)]
    names = [*always, *(["not run"] if numbers["not run"] else [])]
    return ", ".join(f"{numbers[name]} {name}" for name in names)
