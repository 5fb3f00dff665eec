"""`flashref spec`: the list of the spec's pages, one of them, or one requirement."""

import argparse
import json
from typing import Any

from flashref.conformance.chapters import chapter_text, chapters


def add_parser(commands: Any) -> None:
    """`spec` among the commands."""
    parser = commands.add_parser("spec", help="print a chapter of the spec, or a requirement")
    add = parser.add_argument
    add("page", metavar="PAGE", nargs="?", help="50, decisions, or WIN-3 (default: list the pages)")
    add("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Print what was asked for; 0, or a FlashrefError."""
    if options.page is None:
        titles = dict(chapters())
        lines = [f"{name:<{max(map(len, titles))}}  {title}" for name, title in titles.items()]
        print(json.dumps(titles, indent=2, ensure_ascii=False) if options.json else "\n".join(lines))
    else:
        text = chapter_text(options.page)
        encoded = json.dumps({options.page: text}, indent=2, ensure_ascii=False)
        print(encoded if options.json else text.rstrip("\n"))
    return 0
