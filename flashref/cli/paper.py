"""`flashref paper`: derives the paper's figures and tables, and sets the paper's own values beside them."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flashref.cli.options import check_new_file
from flashref.cli.plots import check_plots
from flashref.cli.report import progress
from flashref.cli.tables import Column, print_table, say
from flashref.simulate.paper.figure import Figure
from flashref.simulate.paper.sections import RULE, SUMMARY, Section
from flashref.simulate.paper.table2 import Table2
from flashref.simulate.paper.tables import FIGURES, paper_tables
from flashref.storage.files import create_file, write_all


def add_parser(commands: Any) -> None:
    """`paper` among the commands."""
    parser = commands.add_parser(
        "paper",
        help="derive the paper's figures and tables, beside its own values",
        description="Derives the paper's figures and tables from shapes, densities, traces and a device "
        "that was fitted to Fig. 2b, never from the result that they are compared with. The error of every "
        "value is shown. Most values agree within 5 %; those of Fig. 7 do not.",
    )
    add = parser.add_argument
    add(
        "--only",
        metavar="NAMES",
        type=_names,
        help=f"derive only these, with commas between them: {', '.join(FIGURES)} (default: all)",
    )
    add(
        "--html",
        metavar="FILE",
        type=Path,
        help="write a page with plots to this new file; needs the extra `plot`",
    )
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--quiet", action="store_true", help="show no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Derive the figures, print them and write the page; the exit code is 0, for nothing is judged."""
    if options.html is not None:
        check_plots("--html")
        check_new_file("--html", options.html)
    with progress(options.quiet) as advance:
        results = paper_tables(options.only, advance)
    if options.json:
        objects = {name: result.as_json() for name, result in results.items()}
        print(json.dumps(objects, indent=2, ensure_ascii=False, allow_nan=False), flush=True)
    else:
        _show(results)
    if options.html is not None:  # after the results, which a full disk must not take away
        from flashref.simulate.paper.page import page

        data = np.frombuffer(page(results).encode(), np.uint8)
        with create_file(options.html, data.size) as descriptor:
            write_all(descriptor, data, 0)
        if not options.json:
            say(f"\nThe page with the plots is {options.html}.")
    return 0


def _names(word: str) -> list[str]:
    """The names of figures, which commas separate."""
    names = [name.strip() for name in word.split(",")]
    for name in names:
        if name not in FIGURES:
            raise argparse.ArgumentTypeError(f"no figure is called {name!r}; use {', '.join(FIGURES)}")
    return names


def _show(results: Mapping[str, Figure | Table2]) -> None:
    """The rule, a table of all results, and each of them, on stdout."""
    sections = [result.section(name) for name, result in results.items()]
    say(RULE)
    columns = [Column(heading, words=at == 0) for at, heading in enumerate(SUMMARY[:-1])]
    print_table(columns, [each.summary[:-1] for each in sections])
    for each in sections:
        _show_section(each)


def _show_section(each: Section) -> None:
    """Print a figure or table: what it is derived from, how well it agrees, its rows, and its notes."""
    say(f"\n{each.title}", "bold")
    say(f"Derived from: {each.inputs}.")
    say(each.agreement)
    rows = [each.rows[at] for at in each.short]
    headings, marks = each.headings, dict[str, str]()
    if headings[-1] == "note":  # a letter stands for each note, for no terminal is wide enough for the words
        for row in rows:
            if row[-1]:
                marks.setdefault(row[-1], chr(ord("a") + len(marks)))
        rows = [(*row[:-1], marks.get(row[-1], "")) for row in rows]
    if not marks and headings[-1] == "note":
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    print_table(
        [Column(heading, at < each.text or heading == "note") for at, heading in enumerate(headings)], rows
    )
    for note, mark in marks.items():
        say(f"{mark}: {note}")
    if len(each.short) < len(each.rows):
        say(f"These are {len(each.short)} of {len(each.rows)} rows; --json and --html have all of them.")
    for note in each.notes:
        say(f"- {note}")
