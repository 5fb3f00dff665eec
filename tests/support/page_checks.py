"""What a reader of a page would stumble over, once a GitHub-flavoured renderer has shown it."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
REQUIREMENT = re.compile(r'<a id="([A-Z]+-\d+)"></a>\*\*\1\*\* `\[\w+\]` .+')

CONFLICT = re.compile(r"(<{7}|\|{7}|={7}|>{7})( |$)")


class Spec(NamedTuple):
    """What can be cited: numbers of chapters and decisions, and areas of requirements such as "WIN"."""

    chapters: dict[int, str]  # number → name of the file
    decisions: set[int]
    areas: set[str]


class Passage(NamedTuple):
    """A paragraph, heading or cell: the text that is neither code nor link, and the links (text, target)."""

    source: str
    heading: bool
    prose: str
    links: list[tuple[str, str]]


def read_spec(folder: Path) -> Spec:
    """What the pages in a folder define."""
    chapters = {int(path.name[:2]): path.name for path in folder.glob("[0-9][0-9]-*.md")}
    ids = [re.findall(r'<a id="([A-Z]+)-\d+">', (folder / name).read_text()) for name in chapters.values()]
    numbers = re.findall(r'<a id="decision-(\d+)">', (folder / "decisions.md").read_text())
    return Spec(chapters, {int(number) for number in numbers}, set().union(*ids))


def pages_from(root: Path, starts: list[Path]) -> list[Path]:
    """These pages and every Markdown file of the repository to which they lead, by name."""
    found, new = set(), {path.resolve() for path in starts}
    while new:
        found |= new
        targets = {
            (page.parent / target.partition("#")[0]).resolve()
            for page in new
            for passage in passages(page.read_text())
            for _, target in passage.links
            if target.partition("#")[0].endswith(".md") and ":" not in target
        }
        new = {path for path in targets - found if path.is_file() and path.is_relative_to(root)}
    return sorted(found)


def complaints(page: Path, root: Path, spec: Spec) -> list[str]:
    """Everything that is wrong with one page, a sentence each; none if it reads well."""
    text = page.read_text()
    found = [*leftovers(text), *unfenced_examples(text), *glued_requirements(text), *wide_rows(text)]
    for passage in passages(text):
        found += [why for _, target in passage.links if (why := dead_link(page, target, root))]
        found += [why for shown, target in passage.links if (why := misdirected_link(shown, target, spec))]
        found += unknown_citations(passage, spec)
        if page.parent == root / "specs" and not passage.heading:
            found += unlinked_citations(passage, page.name, spec)
    return found


def passages(text: str) -> Iterator[Passage]:
    """Every paragraph, heading and cell of a page."""
    tokens = MARKDOWN.parse(text)
    for before, token in pairwise(tokens):
        if token.type == "inline":
            yield _passage(token, before.type == "heading_open")


def _passage(inline: Token, heading: bool) -> Passage:
    prose, links = "", []
    target = None
    for child in inline.children or []:
        if child.type == "link_open":
            target, shown = str(child.attrs["href"]), ""
        elif child.type == "link_close":
            links.append((shown, target))
            target, prose = None, prose + "…"
        elif child.type == "image":
            links.append((child.content, str(child.attrs["src"])))
        else:
            words = " " if child.type == "softbreak" else child.content
            if target is not None:
                shown += words
            elif child.type != "html_inline":
                prose += "…" if child.type == "code_inline" else words
    return Passage(inline.content, heading, prose, links)


def leftovers(text: str) -> list[str]:
    """What an unfinished edit left: conflict markers, and @@, which marks what is still to be written."""
    lines = [f"conflict marker: {line}" for line in text.splitlines() if CONFLICT.match(line)]
    return lines + [f"left over: {passage.source}" for passage in passages(text) if "@@" in passage.prose]


def unfenced_examples(text: str) -> list[str]:
    """Lines that begin with >>> outside of code: three nested quotations to a renderer."""
    code = {
        number
        for token in MARKDOWN.parse(text)
        if token.type in ("fence", "code_block")
        for number in range(*token.map)
    }
    lines = enumerate(text.splitlines())
    return [f"not fenced: {line}" for n, line in lines if n not in code and line.lstrip().startswith(">>>")]


def glued_requirements(text: str) -> list[str]:
    """Paragraphs that hold a requirement and are not exactly one, on one line, behind its anchor."""
    found = []
    for passage in passages(text):
        ids = re.findall(r"\*\*[A-Z]+-\d+\*\*", passage.source)
        if ids and not (len(ids) == 1 and REQUIREMENT.fullmatch(passage.source)):
            found.append(f"not one requirement behind its anchor: {passage.source}")
    return found


def wide_rows(text: str) -> list[str]:
    """Rows of tables with more cells than their header: a renderer drops what is too much."""
    lines, found = text.splitlines(), []
    for token in MARKDOWN.parse(text):
        if token.type == "table_open":
            header, _, *rows = lines[slice(*token.map)]
            found += [f"more cells than the header: {row}" for row in rows if _cells(row) > _cells(header)]
    return found


def _cells(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", re.sub(r"^[\s>]*\||(?<!\\)\|\s*$", "", row))) + 1


def anchors(text: str) -> set[str]:
    """Every anchor of a page: explicit ids, and GitHub's slugs of the headings."""
    tokens = MARKDOWN.parse(text)
    html = [token.content for token in tokens if token.type == "html_block"]
    slugs: list[str] = []
    for before, token in pairwise(tokens):
        children = token.children or []
        html += [child.content for child in children if child.type == "html_inline"]
        if before.type == "heading_open":
            title = "".join(child.content for child in children if child.type in ("text", "code_inline"))
            slugs.append(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
    numbered = [f"{slug}-{n}" if (n := slugs[:i].count(slug)) else slug for i, slug in enumerate(slugs)]
    return {*numbered, *re.findall(r'\bid="([^"]+)"', " ".join(html))}


def dead_link(page: Path, target: str, root: Path) -> str | None:
    """Why a link of the repository leads nowhere; None if it leads somewhere, or out of the repository."""
    if re.match(r"[a-z]+:", target):
        return None
    name, _, anchor = unquote(target).partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.is_relative_to(root) or not path.exists():
        return f"no such file: {target}"
    if anchor and (path.suffix != ".md" or anchor not in anchors(path.read_text())):
        return f"no such anchor: {target}"
    return None


def misdirected_link(shown: str, target: str, spec: Spec) -> str | None:
    """Why a link whose whole text is a citation leads to something else."""
    cited = re.fullmatch(r"(?:(chapter|decision) (\d+)|([A-Z]+-\d+))", shown, re.I)
    if cited is None or (cited[3] and cited[3].partition("-")[0] not in spec.areas):
        return None
    word, number = (cited[1] or "").lower(), int(cited[2] or 0)
    if word == "chapter":
        ends = spec.chapters.get(number, "no chapter")
    else:
        ends = f"#decision-{number}" if word else f"#{cited[3]}"
    return None if target.endswith(ends) else f"{shown} leads to {target}"


def unknown_citations(passage: Passage, spec: Spec) -> list[str]:
    """Chapters and decisions that are named, as a link or not, and do not exist."""
    text = " ".join([passage.prose, *(shown for shown, _ in passage.links)])
    known = {"chapter": set(spec.chapters), "decision": spec.decisions}
    cited = re.findall(r"\b((chapter|decision)s? (\d+))\b", text, re.I)
    return [f"does not exist: {words}" for words, kind, n in cited if int(n) not in known[kind.lower()]]


def unlinked_citations(passage: Passage, name: str, spec: Spec) -> list[str]:
    """Citations that are no links; a requirement need not link itself, nor a chapter itself."""
    areas = "|".join(sorted(spec.areas))
    cited = re.findall(rf"\b((?:{areas})-\d+|(?:chapter|decision)s? \d+)\b", passage.prose, re.I)
    requirement = REQUIREMENT.fullmatch(passage.source)
    itself = {requirement and requirement[1], f"chapter {name[:2]}"}
    return [f"no link: {words}" for words in cited if words not in itself]
