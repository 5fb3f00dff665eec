"""`flashref vectors`: it checks, exports, and says what is missing."""

import json

import vector_folders
from vector_folders import flipped

from flashref import cli
from flashref.conformance.vectors import published as vectors
from flashref.conformance.vectors.published import SHIPPED, read_vectors

folder = vector_folders.folder


def test_the_command_checks_exports_and_says_what_is_missing(folder, capsys):
    assert cli.main(["vectors", "check", str(folder)]) == 0
    number = len(read_vectors(SHIPPED))
    assert capsys.readouterr().out == f"the {number} cases in {folder} are the shipped ones, byte for byte\n"
    assert cli.main(["vectors", "check"]) == 0
    assert capsys.readouterr().out.startswith(f"the {number} shipped cases in {SHIPPED} are whole")
    flipped(folder)
    assert cli.main(["vectors", "check", str(folder), "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    [line] = shown["differences"]
    assert line.startswith(f"{folder}/sparse_ffn/dyadic.safetensors: ")
    assert cli.main(["vectors", "check", str(folder)]) == 1
    assert "dyadic.safetensors" in capsys.readouterr().out
    assert cli.main(["vectors", "check", str(folder / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
    (folder.parent / "empty").mkdir()
    assert cli.main(["vectors", "check", str(folder.parent / "empty")]) == 2
    assert "holds no vectors" in capsys.readouterr().err
    assert cli.main(["vectors", "export", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
    new = folder.parent / "new" / "v1"
    assert cli.main(["vectors", "export", str(new), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == len(vectors._file_bytes(new)) > 0
