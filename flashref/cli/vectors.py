"""`flashref vectors`: the conformance vectors, compared with those shipped, or copied elsewhere."""

import argparse
import json
from pathlib import Path
from typing import Any

from flashref.cli.tables import say
from flashref.conformance.vectors.published import SHIPPED, check_vectors, export_vectors, read_vectors
from flashref.types import FlashrefError


def add_parser(commands: Any) -> None:
    """`vectors check` and `vectors export` among the commands."""
    parser = commands.add_parser(
        "vectors",
        help="check the conformance vectors, or copy them out",
        description="The vectors are calls with their expected results, in files that any language can read "
        "(flashref spec 94).",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    check = actions.add_parser(
        "check",
        help="compare a folder of vectors with the shipped ones",
        description="Compare a folder of vectors with the shipped ones, byte by byte. Exit code 0: they are "
        "equal; 1: a file differs, is missing or does not belong there.",
    )
    check.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        type=Path,
        default=SHIPPED,
        help="the folder (default: the shipped vectors themselves, whose fields and checksums are checked)",
    )
    check.set_defaults(run=run_check, parser=check)
    export = actions.add_parser(
        "export",
        help="copy the shipped vectors into a new or empty folder",
        description="Copy the shipped vectors into a folder, all of them or none.",
    )
    export.add_argument("folder", metavar="DIR", type=Path, help="a new or empty folder")
    export.set_defaults(run=run_export, parser=export)
    for action in (check, export):
        action.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run_check(options: argparse.Namespace) -> int:
    """Compare a folder's vectors with those shipped; 0 if every byte agrees, else 1."""
    folder = options.folder
    if not folder.is_dir():
        raise FlashrefError(f"{folder}: is no folder; `flashref vectors export DIR` makes one")
    if not any(folder.glob("*/*.json")):
        raise FlashrefError(f"{folder}: holds no vectors; `flashref vectors export DIR` copies them")
    differences = check_vectors(folder)
    cases = None if differences else len(read_vectors(folder))
    if options.json:
        print(json.dumps({"folder": str(folder), "cases": cases, "differences": differences}, indent=2))
    elif differences:
        print("\n".join(differences))
    elif folder.resolve() == SHIPPED.resolve():
        say(f"the {cases} shipped cases in {folder} are whole: every field and every checksum is right")
    else:
        say(f"the {cases} cases in {folder} are the shipped ones, byte for byte")
    return 1 if differences else 0


def run_export(options: argparse.Namespace) -> int:
    """Write the vectors into a folder; 0, or a FlashrefError."""
    folder = options.folder
    files = export_vectors(folder)
    cases = len(read_vectors(folder))
    if options.json:
        print(json.dumps({"folder": str(folder), "cases": cases, "files": files}, indent=2))
    else:
        say(f"{cases} cases in {files} files are in {folder}; `flashref spec 94` says how to read them")
    return 0
