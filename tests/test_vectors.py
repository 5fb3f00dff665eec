"""Chapter 94: the vectors are right and can be read; damaged files are refused, and wrong results found."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from vector_mutants import MUTANTS

from flashref import cli, numerics
from flashref.conformance import reference, vectors
from flashref.conformance.adapter import OPERATIONS, Unsupported
from flashref.conformance.definitions import bound_by_formula, exact
from flashref.conformance.requirements import requirements
from flashref.conformance.subject import Breach, InProcess, unchanged
from flashref.conformance.vector_cases import all_groups, make
from flashref.conformance.vector_files import Group, Vector, VectorError, group_files, tensor_file
from flashref.conformance.vectors import (
    SHIPPED,
    append_vectors,
    check_vectors,
    export_vectors,
    judge_vector,
    read_vectors,
)
from flashref.types import FFN

# Binding requirements that no single call shows, and why; every other one must have a case.
NOT_IN_VECTORS = {
    "DEC-11": "a whole model, which is too large for a vector",
    "WIN-9": "that inputs stay as they are, and that equal inputs give equal results",
    "GTH-5": "that rows are copies",
}
HERE = Path(__file__).parent
READER = HERE / "vector_reader.c"


@pytest.fixture(scope="module")
def shipped():
    return {vector.id: vector for vector in read_vectors(SHIPPED)}


@pytest.fixture
def one_group(tmp_path):
    """A folder with the two files that the damages are about."""
    (tmp_path / "v1" / "sparse_ffn").mkdir(parents=True)
    for path in SHIPPED.glob("sparse_ffn/dyadic.*"):
        shutil.copy(path, tmp_path / "v1" / "sparse_ffn")
    return tmp_path / "v1"


@pytest.fixture
def folder(tmp_path):
    export_vectors(tmp_path / "v1")
    return tmp_path / "v1"


def subject_with(**functions):
    return InProcess(SimpleNamespace(**{**vars(reference), **functions}))


# What the files hold


@pytest.mark.req("VEC-1", "VEC-2", "VEC-11")
def test_the_shipped_files_are_what_the_definitions_give():
    assert check_vectors(SHIPPED) == []


@pytest.mark.req("VEC-1")
def test_the_bytes_do_not_depend_on_the_process_or_on_hashing():
    program = (
        "import hashlib; from flashref.conformance.vectors import _bytes_of, _groups; "
        "print(hashlib.sha256(repr(sorted(_bytes_of(_groups()).items())).encode()).hexdigest())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(HERE.parent)},
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
        assert {(name, gated) for name in numerics.ACTIVATIONS for gated in (False, True)} <= seen
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
            assert numerics.exact_on_dyadic(n, d, bits, ffn.activation, ffn.gate is not None), vector.id
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
            widened = numerics.ffn_bound(x, ffn)
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


# Judging


@pytest.mark.req("VEC-7")
def test_the_reference_passes(shipped):
    subject = InProcess(reference)
    for vector in shipped.values():
        judge_vector(subject, vector)


@pytest.mark.req("VEC-7", "VEC-8")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_implementation_fails(name, shipped):
    functions = MUTANTS[name]
    subject, failed, passed = subject_with(**functions), [], 0
    for vector in shipped.values():
        if vector.operation in functions:
            try:
                judge_vector(subject, vector)
                passed += 1
            except Breach as breach:
                failed.append((vector, breach))
    assert passed and any(breach.kind == "fail" for _, breach in failed)  # and not by breaking everything
    for vector, breach in failed:
        assert str(breach).startswith(f"{vector.id}: ") and str(breach).endswith(f"The case {vector.comment}")


@pytest.mark.req("VEC-9")
def test_what_is_not_claimed_is_not_asked(shipped):
    def asked(subject):
        count = 0
        for vector in shipped.values():
            with contextlib.suppress(Unsupported):
                judge_vector(subject, vector)
                count += 1
        return count

    everything = asked(InProcess(reference))
    assert everything == len(shipped)
    assert 0 < asked(subject_with(dtypes={"F16"})) < everything
    assert 0 < asked(subject_with(max_elements=12)) < everything
    assert asked(subject_with(flushes_subnormals=True)) == everything - 2
    without = {name: None for name in OPERATIONS if name != "read_plan"}
    reasons = dict.fromkeys(without, "it has none")
    only_plans = asked(subject_with(**without, unsupported=reasons))
    assert only_plans == sum(vector.operation == "read_plan" for vector in shipped.values())


@pytest.mark.req("VEC-9")
@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"dtypes": {"F32", "BF16"}}, "sparse_ffn/dyadic/tail_of_33"),
        ({"dtypes": {"F16"}}, "run_decode/window/of_one_token"),
        ({"dtypes": {"F16"}}, "gather_rows/images/every_id"),
        ({"max_elements": 32}, "unpack_bundles/patterns/F16_edges"),
        ({"max_elements": 800}, "dense_ffn/bounded/n16_d64_F16"),
        ({"flushes_subnormals": True}, "dense_ffn/bounded/subnormal_BF16"),
        ({"flushes_subnormals": True}, "dense_ffn/bounded/subnormal_F32"),
    ],
)
def test_one_case_beyond_what_is_claimed(facts, name, shipped):
    if facts == {"max_elements": 32}:
        judge_vector(subject_with(**facts), shipped[name])  # 4 · 8: just as many
        facts = {"max_elements": 31}
    with pytest.raises(Unsupported):
        judge_vector(subject_with(**facts), shipped[name])


@pytest.mark.req("VEC-9")
def test_a_withdrawn_case_is_not_asked(shipped):
    vector = shipped["read_plan/plans/touching"]._replace(withdrawn="it was wrong")
    with pytest.raises(Unsupported, match="it was wrong"):
        judge_vector(subject_with(read_plan=lambda *of: 1 / 0), vector)


@pytest.mark.req("VEC-8")
def test_a_refusal_and_a_result_in_the_wrong_place(shipped):
    def refuses(*of):
        raise ValueError("not today")

    with pytest.raises(Breach, match=r"refused arguments that are valid \(ValueError: not today\)"):
        judge_vector(subject_with(read_plan=refuses), shipped["read_plan/plans/touching"])
    judge_vector(subject_with(read_plan=refuses), shipped["read_plan/refusals/block_of_three"])
    with pytest.raises(Breach, match="accepted what must be refused"):
        judge_vector(subject_with(read_plan=lambda *of: []), shipped["read_plan/refusals/block_of_three"])


@pytest.mark.req("VEC-7")
def test_a_bound_is_shown_with_its_numbers_and_met_exactly(shipped):
    vector = shipped["dense_ffn/bounded/n61_d13_F32"]
    y, bound = vector.expectation.result, vector.expectation.bound
    inside = np.nextafter((y + bound).astype(np.float32), np.float32(-np.inf))
    judge_vector(subject_with(dense_ffn=lambda *of: inside), vector)
    judge_vector(subject_with(dense_ffn=lambda *of: np.float32(y)), vector)
    outside = np.nextafter(inside, np.float32(np.inf))
    with pytest.raises(Breach, match=r" is 1(\.0\d)? times the bound"):
        judge_vector(subject_with(dense_ffn=lambda *of: np.nextafter(outside, np.float32(np.inf))), vector)
    wrong = np.float32(y)
    wrong[3] += np.float32(3 * bound[3])
    wrong[5] += np.float32(8 * bound[5])
    with pytest.raises(Breach) as caught:
        judge_vector(subject_with(dense_ffn=lambda *of: wrong), vector)
    text = str(caught.value)
    assert f"element 5 is {float(wrong[5]).hex()}, exactly it is {float(y[5]).hex()}" in text
    assert "times the bound" in text and vector.comment in text
    with pytest.raises(Breach, match="element 0 is nan"):
        judge_vector(subject_with(dense_ffn=lambda *of: np.full_like(wrong, np.nan)), vector)


@pytest.mark.req("VEC-7")
def test_only_a_zero_may_have_either_sign(shipped):
    vector = shipped["dense_ffn/dyadic/zeros_of_both_signs"]
    for zero in (0.0, -0.0):
        judge_vector(subject_with(dense_ffn=lambda *of, zero=zero: np.full(2, zero, np.float32)), vector)
    with pytest.raises(Breach, match=r"element 1 is 0x1.0000000000000p-149, 0x0.0p\+0 was due"):
        judge_vector(subject_with(dense_ffn=lambda *of: np.float32([0, 2.0**-149])), vector)

    def without_signs(*of):
        return [matrix + np.float16(0) for matrix in reference.unpack_bundles(*of)]

    rows = shipped["unpack_bundles/patterns/F16_edges"]
    with pytest.raises(Breach):  # stored weights keep their zeros' signs
        judge_vector(subject_with(unpack_bundles=without_signs), rows)


@pytest.mark.req("VEC-7")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda must, may: must[1:], "misses the ids"),
        (lambda must, may: np.arange(12), "has the ids"),
        (lambda must, may: must[::-1], "not strictly ascending"),
        (lambda must, may: np.sort(np.concatenate([must, must[:1]])), "not strictly ascending"),
        (lambda must, may: must, None),
        (lambda must, may: np.union1d(must, may), None),
    ],
)
def test_within_a_band_either_answer_is_right(change, text, shipped):
    bands = [vector for vector in shipped.values() if vector.expectation.kind == "either"]
    vector = next(vector for vector in bands if 1 < len(vector.expectation.must) < 10)
    answer = change(vector.expectation.must, vector.expectation.may)
    subject = subject_with(predict_active=lambda *of: answer)
    if text is None:
        return judge_vector(subject, vector)
    with pytest.raises(Breach, match=text):
        judge_vector(subject, vector)


@pytest.mark.req("VEC-10")
def test_slots_in_another_order_and_counters_left_out_pass(shipped):
    def newest_first(capacity, placement, deltas, rows):
        """swap_with_last, but new rows are appended with the largest id first."""
        order, of, steps = [], {}, []
        for (load, evict, _), new in zip(deltas, rows, strict=True):
            of |= dict(zip(load.tolist(), new, strict=True))
            count = len(order) - len(evict)
            tail = [neuron for neuron in order[count:] if neuron not in evict]
            moved = len(tail)
            order = [tail.pop() if neuron in evict else neuron for neuron in order[:count]]
            order += sorted(load.tolist(), reverse=True)
            matrix = np.stack([of[neuron] for neuron in order]) if order else new[:0]
            steps.append([order, matrix, moved])
        return steps

    def some_counters(*of):
        ys, counters = reference.run_decode(*of)
        return ys, {name: counters[name] for name in ("loaded", "requests")}

    def wrong_counter(*of):
        ys, counters = reference.run_decode(*of)
        return ys, {"moved_rows": counters["evicted"] + 1}

    in_order = InProcess(reference)
    other_order, differing = subject_with(run_slots=newest_first), 0
    for vector in shipped.values():
        if vector.id.startswith("run_slots/swap_with_last/"):
            judge_vector(other_order, vector)
            moved = [
                [step[2] for step in s.call("run_slots", *vector.arguments)] for s in (in_order, other_order)
            ]
            differing += moved[0] != moved[1]
    assert differing > 3
    slots = shipped["run_slots/swap_with_last/every_second_row_leaves"]
    with pytest.raises(Breach):  # rows under other ids
        judge_vector(
            subject_with(run_slots=lambda *of: [[i, r[::-1], m] for i, r, m in reference.run_slots(*of)]),
            slots,
        )
    for name in ("run_decode/window/of_one_token", "run_decode/bounded/silu_F32"):
        judge_vector(subject_with(run_decode=some_counters), shipped[name])
        with pytest.raises(Breach, match="counter moved_rows is"):
            judge_vector(subject_with(run_decode=wrong_counter), shipped[name])
        with pytest.raises(Breach, match="element 0, "):
            judge_vector(
                subject_with(run_decode=lambda *of: (reference.run_decode(*of)[0] + 1, {})), shipped[name]
            )


# Damaged files


def page_of(folder, name="sparse_ffn/dyadic"):
    path = folder / f"{name}.json"
    return path, json.loads(path.read_text())


def rewritten(change, name="sparse_ffn/dyadic"):
    """A tampering: the page as `change` leaves it."""

    def tamper(folder):
        path, page = page_of(folder, name)
        change(page)
        path.write_text(json.dumps(page))

    return tamper


def in_text(old, new, name="sparse_ffn/dyadic"):
    def tamper(folder):
        path = folder / f"{name}.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return tamper


def flipped(folder):
    path = folder / "sparse_ffn/dyadic.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def with_other_tensors(change):
    """The tensors changed, and signed again."""

    def tamper(folder):
        path, page = page_of(folder)
        tensors = safetensors.numpy.load_file(path.with_suffix(".safetensors"))
        change(tensors)
        data = tensor_file(tensors)
        path.with_suffix(".safetensors").write_bytes(data)
        page["tensors"]["sha256"] = hashlib.sha256(data).hexdigest()
        path.write_text(json.dumps(page))

    return tamper


def first(page):
    return page["cases"][0]


REFUSED = {
    "a byte of the tensors flipped": (flipped, "another SHA-256"),
    "the tensors cut": (lambda folder: os.truncate(folder / "sparse_ffn/dyadic.safetensors", 3000),
                        "another SHA-256"),
    "the tensors missing": (lambda folder: (folder / "sparse_ffn/dyadic.safetensors").unlink(),
                            "there is no dyadic.safetensors"),
    "the JSON missing": (lambda folder: (folder / "sparse_ffn/dyadic.json").unlink(),
                         "its tensors are there"),
    "a case missing": (rewritten(lambda page: page["cases"].pop()),
                       "says that it has 25 cases, but it has 24"),
    "a case count too small": (rewritten(lambda page: page.update(case_count=24)),
                               "says that it has 24 cases, but it has 25"),
    "a case count that is no number": (rewritten(lambda page: page.update(case_count=True)),
                                       "says that it has True"),
    "no cases": (rewritten(lambda page: page.update(case_count=0, cases=[], tensors=None)), "has 0 cases"),
    "an unknown field of the head": (rewritten(lambda page: page.update(comment="")),
                                     "its head has the unknown fields comment"),
    "a missing field of the head": (rewritten(lambda page: page.pop("spec")),
                                    "its head lacks the fields spec"),
    "an unknown field of a case": (rewritten(lambda page: first(page).update(tolerance=1)),
                                   "a case has the unknown fields tolerance"),
    "a missing field of a case": (rewritten(lambda page: first(page).pop("comment")),
                                  "a case lacks the fields comment"),
    "an unknown field of what is expected": (rewritten(lambda page: first(page)["expect"].update(bound=None)),
                                             "unknown fields bound"),
    "an unknown field of a signature": (rewritten(lambda page: page["tensors"].update(md5="")),
                                        "unknown fields md5"),
    "an unknown kind": (rewritten(lambda page: first(page)["expect"].update(kind="acceptable")),
                        "unknown kind 'acceptable'"),
    "a kind without its field": (rewritten(lambda page: first(page)["expect"].update(kind="bounded")),
                                 "lacks the fields bound"),
    "an argument missing": (rewritten(lambda page: first(page)["arguments"].pop("tau")),
                            "lacks the fields tau"),
    "an argument too many": (rewritten(lambda page: first(page)["arguments"].update(eps=1)),
                             "unknown fields eps"),
    "a flag without a note": (rewritten(lambda page: page["notes"].pop("dyadic")),
                              "flags without a note: dyadic"),
    "another schema": (rewritten(lambda page: page.update(schema="flashref-vectors-v2")),
                       "flashref-vectors-v2"),
    "another operation": (rewritten(lambda page: page.update(operation="dense_ffn")),
                          "in the folder 'sparse_ffn'"),
    "an unknown operation": (rewritten(lambda page: page.update(operation="walk")), "'walk'"),
    "an id twice": (rewritten(lambda page: page["cases"][1].update(id=first(page)["id"])), "there twice"),
    "an id of another file": (rewritten(lambda page: first(page).update(id="sparse_ffn/other/x")),
                              "another file"),
    "another tensor file": (rewritten(lambda page: page["tensors"].update(file="../bounded.safetensors")),
                            "must be dyadic.safetensors"),
    "a tensor that is not there": (rewritten(lambda page: first(page)["arguments"].update(x={"tensor": "y"})),
                                   "'y', which"),
    "a tensor of no case": (with_other_tensors(lambda tensors: tensors.update(lost=np.zeros(1, np.float32))),
                            "of no case: lost"),
    "a field twice": (in_text('"case_count": 25', '"case_count": 25, "case_count": 25'),
                      "names a field twice"),
    "a decimal float": (in_text('{"float": "0x0.0p+0"}', "0.0"), "holds the number 0.0"),
    "NaN": (in_text('{"float": "0x0.0p+0"}', "NaN"), "holds the number NaN"),
    "a float that is none": (in_text('{"float": "0x0.0p+0"}', '{"float": "zero"}'), "encodes no float"),
    "an id that is none": (in_text("[0, 3, 4, 6]", '[0, "3"]'), "something else than whole numbers"),
    "an id that is true": (in_text("[0, 3, 4, 6]", "[true]"), "something else than whole numbers"),
    "an id beyond 64 bits": (in_text("[0, 3, 4, 6]", '[{"integer": "9223372036854775808"}]'), "is damaged"),
    "a shape that does not fit": (in_text("[0, 3, 4, 6]}", '[0, 3, 4, 6], "shape": [3]}'), "is damaged"),
    "an array with more": (in_text("[0, 3, 4, 6]}", '[0, 3, 4, 6], "dtype": "I32"}'), "unknown fields"),
    "half a file": (lambda folder: os.truncate(folder / "sparse_ffn/dyadic.json", 5000), "is damaged"),
    "no UTF-8": (lambda folder: (folder / "sparse_ffn/dyadic.json").write_bytes(b'{"\xff": 1}'),
                 "is damaged"),
    "no object": (lambda folder: (folder / "sparse_ffn/dyadic.json").write_text("[]"), "dyadic.json"),
    "no cases' list": (rewritten(lambda page: page.update(cases=7)), "dyadic.json"),
    "a case that is none": (rewritten(lambda page: page["cases"].__setitem__(0, 7)), "dyadic.json"),
}  # fmt: skip


@pytest.mark.req("VEC-5")
@pytest.mark.parametrize("what", REFUSED)
def test_a_damaged_file_is_refused_by_name(what, one_group):
    tamper, text = REFUSED[what]
    tamper(one_group)
    with pytest.raises(VectorError) as caught:
        read_vectors(one_group)
    assert text in str(caught.value) and "dyadic" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.req("VEC-5")
def test_a_folder_without_vectors_is_refused(tmp_path):
    with pytest.raises(VectorError, match="holds no vectors"):
        read_vectors(tmp_path)


@pytest.mark.req("VEC-11")
def test_what_can_be_read_and_is_wrong_is_reported(folder):
    in_text("[0, 3, 4, 6]", "[0, 3, 4, 5]")(folder)
    with_other_tensors(lambda tensors: tensors.update({"tail_of_33/x": -tensors["tail_of_33/x"]}))(folder)
    (folder / "read_plan" / "plans.json").unlink()
    (folder / "notes.txt").write_text("")
    assert {line.split(": ")[0].removeprefix(f"{folder}/") for line in check_vectors(folder)} == {
        "sparse_ffn/dyadic.json", "sparse_ffn/dyadic.safetensors", "read_plan/plans.json", "notes.txt",
    }  # fmt: skip
    assert any(line.endswith("plans.json: is missing") for line in check_vectors(folder))
    assert any("first at byte" in line for line in check_vectors(folder))


# Exporting and appending


@pytest.mark.req("VEC-12")
def test_an_export_is_whole_and_overwrites_nothing(folder, tmp_path):
    assert vectors._file_bytes(folder) == vectors._file_bytes(SHIPPED)
    (tmp_path / "empty").mkdir()
    assert export_vectors(tmp_path / "empty") == len(vectors._file_bytes(SHIPPED))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for taken in (folder, tmp_path / "file", tmp_path / "full"):
        with pytest.raises(VectorError, match="is not empty"):
            export_vectors(taken)
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.req("VEC-12", "VEC-13")
@pytest.mark.parametrize("write", [export_vectors, append_vectors])
def test_a_full_disk_leaves_nothing_half_written(write, tmp_path, monkeypatch):
    written, write_bytes = [], Path.write_bytes

    def full(path, data):
        written.append(path)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "v1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.req("VEC-12", "VEC-13")
def test_a_failed_rename_leaves_what_was_there(folder, monkeypatch):
    before, replace = vectors._file_bytes(folder), os.replace

    def failing(source, target):
        if Path(source).suffix == ".part":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input"):
        append_vectors(folder)
    assert vectors._file_bytes(folder) == before and list(folder.parent.iterdir()) == [folder]


@pytest.fixture
def regenerated(monkeypatch):
    """A function that makes the definitions give other cases of read_plan/plans."""

    def use(change):
        groups = [
            group._replace(vectors=change(list(group.vectors))) if group.name == "plans" else group
            for group in all_groups()
        ]
        monkeypatch.setattr(vectors, "_groups", lambda: tuple(groups))

    return use


def altered(**fields):
    return lambda cases: [cases[0], cases[1]._replace(**fields), *cases[2:]]


@pytest.mark.req("VEC-13")
@pytest.mark.parametrize(
    "change",
    [
        lambda cases: cases[:-1],
        altered(id="read_plan/plans/renamed"),
        altered(arguments=(np.int64([[4095, 2]]), 4096, 0)),
        altered(arguments=(np.int64([[4095, 1]]), 4096, 1)),
        lambda cases: [*cases[:1], cases[1]._replace(expectation=cases[2].expectation), *cases[2:]],
    ],
)
def test_a_published_case_cannot_change(change, folder, regenerated):
    regenerated(change)
    before = vectors._file_bytes(folder)
    with pytest.raises(VectorError, match="is published and would change"):
        append_vectors(folder)
    assert vectors._file_bytes(folder) == before


@pytest.mark.req("VEC-13")
def test_cases_are_appended_and_withdrawn(folder, regenerated):
    def grown(cases):
        new = cases[1]._replace(id="read_plan/plans/new", comment="fails if it is old")
        return [cases[0], cases[1]._replace(withdrawn="it asks too much"), *cases[2:], new]

    regenerated(grown)
    append_vectors(folder)
    assert check_vectors(folder) == []
    read = {vector.id: vector for vector in read_vectors(folder)}
    assert len(read) == len(read_vectors(SHIPPED)) + 1
    assert read["read_plan/plans/new"].comment == "fails if it is old"
    assert read["read_plan/plans/one_byte"].withdrawn == "it asks too much"
    assert not any(path.name.startswith(".") for path in folder.parent.iterdir())
    regenerated(lambda cases: [*grown(cases)[:1], cases[1], *grown(cases)[2:]])
    with pytest.raises(VectorError, match="one_byte"):  # what is withdrawn stays so
        append_vectors(folder)


@pytest.mark.req("VEC-12", "VEC-13")
def test_a_folder_with_something_else_is_not_replaced(folder, tmp_path):
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(VectorError, match=r"mine\.txt"):
        append_vectors(folder)
    assert (folder / "mine.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(VectorError, match="holds no vectors"):
        append_vectors(tmp_path / "other")


@pytest.mark.req("VEC-6")
def test_every_kind_of_value_is_read_as_it_was_written(tmp_path):
    values = [
        (np.int64([[2**62, -(2**60)], [0, 2**53 + 1]]), 2**70, -(2**53) - 1),
        (np.zeros((0, 2), np.int64), 2**53, 0),
        (np.int64([]), float("-inf"), float("nan")),
        (np.float16([[-0.0, 2.0**-24]]), 0.1, "text"),
        (np.zeros((2, 0), np.uint16), None, True),
        (np.float64([1e300, -0.0]), [np.uint8([7]), [np.float32([1.5])]], {"a": np.int64([1]), "b": -0.0}),
    ]
    made = [
        make.vector(
            f"read_plan/odd/{i}", "PLN-1", "gap", 'fails if "it" \\ fails', of, make.exactly(list(of))
        )
        for i, of in enumerate(values)
    ]
    group = Group("read_plan", "odd", "1.1", {"gap": {"catches": "", "effect": ""}}, made)
    for name, data in group_files(group).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for vector, again in zip(made, read_vectors(tmp_path), strict=True):
        assert unchanged(vector.arguments, again.arguments)
        assert unchanged(vector.expectation, again.expectation)
        assert isinstance(again, Vector) and again.comment == vector.comment


# The command line, and a reader in C


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


def test_without_the_test_extra_one_sentence_says_so(folder):
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


def reader_of(program):
    return lambda folder: subprocess.run(
        [program, *sorted(folder.glob("*/*.json"))], capture_output=True, text=True, timeout=60
    )


def test_a_reader_in_c_needs_no_python(compile_c, folder, shipped):
    read = reader_of(compile_c(READER))
    done = read(folder)
    judged = sum(v.operation in ("dense_ffn", "sparse_ffn", "run_window") for v in shipped.values())
    skipped = len(shipped) - judged
    assert done.stdout == f"{judged} cases judged, 0 failed, {skipped} of other operations skipped\n"
    assert done.returncode == 0
    rewritten(lambda page: page["cases"].pop())(folder)
    lost = read(folder)
    assert lost.returncode == 2 and "cases are missing" in lost.stderr


def test_a_reader_in_c_finds_a_planted_bug(compile_c, folder):
    done = reader_of(compile_c(READER, "-DDROP_LAST_NEURON"))(folder)
    assert done.returncode == 1 and "sparse_ffn/dyadic/last_neuron_only: wrong." in done.stdout
