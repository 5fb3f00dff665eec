"""Judges the mutants and the correct variants, and shows who was caught by which check.

    python tests/mutants [--jobs N] [--all] [--write] [NAME ...]

Each mutant meets the check of the first requirement that it breaks (profile ci); each variant every check in
which its own part has a hand (profile dev). With --all a mutant meets all those checks too, and the variants
do in profile ci. --write keeps the table in table.md. The status is 1 if a mutant survives or a variant is
rejected.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from rich.box import SIMPLE_HEAD  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from mutants import correct  # noqa: E402, F401
from mutants.planted import BY_NAME  # noqa: E402
from mutants.registry import VARIANTS, caught, checks_of, quickly, verdict_on  # noqa: E402

FILE = Path(__file__).with_name("table.md")


def main():
    options = parsed()
    mutants = [mutant for name, mutant in BY_NAME.items() if chosen(name, options.names)]
    variants = [name for name in VARIANTS if chosen(name, options.names)]
    with ProcessPoolExecutor(options.jobs) as pool:
        first = pool.map(judged, [(m.name, m.requirements[0], "ci") for m in mutants])
        rows = [mutant_row(mutant, verdict) for mutant, verdict in zip(mutants, first, strict=True)]
        if options.all:
            for row, mutant in zip(rows, mutants, strict=True):
                row.append(", ".join(caught_by(pool, mutant)))
        profile = "ci" if options.all else "dev"
        others = [variant_row(pool, name, profile) for name in variants]
    show(
        "mutants",
        ("mutant", "requirement", "verdict", "cases", "seconds", "bug", "caught by")[: 6 + options.all],
        rows,
    )
    show("correct variants", ("variant", "passed", "unsupported", "rejected"), others)
    survivors = [row[0] for row in rows if row[2] == "SURVIVES"]
    rejected = [row[0] for row in others if row[3]]
    print(f"{len(rows) - len(survivors)} of {len(rows)} mutants caught")
    print(f"{len(rejected)} of {len(others)} correct variants rejected")
    if options.write:
        FILE.write_text("\n".join(markdown(rows, others)) + "\n", encoding="utf-8")
    return int(bool(survivors or rejected))


def parsed():
    parser = argparse.ArgumentParser(prog="python tests/mutants", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="words of a name; all, if there are none")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--all", action="store_true", help="every check that a mutant could break")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    return parser.parse_args()


def chosen(name, words):
    return not words or any(word in name for word in words)


def judged(task):
    name, requirement, profile = task
    adapter = BY_NAME[name].adapter if name in BY_NAME else VARIANTS[name]
    return verdict_on(adapter, requirement, quickly(profile))


def mutant_row(mutant, verdict):
    kind = verdict.kind if caught(verdict) else "SURVIVES"
    seconds = f"{verdict.seconds:.2f}"
    return [mutant.name, mutant.requirements[0], kind, str(verdict.cases), seconds, mutant.bug]


def caught_by(pool, mutant):
    """Every requirement whose check notices, in profile dev."""
    tasks = [(mutant.name, requirement, "dev") for requirement in checks_of(mutant.adapter)]
    return [verdict.requirement for verdict in pool.map(judged, tasks) if caught(verdict)]


def variant_row(pool, name, profile):
    verdicts = list(
        pool.map(judged, [(name, requirement, profile) for requirement in checks_of(VARIANTS[name])])
    )
    kinds = [verdict.kind for verdict in verdicts]
    rejected = [verdict.requirement for verdict in verdicts if verdict.kind not in ("pass", "unsupported")]
    return [name, str(kinds.count("pass")), str(kinds.count("unsupported")), ", ".join(rejected)]


def show(title, headings, rows):
    table = Table(*headings, box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(width=160, highlight=False, emoji=False).print(table)


def markdown(rows, others):
    """The table without seconds: the same on every machine."""
    yield "Written by `python tests/mutants --write`. Cases: judged until the first failure, with that one.\n"
    yield "| mutant | stands for | requirement | verdict | cases |"
    yield "|---|---|---|---|---:|"
    for name, requirement, kind, cases, _, bug, *_ in rows:
        yield f"| {name} | {bug} | {requirement} | {kind} | {cases} |"
    if rows and len(rows[0]) > 6:
        yield "\nEvery check that notices (profile dev), of those in which the mutant's part has a hand:\n"
        yield "| mutant | checks | which |"
        yield "|---|---:|---|"
        for name, *_, noticed in rows:
            yield f"| {name} | {len(noticed.split(', '))} | {noticed} |"
    yield "\n| correct variant | passed | unsupported | rejected |"
    yield "|---|---:|---:|---|"
    for name, passed, unsupported, rejected in others:
        yield f"| {name} | {passed} | {unsupported} | {rejected} |"


if __name__ == "__main__":
    sys.exit(main())
