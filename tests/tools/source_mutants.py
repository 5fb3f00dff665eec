"""Mutates the chapter modules and counts the mutants that their own tests kill.

Cosmic Ray (https://cosmic-ray.readthedocs.io) makes the mutants and keeps the results. Each mutant is tried
in a copy of the tree, in a process forked after the slow imports. Left out by rule: strings, messages (what
`raise Error(...)` is given, f-strings), annotations, and what Python refuses to compile.

    python tests/tools/source_mutants.py [MODULE ...] [--jobs N] [--session DIR]

writes source_mutants.md beside this file, and fails if too few are killed or a survivor has no reason in
source_mutants.toml. With a DIR, an interrupted run goes on: what was killed or explained is not tried again.
"""

import argparse
import difflib
import gc
import hashlib
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import tomllib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import parso
import pytest
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).parents[2]
TABLE, REASONS = (Path(__file__).with_suffix(suffix) for suffix in (".md", ".toml"))
MODULES = [
    "types",
    "arithmetic",
    "bounds",
    "ffn",
    "predictor",
    "window",
    "bundle",
    "slots",
    "gather",
    "decode",
]
MODULES += ["storage/device", "storage/plan", "storage/image", "storage/readers"]
MORE_TESTS = {  # besides the module's own file
    "decode": ["tests/conformance/test_machine.py"],
    "storage/image": ["tests/storage/test_packing.py", "tests/storage/test_pack_image.py"],
    "storage/readers": ["tests/storage/test_direct_reader.py", "tests/storage/test_page_cache.py"],
}
SLOW_IMPORTS = ("hypothesis.extra.numpy", "hypothesis.stateful", "mpmath", "safetensors.numpy")
EXAMPLES = (10, 100)  # of a property: most mutants fall to the first ten, the others must outlive those of CI
ENOUGH = 0.98
UNEXPLAINED = "**unexplained**"

Name = tuple[str, str, str, str]  # module, function, line, what the line becomes: a moved line keeps its name


class Hasty(NamedTuple):
    """What kills soonest comes first, and no counterexample is made smaller."""

    killers: Path  # a line for each mutant killed before: the name of the test
    examples: int

    def pytest_configure(self) -> None:
        phases, slow = (Phase.explicit, Phase.generate), [HealthCheck.too_slow]
        ci = settings(settings.get_profile("ci"), max_examples=self.examples)
        settings.register_profile("mutants", ci, phases=phases, suppress_health_check=slow)
        settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        before = self.killers.read_text().splitlines() if self.killers.exists() else ()
        recent = {name: number for number, name in enumerate(before)}
        items.sort(key=lambda item: recent.get(item.nodeid, -1), reverse=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            with self.killers.open("a") as file:
                print(report.nodeid, file=file)


def left_out(tree: Any, spec: MutationSpec, source: str) -> bool:
    """Whether a mutant is of a message or an annotation, or is no program."""
    called, node = False, tree.get_leaf_for_position(spec.start_pos)
    while node.parent is not None:
        inner, node = node, node.parent
        if node.type in ("fstring", "tfpdef") or (node.type == "raise_stmt" and called):
            return True
        if inner is (node.children[1] if node.type == "annassign" else getattr(node, "annotation", None)):
            return True
        called = called or (node.type == "trailer" and node.children[0] == "(")
    try:
        with warnings.catch_warnings(action="error"):  # as in the tests: `is` with a literal
            compile(mutated_source(source, spec), "mutant", "exec")
    except (SyntaxError, SyntaxWarning):
        return True
    return False


def mutated_source(source: str, spec: MutationSpec) -> str:
    mutated = mutate_code(source, get_operator(spec.operator_name)(), spec.occurrence)
    assert mutated is not None, spec
    return str(mutated)


def named(module: str, source: str, spec: MutationSpec) -> Name:
    before, after = source.splitlines(), mutated_source(source, spec).splitlines()
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changed = [block[1:] for block in blocks if block[0] != "equal"]
    (a, b), (c, d) = (changed[0][0], changed[-1][1]), (changed[0][2], changed[-1][3])
    line, becomes = (" ".join(" ".join(part).split()) for part in (before[a:b], after[c:d]))
    return module, spec.definition_name or "", line, becomes


def generate(db: WorkDB, source: str, path: Path) -> None:
    """Fills a session with the mutants of one module, those left out already marked."""
    init([path], db, {})
    tree = parso.parse(source)
    out = [item.job_id for item in db.work_items if left_out(tree, item.mutations[0], source)]
    db.set_multiple_results(out, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


def start_tests(tree: Path, module: str, seconds: float | None) -> int:
    """The id of a process that runs the module's tests in a tree; its exit code is 0 if all pass.

    seconds: of processor time, so that a busy machine kills no mutant; None while the tree is not mutated.
    """
    if pid := os.fork():
        return pid
    os.chdir(tree)
    tempfile.tempdir = str(tree / "tmp")
    sys.path[0] = str(tree)
    os.closerange(0, 3)
    os.dup(os.dup(os.open(os.devnull, os.O_RDWR)))
    name, folder = Path(module).name, str(Path(module).parent).replace(".", "heart")
    options = f"-o addopts= -x --tb=no -p no:cacheprovider --basetemp={tree}/tmp/pytest"
    options += f" tests/{folder}/test_{name}.py"
    for examples in EXAMPLES:
        if not (pid := os.fork()):
            if seconds is not None:
                sys.dont_write_bytecode = True
                resource.setrlimit(resource.RLIMIT_CPU, (round(seconds), round(seconds) + 1))
                resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))  # asking for more is a MemoryError
                signal.alarm(round(2 * seconds) + 30)  # for those that wait for ever
            plugin = Hasty(tree.parent / name, examples)
            os._exit(pytest.main([*options.split(), *MORE_TESTS.get(module, ())], [plugin]) != 0)
        if os.waitpid(pid, 0)[1]:
            os._exit(1)
    os._exit(0)


