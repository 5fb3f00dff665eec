"""Every page reads well as rendered, and every link and citation leads to what it names."""

from pathlib import Path

import pytest
from page_checks import (
    anchors,
    complaints,
    glued_requirements,
    leftovers,
    pages_from,
    passages,
    read_spec,
    unfenced_examples,
    wide_rows,
)

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "specs"
KIT = ROOT / "flashref" / "conformance" / "README.md"
PAGES = pages_from(ROOT, [ROOT / "README.md", KIT, ROOT / "tests" / "README.md", *SPECS.rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_reads_well_and_its_links_lead_somewhere(page):
    assert complaints(page, ROOT, read_spec(SPECS)) == []


def test_pages_that_others_link_are_found():
    assert {ROOT / "tests" / "mutants" / "table.md", SPECS / "decisions.md"} < set(PAGES)


def test_the_front_page_of_the_spec_leads_to_every_page_of_it():
    front = (SPECS / "README.md").read_text()
    linked = {target.partition("#")[0] for passage in passages(front) for _, target in passage.links}
    assert {path.name for path in SPECS.glob("*.md")} - {"README.md"} <= linked


# --- The checks themselves ---


def test_pages_are_found_inside_the_repository_only(tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    (tmp_path / "outside.md").write_text("# Outside\n")
    (root / "README.md").write_text("[in](second.md#there) [out](../outside.md) [code](code.py)\n")
    (root / "second.md").write_text("[first](README.md) [absent](third.md)\n")
    (root / "code.py").write_text("")
    assert pages_from(root, [root / "README.md"]) == [root / "README.md", root / "second.md"]


WINDOW = """# 30 The window

<a id="WIN-1"></a>**WIN-1** `[exact]` A window MUST be empty at first.

## `window_update(window, active)`
"""


@pytest.fixture
def write(tmp_path):
    """write(text): what is wrong with a page of this text, in a repository with a chapter and a decision."""
    specs = tmp_path / "specs"
    specs.mkdir()
    (specs / "30-window.md").write_text(WINDOW)
    (specs / "decisions.md").write_text('<a id="decision-8"></a>\n\n## 8 Capacity\n')
    (specs / "a page.md").write_text("# A page\n")
    (specs / "code.py").write_text("# A comment\n")
    (tmp_path.parent / "outside.md").write_text("# Outside of the repository\n")

    def complaints_of(text, name="80-decode.md"):
        (specs / name).write_text(text)
        return complaints(specs / name, tmp_path, read_spec(specs))

    return complaints_of


def test_a_good_page_is_left_alone(write):
    links = "[chapter 30]: 30-window.md\n[Decision 8]: decisions.md#decision-8\n[WIN-1]: 30-window.md#WIN-1\n"
    text = (
        "[Decision 8] of [chapter 30], in [WIN-1], is chapter 80's; CRC-32 and `chapter 99` are not cited.\n"
    )
    table = "| a | b |\n|---|---|\n| \\|x\\| | |\n| `>>> 1` |\n"
    elsewhere = "[here](#80-here), [there](30-window.md#window_updatewindow-active), <https://arxiv.org>\n"
    elsewhere += "[space](a%20page.md#a-page), [CRC-32](https://zlib.net)\n"
    heading, comment = "# 80 Here\n\n## As in chapter 30\n", "A <!-- chapter 30 --> comment.\n"
    examples = "```python\n>>> 1\n1\n\n```\n\nIndented:\n\n    >>> 1\n"
    assert write("\n".join([heading, text, comment, table, elsewhere, examples, links])) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("See chapter 30.", "no link: chapter 30"),
        ("See chapter\n30.", "no link: chapter 30"),
        ("See Decisions 8 and more.", "no link: Decisions 8"),
        ("> Why WIN-1: because.", "no link: WIN-1"),
        ('<a id="DEC-1"></a>**DEC-1** `[exact]` As in WIN-1.', "no link: WIN-1"),
        ("[chapter 31](30-window.md)", "does not exist: chapter 31"),
        ("Chapter 31 says so.", "does not exist: Chapter 31"),
        ("[decision 8](decisions.md#decision-80)", "decision 8 leads to decisions.md#decision-80"),
        ("[decision 9](decisions.md#decision-8)", "does not exist: decision 9"),
        ("[chapter 30](decisions.md)", "chapter 30 leads to decisions.md"),
        ("[WIN-1](30-window.md)", "WIN-1 leads to 30-window.md"),
        ("[page](31-window.md)", "no such file: 31-window.md"),
        ("[page](../../outside.md)", "no such file: ../../outside.md"),
        ("[code](code.py#a-comment)", "no such anchor: code.py#a-comment"),
        ("[page](30-window.md#WIN-2)", "no such anchor: 30-window.md#WIN-2"),
        ("![figure](figure.png)", "no such file: figure.png"),
        ("[page][page]\n\n[page]: #nowhere", "no such anchor: #nowhere"),
        (">>> 2", "not fenced: >>> 2"),
        ("**DEC-1** `[exact]` One.", "not one requirement behind its anchor: **DEC-1** `[exact]` One."),
        ("| a |\n|---|\n| 1 | 2 |", "more cells than the header: | 1 | 2 |"),
    ],
)
def test_what_is_wrong_with_a_page_is_named(write, text, complaint):
    assert complaint in write(text)


def test_outside_the_spec_a_citation_needs_no_link(tmp_path, write):
    write("")
    page = tmp_path / "README.md"
    page.write_text("See chapter 30.")
    assert complaints(page, tmp_path, read_spec(tmp_path / "specs")) == []


@pytest.mark.parametrize(
    "line", ["<<<<<<< HEAD", "||||||| base", "=======", ">>>>>>> branch", "Here @@NAME@@ follows."]
)
def test_what_an_unfinished_edit_left_is_named(write, line):
    [complaint] = leftovers(f"# Here\n\nA line.\n\n{line}\n")
    assert complaint.endswith(line)
    assert complaint in write(line)


def test_underlines_quotations_and_code_are_no_leftovers():
    assert leftovers("Here\n====\n\n> > > Quoted.\n\n`@@ -1 +1 @@`\n\n```diff\n@@ -1 +1 @@\n```\n") == []


def test_an_example_outside_a_fence_is_named():
    assert unfenced_examples("```python\n>>> 1\n1\n\n```\n\n>>> 2\n2\n") == ["not fenced: >>> 2"]


@pytest.mark.parametrize(
    "text",
    [
        '<a id="A-1"></a>**A-1** `[exact]` One.\n<a id="A-2"></a>**A-2** `[exact]` Two.\n',
        '<a id="A-1"></a>**A-1** `[exact]` One. **A-2** `[exact]` Two.\n',
        "**A-1** `[exact]` Without an anchor.\n",
        '<a id="A-2"></a>**A-1** `[exact]` Behind the anchor of another.\n',
        '<a id="A-1"></a>**A-1** `[exact]` On more\nthan one line.\n',
    ],
)
def test_a_requirement_that_is_no_paragraph_behind_its_anchor_is_named(text):
    assert len(glued_requirements(text)) == 1


def test_a_row_with_more_cells_than_its_header_is_named():
    assert wide_rows("| a | b |\n|---|---|\n| 1 | `x | y` |\n| 1 | x \\| y |\n") == [
        "more cells than the header: | 1 | `x | y` |"
    ]


def test_anchors_are_ids_and_githubs_slugs():
    headings = "# A, B & `c_d(e)`\n\n## Twice\n\n## Twice\n\n"
    assert anchors(headings + '<a id="X-1"></a>**X-1**\n\n<a id="y"></a>\n\n`id="no"`\n') == {
        "a-b--c_de",
        "twice",
        "twice-1",
        "X-1",
        "y",
    }
