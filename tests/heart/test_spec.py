"""The spec and the code say the same: ids, headings, functions, tests."""

import importlib
import inspect
import re

import pytest
from conftest import CITED

from flashref.conformance.requirements import requirements, specs_folder

HEADING = re.compile(r"^## `(\w+)\(", re.M)
MODULE = re.compile(r"^Module: \[`flashref/(\S+)\.py`\]", re.M)
CHAPTERS = sorted(specs_folder().glob("[0-9]*.md"))


@pytest.fixture
def cited(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    if request.config.args != request.config.getini("testpaths") or request.config.option.keyword:
        pytest.skip("only a whole collection knows what is tested")
    return request.config.stash[CITED]


def test_every_testable_requirement_is_tested(cited):
    testable = {name for name, requirement in requirements().items() if requirement.testable}
    assert testable
    assert testable - set(cited) == set()


def test_every_cited_requirement_exists(cited):
    assert set(cited) - set(requirements()) == set()


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_headings_are_the_public_functions_of_the_module(page):
    [name] = MODULE.findall(page.read_text())
    module = importlib.import_module("flashref." + name.replace("/", "."))
    public = {
        attribute
        for attribute, value in vars(module).items()
        if inspect.isroutine(value) and value.__module__ == module.__name__ and not attribute.startswith("_")
    }
    headings = HEADING.findall(page.read_text())
    assert len(headings) == len(set(headings))
    assert set(headings) == public


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_module_names_the_requirements_of_its_chapter(page):
    text = page.read_text()
    [name] = MODULE.findall(text)
    module = importlib.import_module("flashref." + name.replace("/", "."))
    [line] = re.findall(r"^Satisfies: (.*)\.$", module.__doc__ or "", re.M)
    named = set()
    for area, first, last in re.findall(r"([A-Z]+)-(\d+)(?: to \1-(\d+))?", line):
        named |= {f"{area}-{i}" for i in range(int(first), int(last or first) + 1)}
    assert named == {name for name, requirement in requirements().items() if requirement.page == page.name}


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_every_chapter_has_an_example_that_runs(page):
    assert ">>> " in page.read_text()


def test_a_quoted_sentence_has_no_links_and_keeps_other_brackets():
    sentences = {name: requirement.sentence for name, requirement in requirements().items()}
    assert sentences["FFN-1"].startswith("For dyadic inputs (ACC-9) the result MUST equal")
    assert "the sum of chapter 10 over the chosen neurons" in sentences["DEC-2"]
    assert "the bytes [offset, offset + length) of the image" in sentences["RDR-1"]
    assert [name for name, sentence in sentences.items() if re.search(r"\[[A-Z]+-\d+\]", sentence)] == []


def test_no_requirement_says_that_nothing_must():
    """By RFC 2119 "no row MUST move" leaves it open whether a row may; say "a row MUST NOT move"."""
    unclear = re.compile(r"(?<!to )\b(no|none|nothing|nobody|at most)\b[^,;:]*\bMUST\b", re.I)
    sentences = {name: requirement.sentence for name, requirement in requirements().items()}
    assert [name for name, sentence in sentences.items() if unclear.search(sentence)] == []


def test_capitals_of_rfc_2119_stand_in_requirements_only():
    for page in CHAPTERS:
        for line in page.read_text().splitlines():
            if re.search(r"\b(MUST|SHOULD|MAY|SHALL)\b", line):
                assert line.startswith('<a id="'), f"{page.name}: {line}"
