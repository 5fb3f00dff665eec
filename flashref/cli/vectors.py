"""`flashref vectors`: the conformance vectors, computed again and compared, or copied elsewhere."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from flashref.conformance import vectors
from flashref.types import FlashrefError

Result = TypeVar("Result")


def add_parser(commands: Any) -> None:
    """`vectors check` and `vectors export` among the commands."""
    parser = commands.add_parser("vectors", help="check the conformance vectors, or copy them out")
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    check = actions.add_parser("check", help="compute them again, and compare every byte")
    check.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        type=Path,
        default=vectors.SHIPPED,
        help="(default: those shipped)",
    )
    check.set_defaults(run=run_check, parser=check)
    export = actions.add_parser("export", help="copy those shipped into a new or empty folder")
    export.add_argument("folder", metavar="DIR", type=Path)
    # For those who add cases: computes DIR's files again, and refuses to change a case that is there.
    export.add_argument("--regenerate", action="store_true", help=argparse.SUPPRESS)
    export.set_defaults(run=run_export, parser=export)
    for action in (check, export):
        action.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run_check(options: argparse.Namespace) -> int:
    """Compare a folder's vectors with the definitions; 0 if every byte agrees, else 1."""
    folder = options.folder
    if not folder.is_dir():
        raise FlashrefError(f"{folder}: is no folder; `flashref vectors export DIR` makes one")
    differences = _with_test_extra(lambda: vectors.check_vectors(folder))
    cases = None if differences else len(vectors.read_vectors(folder))
    if options.json:
        print(json.dumps({"folder": str(folder), "cases": cases, "differences": differences}, indent=2))
    elif differences:
        print("\n".join(differences))
    else:
        print(f"{cases} cases in {folder} are what the definitions give, to the byte")
    return 1 if differences else 0


def run_export(options: argparse.Namespace) -> int:
    """Write the vectors into a folder; 0, or a FlashrefError."""
    folder = options.folder
    if options.regenerate:
        files = _with_test_extra(lambda: vectors.append_vectors(folder))
    else:
        files = vectors.export_vectors(folder)
    cases = len(vectors.read_vectors(folder))
    if options.json:
        print(json.dumps({"folder": str(folder), "cases": cases, "files": files}, indent=2))
    else:
        print(f"{cases} cases in {files} files are in {folder}; specs/94-vectors.md says how to read them")
    return 0


def _with_test_extra(compute: Callable[[], Result]) -> Result:
    """What `compute` returns, or one sentence if the packages that it needs are not there."""
    try:
        return compute()
    except ModuleNotFoundError as error:
        raise FlashrefError(
            f"computing the vectors again needs {error.name}; run pip install 'flashref[test]'"
        ) from error
