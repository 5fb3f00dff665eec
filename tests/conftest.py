"""Profiles, what each of them runs, and the record of which requirement is tested where."""

import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

# Their asserts say as much as a test's own.
pytest.register_assert_rewrite(
    "cache_models",
    "command_line",
    "family_runs",
    "image_edits",
    "method_tables",
    "opt_runs",
    "pack_runs",
    "proven_runs",
    "simulate_runs",
    "simulated_disk",
    "vector_folders",
)

settings.register_profile("dev", max_examples=30, deadline=None, stateful_step_count=30)
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, database=None, print_blob=True
)
settings.register_profile("nightly", max_examples=2000, deadline=None, stateful_step_count=100)
PROFILE = os.getenv("HYPOTHESIS_PROFILE", "ci" if os.getenv("CI") else "dev")
settings.load_profile(PROFILE)

CITED = pytest.StashKey[dict[str, list[str]]]()
CI_ONLY = pytest.StashKey[list[str]]()


# Tests that share something slow: JAX's compilations, processes, fitted predictors, the paper's figures.
ON_ONE_WORKER = {
    "jax": (
        "tests/models/test_whole_text",
        "tests/conformance/test_adapters.py::test_an_example_adapter_passes[jax",
        "tests/conformance/test_adapters.py::test_an_example_adapter_gives_the_vectors[jax",
    ),
    "xla": ("tests/xla/",),
    "suite": ("tests/conformance/test_suite.py::test_a_mistake",),
    "training": ("tests/training/", "tests/cli/test_train"),
    "paper": (
        "tests/simulate/test_paper",
        "tests/cli/test_paper",
        "tests/simulate/test_simulation.py::test_the_paper",
    ),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Each test for itself to the worker that is free, but those of ON_ONE_WORKER together.

    In place of `--dist=loadgroup`, whose groups pytest 9.2 loses (pytest-xdist 3.8, issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((name for name, starts in ON_ONE_WORKER.items() if nodeid.startswith(starts)), nodeid)

    return Together(config, log)


def sampled(values, sample):
    """All of the values as parameters; the profile `dev` runs those of the sample only."""
    return [pytest.param(value, marks=() if value in sample else pytest.mark.ci) for value in values]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is too long for the profile `dev`; keep which tests these are, and what is tested where.

    What is skipped does not count as a test of its requirements: none may lose its last test in `dev`.
    """
    cited: dict[str, list[str]] = {}
    ci_only = []
    for item in items:
        if item.get_closest_marker("ci"):
            ci_only.append(item.nodeid)
            if PROFILE == "dev":
                item.add_marker(pytest.mark.skip(reason="runs with HYPOTHESIS_PROFILE=ci or nightly"))
                continue
        for mark in item.iter_markers("req"):
            for requirement in mark.args:
                cited.setdefault(requirement, []).append(item.nodeid)
    config.stash[CITED] = cited
    config.stash[CI_ONLY] = ci_only


@pytest.fixture(scope="session", autouse=True)
def no_line_of_progress_by_the_clock():
    """A slow machine makes no command say more on stderr than a fast one."""
    from flashref.cli import report

    report.LINE_SECONDS = math.inf


@pytest.fixture(scope="session")
def compile_c(tmp_path_factory):
    """compile_c(source, *flags): the program of a C file, compiled without a warning by the system's `cc`."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler here")

    def program_of(source: Path, *flags: str) -> Path:
        program = tmp_path_factory.mktemp("built") / source.stem
        strict = "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"
        words = [compiler, *strict, *flags, str(source), "-o", str(program), "-lm"]
        subprocess.run(words, check=True, timeout=60)
        return program

    return program_of


@pytest.fixture(scope="session")
def engine_path(compile_c):
    """The example engine in C, which speaks the stdio protocol."""
    return compile_c(Path(__file__).parent / "adapters" / "engine.c")
