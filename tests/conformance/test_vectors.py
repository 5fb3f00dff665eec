"""Chapter 94: the shipped vectors are what the definitions give, and there are enough of them."""

import hashlib
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import vector_folders
from tools.vector_cases import all_groups, make

from flashref import arithmetic, bounds
from flashref.conformance.adapter import OPERATIONS
from flashref.conformance.definitions import bound_by_formula, exact
from flashref.conformance.requirements import requirements
from flashref.conformance.transport.subject import unchanged
from flashref.conformance.vectors import published as vectors
from flashref.conformance.vectors.files import tensor_file
from flashref.conformance.vectors.published import SHIPPED, check_vectors, read_vectors
from flashref.types import FFN

shipped = vector_folders.shipped

# Binding requirements that no single call shows, and why; every other one must have a case.
NOT_IN_VECTORS = {
    "DEC-11": "a whole model, which is too large for a vector",
    "WIN-9": "that inputs stay as they are, and that equal inputs give equal results",
    "GTH-5": "that rows are copies",
}
HERE = Path(__file__).parent


@pytest.mark.req("VEC-1", "VEC-2", "VEC-11")
def test_the_shipped_files_are_what_the_definitions_give():
    assert check_vectors(SHIPPED, all_groups()) == []


@pytest.mark.ci
@pytest.mark.req("VEC-1")
def test_the_bytes_do_not_depend_on_the_process_or_on_hashing():
    program = (
        "import hashlib; from flashref.conformance.vectors.published import _bytes_of; "
        "from tools.vector_cases import all_groups; "
        "print(hashlib.sha256(repr(sorted(_bytes_of(all_groups()).items())).encode()).hexdigest())"
    )
    paths = os.pathsep.join(map(str, (HERE.parents[1], HERE.parent)))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
        )
        for seed in ("1", "4242")
    ]
    first, second = (process.communicate(timeout=60)[0] for process in running)
    due = repr(sorted(vectors._file_bytes(SHIPPED).items())).encode()
    assert first == second == hashlib.sha256(due).hexdigest().encode() + b"\n"


@pytest.mark.req("VEC-1")
def test_the_tensor_files_are_canonical_and_read_by_the_safetensors_library():
    paths = sorted(SHIPPED.glob("*/*.safetensors"))
    assert len(paths) > 20
    for path in paths:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        assert length % 8 == 0 and "__metadata__" not in header
        sizes = {"F64": 8, "F32": 4, "F16": 2, "U16": 2, "U8": 1}
        keys = [(-sizes[entry["dtype"]], name) for name, entry in header.items()]
        assert keys == sorted(keys)
        assert all(e["data_offsets"][0] % sizes[e["dtype"]] == 0 for e in header.values())
        assert tensor_file(safetensors.numpy.load_file(path)) == data


@pytest.mark.req("VEC-1")
def test_the_json_files_are_utf_8_with_short_lines_and_the_fields_in_order():
    for path in SHIPPED.glob("*/*.json"):
        text = path.read_bytes().decode()
        page = json.loads(text)
        assert text.startswith('{\n "schema"') and text.endswith("}\n") and "\t" not in text
        assert list(page) == ["schema", "spec", "operation", "case_count", "tensors", "notes", "cases"]
        assert all(list(case["arguments"]) == list(OPERATIONS[page["operation"]]) for case in page["cases"])


def test_they_are_many_and_small():
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(sizes) < 600_000 and len(read_vectors(SHIPPED)) >= 250


@pytest.mark.req("VEC-3")
def test_each_case_names_requirements_that_bind_everybody(shipped):
    known = requirements()
    for vector in shipped.values():
        assert vector.requirements and vector.flags and vector.comment.startswith("fails if "), vector.id
        for name in vector.requirements:
            of = known[name]
            assert of.testable and not of.reference_only, (vector.id, name)


@pytest.mark.req("VEC-3")
def test_each_requirement_that_a_call_can_show_has_a_case(shipped):
    cited = {name for vector in shipped.values() for name in vector.requirements}
    binding = {
        name
        for name, of in requirements().items()
        if of.testable and not of.reference_only and not name.startswith("IOP")
    }
    assert binding - cited == set(NOT_IN_VECTORS)


