"""`flashref spec`: it lists the pages, prints one, or one requirement."""

import json

import pytest

from flashref.cli import main
from flashref.conformance.chapters import chapters
from flashref.conformance.requirements import requirements, specs_folder


def shown(capsys, *words):
    code = main(["spec", *words])
    return code, *capsys.readouterr()


def test_without_a_word_it_lists_every_page(capsys):
    code, out, _ = shown(capsys)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(chapters())
    assert set(chapters()) == {page.stem for page in specs_folder().glob("*.md")}
    assert json.loads(shown(capsys, "--json")[1]) == chapters()


@pytest.mark.parametrize("word", ["50", "50-device", "50-DEVICE.md"])
def test_a_chapter_is_printed_whole(capsys, word):
    text = (specs_folder() / "50-device.md").read_text(encoding="utf-8")
    assert shown(capsys, word) == (0, text, "")


def test_a_page_without_a_number_is_found_by_its_name(capsys):
    assert shown(capsys, "changelog")[1] == (specs_folder() / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_requirement_is_printed_with_its_chapter(capsys):
    sentence = requirements()["WIN-3"].sentence
    due = f"WIN-3 [exact]: {sentence}\n\n(`flashref spec 30` shows its chapter.)\n"
    assert shown(capsys, "win-3") == (0, due, "")
    assert json.loads(shown(capsys, "win-3", "--json")[1]) == {"win-3": due}


def test_a_decision_is_printed_by_its_number(capsys):
    section = shown(capsys, "decision-8")[1]
    assert section.startswith("## 8 Capacity, bypass and memory budget\n\n**Question:** ")
    assert section.rstrip().endswith("most n.") and "<a id=" not in section
    assert shown(capsys, "Decision 8")[1] == section


def test_a_chapter_is_found_without_its_zero(capsys):
    assert shown(capsys, "5") == shown(capsys, "05-arithmetic")


@pytest.mark.parametrize(
    ("word", "near"),
    [("51", "; near it are "), ("WIN-99", "WIN-9"), ("decision-99", "decision-9"), ("zzzz", "")],
)
def test_an_unknown_page_is_one_sentence(capsys, word, near):
    code, out, err = shown(capsys, word)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"flashref spec: the spec has no {word!r}") and near in err
    assert err.endswith("; `flashref spec` lists its pages\n")
