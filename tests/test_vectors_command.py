"""`flashref vectors`: it checks, exports, and says what is missing."""

import json
import subprocess
import sys
from pathlib import Path

import vector_folders
from vector_folders import flipped

from flashref import cli
from flashref.conformance import vectors
from flashref.conformance.vectors import SHIPPED, read_vectors

folder = vector_folders.folder

HERE = Path(__file__).parent


def test_the_command_checks_exports_and_says_what_is_missing(folder, capsys):
    assert cli.main(["vectors", "check", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{len(read_vectors(SHIPPED))} cases in {folder} are")
    flipped(folder)
    assert cli.main(["vectors", "check", str(folder), "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    [line] = shown["differences"]
    assert line.startswith(f"{folder}/sparse_ffn/dyadic.safetensors: ")
    assert cli.main(["vectors", "check", str(folder)]) == 1
    assert "dyadic.safetensors" in capsys.readouterr().out
    assert cli.main(["vectors", "check", str(folder / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert cli.main(["vectors", "export", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
    new = folder.parent / "new" / "v1"
    assert cli.main(["vectors", "export", str(new), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == len(vectors._file_bytes(new)) > 0
    assert cli.main(["vectors", "export", str(new), "--regenerate"]) == 0
    assert vectors._file_bytes(new) == vectors._file_bytes(SHIPPED)


def test_without_the_test_extra_one_sentence_says_so():
    program = (
        "import sys; sys.modules['mpmath'] = sys.modules['hypothesis'] = None; "
        "from flashref import cli; from flashref.conformance.vectors import SHIPPED, read_vectors; "
        "assert read_vectors(SHIPPED); sys.exit(cli.main(['vectors', 'check']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=HERE.parent, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "computing the vectors again needs mpmath; run pip install 'flashref[test]'\n" in done.stderr
    assert done.stderr.count("\n") == 1
