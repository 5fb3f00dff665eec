"""The example adapters pass: JAX, PyTorch, and an engine in C that speaks stdio; every check, few cases."""

from contextlib import suppress
from pathlib import Path

import pytest
from conftest import PROFILE, sampled

from flashref.conformance.adapter import Unsupported, load_adapter
from flashref.conformance.checks import CHECKS
from flashref.conformance.judging.report import failure_text
from flashref.conformance.judging.runner import examine, profile_settings
from flashref.conformance.judging.verdict import GOOD
from flashref.conformance.transport.stdio import Command
from flashref.conformance.transport.subject import InProcess
from flashref.conformance.vectors.published import judge_vector, shipped_vectors

ADAPTERS = Path(__file__).parents[1] / "adapters"


@pytest.fixture(scope="module")
def engine(engine_path):
    with Command([str(engine_path)]) as command:
        yield command


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("torch", reason="PyTorch is in the dev extra only")
    return adapter_in_process("torch_adapter")


@pytest.fixture(scope="module")
def jax():
    import jax as library

    yield adapter_in_process("jax_adapter")
    library.clear_caches()


def adapter_in_process(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ADAPTERS))
        return InProcess(load_adapter(name))


# In JAX each shape and dtype is a compilation; in the profile dev tests/xla says enough.
EXAMPLES = sampled(["engine", "torch", "jax"], ["engine", "torch"])


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_adapter_passes(example, name, request):
    subject = request.getfixturevalue(example)
    how = profile_settings("dev", 10 if PROFILE == "dev" else None)
    verdict = examine(CHECKS[name], subject, how)
    assert verdict.kind in GOOD, failure_text(verdict, example)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_adapter_gives_the_vectors(example, request):
    subject = request.getfixturevalue(example)
    for vector in shipped_vectors().values():
        with suppress(Unsupported):
            judge_vector(subject, vector)