def test_each_operation_activation_dtype_and_kind_has_cases(shipped):
    by_operation = {}
    for vector in shipped.values():
        by_operation.setdefault(vector.operation, []).append(vector)
    assert set(by_operation) == set(OPERATIONS) - {"logits"}
    assert all(any(v.expectation.kind == "error" for v in of) for of in by_operation.values())
    for operation in ("dense_ffn", "sparse_ffn"):
        seen = {(v.arguments[1], v.arguments[4] is not None) for v in by_operation[operation]}
        assert {(name, gated) for name in arithmetic.ACTIVATIONS for gated in (False, True)} <= seen
        dtypes = {(v.expectation.kind, v.arguments[2].dtype.name) for v in by_operation[operation]}
        assert {
            (kind, d)
            for kind in ("bounded", "exact_but_for_zero_sign")
            for d in ("float32", "float16", "uint16")
        } <= dtypes
    kinds = {vector.expectation.kind for vector in shipped.values()}
    assert kinds == {"exact", "exact_but_for_zero_sign", "bounded", "either", "error"}


@pytest.mark.req("VEC-2")
def test_exact_cases_of_networks_are_within_the_dyadic_domain(shipped):
    def bits_of(ffn, x):
        arrays = [array for array in (x, *ffn) if isinstance(array, np.ndarray)]
        entries = [v for a in arrays for v in np.ravel(np.array(exact(a), object))]
        assert all(abs(entry) <= 1 for entry in entries)
        return max([Fraction(entry).denominator.bit_length() - 1 for entry in entries] + [0])

    judged = 0
    for vector in shipped.values():
        if vector.operation in ("dense_ffn", "sparse_ffn") and "dyadic" in vector.flags:
            x, ffn = vector.arguments[0], FFN(*vector.arguments[1:9])
            bits = bits_of(ffn, x)
            n, d = ffn.up.shape
            assert bounds.exact_on_dyadic(n, d, bits, ffn.activation, ffn.gate is not None), vector.id
            judged += 1
    assert judged > 60


@pytest.mark.req("VEC-4")
def test_bounds_are_those_of_chapter_90(shipped):
    judged = 0
    for vector in shipped.values():
        if vector.expectation.kind == "bounded" and vector.operation != "run_decode":
            x, ffn = vector.arguments[0], FFN(*vector.arguments[1:9])
            ffn = make.chosen_rows(ffn, vector.arguments[9].tolist() if len(vector.arguments) > 9 else None)
            formula = bound_by_formula(x, ffn, 2.0**-24)
            widened = bounds.ffn_bound(x, ffn)
            for low, bound, high in zip(formula, vector.expectation.bound, widened, strict=True):
                assert (
                    low <= Fraction(float(bound)) <= Fraction(float(high)) <= low * (1 + Fraction(1, 2**19))
                )
            judged += 1
    assert judged > 35


@pytest.mark.req("VEC-6")
def test_what_is_read_is_what_was_written(shipped):
    made = {vector.id: vector for group in all_groups() for vector in group.vectors}
    assert made.keys() == shipped.keys()
    for name, vector in shipped.items():
        assert unchanged(_contiguous(made[name][4]), vector.arguments), name
        assert unchanged(made[name].expectation, vector.expectation), name
        assert made[name]._replace(arguments=(), expectation=None) == vector._replace(
            arguments=(), expectation=None
        )


def _contiguous(value):
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value)
    return [_contiguous(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.req("VEC-2")
def test_a_case_depends_on_its_id_alone():
    assert unchanged(make.dyadic("a/x", (3,)), make.dyadic("a/x", (5,))[:3])
    assert not unchanged(make.dyadic("a/x", (5,)), make.dyadic("b/x", (5,)))
    word = int.from_bytes(hashlib.sha256(b"a/x:1").digest()[8:16], "little")
    assert [value for value, _ in zip(make.numbers("a/x"), range(6), strict=False)][5] == word
