"""The example adapter of PyTorch: call for call what the reference gives, and what it refuses."""

import types
from pathlib import Path

import numpy as np
import pytest
from random_calls import BAD, VALID, small

from flashref.conformance import reference
from flashref.conformance.adapter import OPERATIONS
from flashref.conformance.transport.subject import InProcess, Refusal, unchanged

ADAPTERS = Path(__file__).parents[1] / "adapters"


@pytest.fixture(scope="module")
def torch_subject():
    pytest.importorskip("torch", reason="PyTorch comes with the dev extra")
    path = ADAPTERS / "torch_adapter.py"
    adapter = types.ModuleType("torch_adapter")
    exec(compile(path.read_text(), str(path), "exec"), vars(adapter))
    return InProcess(adapter)


TORCH_RUNS = [
    name for name in VALID if name.startswith(("predict", "dense", "sparse", "gather", "run_window"))
]


@pytest.mark.req("IOP-1", "IOP-2")
@pytest.mark.parametrize("operation", [*TORCH_RUNS, "run_decode"])
def test_pytorch_agrees_with_the_reference(torch_subject, operation):
    here = InProcess(reference)
    for seed in range(30):
        arguments = VALID[operation](np.random.default_rng(seed))
        got, expected = (subject.call(operation, *arguments) for subject in (torch_subject, here))
        if operation == "run_decode":
            assert {"loaded", "bypassed", "evicted", "useful_bytes"} == set(got[1])
            for counter, counts in got[1].items():
                assert unchanged(counts, expected[1][counter])
            got, expected = got[0], expected[0]
        if operation in ("dense_ffn", "sparse_ffn", "run_decode"):  # on SiLU and GELU it may round otherwise
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
        else:
            assert unchanged(got, expected), f"seed {seed}"


@pytest.mark.req("IOP-7")
@pytest.mark.parametrize(
    ("operation", "parameter", "values"),
    [bad for bad in BAD if bad[0] in [*TORCH_RUNS, "run_decode"]],
    ids=[f"{o}-{p}" for o, p, _ in BAD if o in [*TORCH_RUNS, "run_decode"]],
)
def test_pytorch_refuses(torch_subject, operation, parameter, values):
    for value in values:
        arguments = list(small(operation))
        arguments[OPERATIONS[operation].index(parameter)] = value
        with pytest.raises(Refusal):
            torch_subject.call(operation, *arguments)
