"""`flashref vectors`: the conformance vectors, compared with those shipped, or copied elsewhere."""

import argparse
import json
from pathlib import Path
from typing import Any

from flashref.conformance.vectors.published import SHIPPED, check_vectors, export_vectors, read_vectors
from flashref.types import FlashrefError


def add_parser(commands: Any) -> None:
    """`vectors check` and `vectors export` among the commands."""
    parser = commands.add_parser("vectors", help="check the conformance vectors, or copy them out")
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    check = actions.add_parser("check", help="compare a folder of vectors with those shipped, byte by byte")
    check.add_argument(
        "folder", metavar="DIR", nargs="?", type=Path, default=SHIPPED, help="(default: those shipped)"
    )
    check.set_defaults(run=run_check, parser=check)
    export = actions.add_parser("export", help="copy those shipped into a new or empty folder")
    export.add_argument("folder", metavar="DIR", type=Path)
    export.set_defaults(run=run_export, parser=export)
    for action in (check, export):
        action.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run_check(options: argparse.Namespace) -> int:
    """Compare a folder's vectors with those shipped; 0 if every byte agrees, else 1."""
    folder = options.folder
    if not folder.is_dir():
        raise FlashrefError(f"{folder}: is no folder; `flashref vectors export DIR` makes one")
    differences = check_vectors(folder)
    cases = None if differences else len(read_vectors(folder))
    if options.json:
        print(json.dumps({"folder": str(folder), "cases": cases, "differences": differences}, indent=2))
    elif differences:
        print("\n".join(differences))
    else:
        print(f"{cases} cases in {folder} are the published ones, to the byte")
    return 1 if differences else 0


def run_export(options: argparse.Namespace) -> int:
    """Write the vectors into a folder; 0, or a FlashrefError."""
    folder = options.folder
    files = export_vectors(folder)
    cases = len(read_vectors(folder))
    if options.json:
        print(json.dumps({"folder": str(folder), "cases": cases, "files": files}, indent=2))
    else:
        print(f"{cases} cases in {files} files are in {folder}; `flashref spec 94` says how to read them")
    return 0
