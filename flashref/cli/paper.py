"""`flashref paper`: the paper's figures and tables, derived, each beside the paper's own values."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flashref.cli import paper_sections
from flashref.cli.options import check_new_file
from flashref.cli.plots import check_plots
from flashref.cli.report import progress
from flashref.simulate.paper.appendix_c import appendix_c
from flashref.simulate.paper.coactivation import coactivation
from flashref.simulate.paper.curves import figure2b, figure4a
from flashref.simulate.paper.figure import Figure, largest_error, median_error
from flashref.simulate.paper.latency import figure7, figure8
from flashref.simulate.paper.table2 import Table2, table2
from flashref.simulate.paper.table3 import table3
from flashref.storage.files import create_file, write_all

# In the order in which they are computed and shown.
FIGURES: Mapping[str, Callable[[], Figure | Table2]] = {
    "figure2b": figure2b,
    "figure4a": figure4a,
    "table2": table2,
    "table3": table3,
    "appendix_c": appendix_c,
    "figure7": figure7,
    "figure8": figure8,
    "coactivation": coactivation,
}


def add_parser(commands: Any) -> None:
    """`paper` among the commands."""
    parser = commands.add_parser(
        "paper",
        help="derive the paper's figures and tables, beside its own values",
        description="Derives the paper's figures and tables from shapes, densities, traces and a device "
        "fitted to Fig. 2b, never from the result that they are compared with.",
    )
    add = parser.add_argument
    add(
        "--only",
        metavar="NAMES",
        type=_names,
        default=list(FIGURES),
        help=f"some of them, with commas between: {', '.join(FIGURES)}",
    )
    add("--html", metavar="FILE", type=Path, help="also one page with plots; never overwritten")
    add("--json", action="store_true", help="one JSON object instead of tables")
    add("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Derive, show and keep; 0, for nothing is judged here."""
    if options.html is not None:
        check_plots("--html")
        check_new_file("--html", options.html)
    results: dict[str, Figure | Table2] = {}
    with progress(options.quiet) as advance:
        for done, name in enumerate(options.only):
            advance("the paper's figures", done, len(options.only))
            results[name] = FIGURES[name]()
    if options.html is not None:
        from flashref.cli.paper_page import page

        data = np.frombuffer(page(results).encode(), np.uint8)
        with create_file(options.html, data.size) as descriptor:
            write_all(descriptor, data, 0)
    if options.json:
        objects = {name: json_object(result) for name, result in results.items()}
        print(json.dumps(objects, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        paper_sections.show(results, options.html)
    return 0


def json_object(result: Figure | Table2) -> Any:
    """What `--json` has of one: a list of rows for Table 2, an object otherwise; null where there is none."""
    if isinstance(result, Table2):
        return [
            {**row._asdict(), "flash_bytes_error": row.flash_bytes_error, "io_error": row.io_error}
            for row in result.rows
        ]
    rows = [
        {
            "series": row.series,
            "x": row.x,
            "ours": row.ours,
            "paper": row.paper,
            "error": row.error,
            "note": row.note,
        }
        for row in result.rows
    ]
    return {
        "title": result.title,
        "axis": result.axis,
        "unit": result.unit,
        "inputs": result.inputs,
        "rows": rows,
        "median_error": median_error(result.errors),
        "largest_error": largest_error(result.errors),
        "notes": list(result.notes),
    }


def _names(word: str) -> list[str]:
    """Names of figures with commas between, in the order of the paper, each once."""
    names = [name.strip() for name in word.split(",")]
    for name in names:
        if name not in FIGURES:
            raise argparse.ArgumentTypeError(f"no figure is called {name!r}; they are {', '.join(FIGURES)}")
    return [name for name in FIGURES if name in names]