def finished() -> tuple[int, bool, float]:
    """Waits for the next process that ends: its id, whether its tests passed, seconds of processor time."""
    pid, status, usage = os.wait4(-1, 0)
    return pid, status == 0, usage.ru_utime + usage.ru_stime


def try_mutants(db: WorkDB, module: str, source: str, trees: list[Path], reasons: dict[Name, str]) -> None:
    """Runs the tests on every mutant that is neither known to be killed nor explained, one process a tree."""
    unmutated = [start_tests(tree, module, None) for tree in trees]
    ends = [finished() for _ in unmutated]
    if not all(passed for _, passed, _ in ends):
        raise SystemExit(f"{module}: its tests fail without any mutation")
    seconds = 5 + 3 * max(seconds for *_, seconds in ends)
    alive = [item for item, result in db.completed_work_items if result.test_outcome is TestOutcome.SURVIVED]
    again = [item for item in alive if named(module, source, item.mutations[0]) not in reasons]
    pending = sorted(db.pending_work_items, key=lambda item: item.mutations[0].start_pos, reverse=True)
    todo: list[WorkItem] = [*again, *pending]  # from the end: neighbours share their killers
    total, path = len(todo), f"flashref/{module}.py"
    under_way: dict[int, tuple[WorkItem, Path]] = {}
    while todo or under_way:
        while todo and trees:
            item, tree = todo.pop(), trees.pop()
            (tree / path).write_text(mutated_source(source, item.mutations[0]))
            under_way[start_tests(tree, module, seconds)] = item, tree
        pid, passed, _ = finished()
        item, tree = under_way.pop(pid)
        (tree / path).write_text(source)
        trees.append(tree)
        outcome = TestOutcome.SURVIVED if passed else TestOutcome.KILLED
        db.set_result(item.job_id, WorkResult(WorkerOutcome.NORMAL, test_outcome=outcome))
        print(f"\r{module}: {len(todo)} of {total} mutants to go ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def lines_of(db: WorkDB, module: str, source: str, reasons: dict[Name, str]) -> list[str]:
    """The module's line of the table, and a line for each survivor."""
    tried = [(item.mutations[0], result) for item, result in db.completed_work_items if result.test_outcome]
    alive = [spec for spec, result in tried if result.test_outcome is TestOutcome.SURVIVED]
    killed = len(tried) - len(alive)
    lines = [f"| {module} | {len(tried)} | {killed} | {killed / len(tried):.1%} |"]
    for name in sorted(named(module, source, spec) for spec in alive):
        _, function, line, becomes = (part.replace("|", "\\|") for part in name)
        lines.append(f"| {module} | {function} | `{line}` | `{becomes}` | {reasons.get(name, UNEXPLAINED)} |")
    return lines


def write_table(measured: dict[str, list[str]]) -> bool:
    """Puts the measured modules' lines into the committed table, prints it; whether it is as it must be."""
    old = TABLE.read_text().splitlines() if TABLE.exists() else []
    before = {module: [line for line in old if line.startswith(f"| {module} |")] for module in MODULES}
    lines = [part for part in (before | measured).values() if part]
    survivors = [line for part in lines for line in part[1:]]
    mutants, killed = (sum(int(part[0].split("|")[column]) for part in lines) for column in (2, 3))
    unexplained = sum(line.endswith(f"{UNEXPLAINED} |") for line in survivors)
    report = f"""# Source mutants

Written by `python tests/tools/source_mutants.py`: what Cosmic Ray makes of the chapter modules; strings,
messages and annotations are left out. A mutant is killed if its own chapter's tests fail on it, or take far
too long.

| module | mutants | killed | share |
|---|---|---|---|
{chr(10).join(part[0] for part in lines)}
| all | {mutants} | {killed} | {killed / mutants:.1%} |

Of the {len(survivors)} survivors {unexplained} are unexplained; without the equivalent ones
{killed / (killed + unexplained):.1%} are killed.

| module | function | line | becomes | why nothing can tell the two apart |
|---|---|---|---|---|"""
    TABLE.write_text("\n".join([report, *survivors, ""]))
    print(TABLE.read_text(), end="")
    return killed >= ENOUGH * mutants and not unexplained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at a time (1)")
    parser.add_argument("--session", type=Path, help="a directory that keeps the results, to go on later")
    options = parser.parse_args()
    os.environ |= {"HYPOTHESIS_PROFILE": "ci", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # no child need look through what is imported by now
    told, measured = tomllib.loads(REASONS.read_text())["equivalent"], {}
    reasons = {(e["module"], e["function"], e["line"], to): e["reason"] for e in told for to in e["becomes"]}
    with tempfile.TemporaryDirectory() as scratch:
        trees = [Path(scratch) / str(number) for number in range(options.jobs)]
        for tree in trees:
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "dist"))
            (tree / "tmp").mkdir()
        session = options.session or Path(scratch)
        for module in options.modules:
            path = trees[0] / "flashref" / f"{module}.py"
            source = path.read_text()
            digest = hashlib.sha256(source.encode()).hexdigest()[:8]
            with use_db(session / f"{path.stem}-{digest}.sqlite", WorkDB.Mode.create) as db:
                if not db.num_work_items:
                    generate(db, source, path)
                try_mutants(db, module, source, list(trees), reasons)
                measured[module] = lines_of(db, module, source, reasons)
    return 0 if write_table(measured) else 1


if __name__ == "__main__":
    sys.exit(main())
