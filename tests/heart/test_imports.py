"""What importing the reference loads: a chapter and what it needs, and nothing that is heavier than NumPy."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flashref
from flashref.conformance.requirements import specs_folder

HEART = {"types", "arithmetic", "ffn", "window", "bundle", "slots", "gather", "decode"}
HEAVY = {"jax", "scipy", "hypothesis", "safetensors", "rich", "pytest"}


def loaded_by(statement: str) -> dict[str, str]:
    """Every module that a new Python has after it, with its file."""
    program = f"{statement}; import json, sys\n"
    program += "print(json.dumps({name: getattr(m, '__file__', None) for name, m in sys.modules.items()}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_decoding_loads_the_heart_and_the_read_plan():
    modules = loaded_by("import flashref.decode")
    ours = {name.removeprefix("flashref.") for name in modules if name.startswith("flashref.")}
    assert ours == HEART | {"storage", "storage.plan"}
    assert not HEAVY & {name.partition(".")[0] for name in modules}
    lines = sum(Path(modules[f"flashref.{name}"]).read_text().count("\n") for name in ours)
    assert lines < 1400


def imports_of(module: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of flashref that a file imports anywhere, in a function too."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            named |= {part if part in modules else node.module for part in parts}
    return named & set(modules) - {module}


def test_no_module_imports_itself_through_others():
    root = Path(flashref.__file__).parent
    paths = {path.relative_to(root.parent).with_suffix(""): path for path in root.rglob("*.py")}
    modules = {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {module: imports_of(module, path, modules) for module, path in modules.items()}
    assert len(graph["flashref.decode"]) > 3
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_the_package_alone_loads_nothing():
    assert {name for name in loaded_by("import flashref") if name.startswith("flashref")} == {"flashref"}


@pytest.mark.parametrize("name", flashref.__all__)
def test_every_exported_name_is_there(name):
    assert getattr(flashref, name) is not None


@pytest.mark.parametrize("number", [10, 20, 30, 40, 52, 60, 70, 80, 90])
def test_the_functions_and_tuples_of_a_chapter_are_exported(number):
    [page] = specs_folder().glob(f"{number}-*.md")
    functions = re.findall(r"^## `(\w+)\(", page.read_text(), re.M)
    tuples = re.findall(r"`([A-Z]\w+)\(", page.read_text())
    assert functions
    assert {*functions, *tuples} <= set(flashref.__all__)


def test_a_caller_of_decode_layer_needs_one_import():
    needed = "decode_layer empty_layer ResidentFFN predict_active swap_with_last fill_holes sum_resident "
    needed += "sum_predicted memory_reader DirectReader PRESETS bundle_layout pack_bundles"
    assert set(needed.split()) <= set(flashref.__all__)
