"""Chapter 94: files of vectors are read as they were written, in C too, and damaged ones refused."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import vector_folders
from tools.vector_cases import make
from vector_folders import first, flipped, in_text, rewritten, with_other_tensors

from flashref.conformance.transport.subject import unchanged
from flashref.conformance.vectors.files import Vector, VectorError, VectorGroup, group_files
from flashref.conformance.vectors.published import SHIPPED, check_vectors, read_vectors

shipped = vector_folders.shipped
folder = vector_folders.folder

READER = Path(__file__).parents[1] / "support" / "vector_reader.c"


@pytest.fixture
def one_group(tmp_path):
    """A folder with the two files that the damages are about."""
    (tmp_path / "v1" / "sparse_ffn").mkdir(parents=True)
    for path in SHIPPED.glob("sparse_ffn/dyadic.*"):
        shutil.copy(path, tmp_path / "v1" / "sparse_ffn")
    return tmp_path / "v1"


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
    group = VectorGroup("read_plan", "odd", "1.1", {"gap": {"catches": "", "effect": ""}}, made)
    for name, data in group_files(group).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for vector, again in zip(made, read_vectors(tmp_path), strict=True):
        assert unchanged(vector.arguments, again.arguments)
        assert unchanged(vector.expectation, again.expectation)
        assert isinstance(again, Vector) and again.comment == vector.comment


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
