"""`flashref spec`: the list of the spec's pages, one of them, one requirement, or one decision."""

import argparse
import json
from typing import Any

from rich.markdown import Markdown

from flashref.cli.report import Output
from flashref.conformance.chapters import chapter_text, chapters


def add_parser(commands: Any) -> None:
    """`spec` among the commands."""
    parser = commands.add_parser(
        "spec",
        help="print a chapter of the spec, a requirement or a decision",
        description="Print a page of the spec: formatted on a terminal, as Markdown into a pipe.",
    )
    add = parser.add_argument
    add(
        "page",
        metavar="PAGE",
        nargs="?",
        help="a chapter's number such as 50, a page such as glossary, a requirement such as WIN-3, or a "
        "decision such as decision-8 (default: list the pages)",
    )
    add("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Print what was asked for; 0, or a FlashrefError."""
    asked = chapters() if options.page is None else {options.page: chapter_text(options.page)}
    if options.json:
        print(json.dumps(dict(asked), indent=2, ensure_ascii=False))
    elif options.page is None:
        width = max(map(len, asked))
        print("\n".join(f"{name:<{width}}  {title}" for name, title in asked.items()))
    else:
        _print_page(asked[options.page])
    return 0


def _print_page(text: str) -> None:
    """Print Markdown: formatted on a terminal, as it is into a pipe."""
    out = Output(highlight=False, emoji=False)
    if out.is_terminal:
        out.print(Markdown(text))
    else:
        print(text.rstrip("\n"))
