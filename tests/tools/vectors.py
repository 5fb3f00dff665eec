"""Computes the conformance vectors again from the definitions, and compares or appends.

    PYTHONPATH=.:tests python tests/tools/vectors.py check [DIR]
    PYTHONPATH=.:tests python tests/tools/vectors.py append DIR

`append` is for those who add cases: it writes into DIR (the shipped vectors are flashref/data/vectors/v1),
and refuses to change or drop a case that is there.
"""

import sys
from pathlib import Path

from tools.vector_cases import all_groups

from flashref.conformance.vectors.files import VectorError
from flashref.conformance.vectors.published import SHIPPED, append_vectors, check_vectors


def main(words: list[str]) -> int:
    match words:
        case ["check", *folder] if len(folder) < 2:
            differences = check_vectors(Path(*folder) if folder else SHIPPED, all_groups())
            print("\n".join(differences) or "every file is what the definitions give, to the byte")
            return 1 if differences else 0
        case ["append", folder]:
            try:
                print(f"{append_vectors(Path(folder), all_groups())} files written")
            except VectorError as error:
                sys.exit(str(error))
            return 0
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
