"""The pages of the spec as this installation has them: found by a number, a name, or what they contain."""

import re
from collections.abc import Mapping

from flashref.conformance.requirements import requirements, specs_folder
from flashref.conformance.words import near
from flashref.types import FlashrefError

_DECISION = re.compile(r'^<a id="decision-(\d+)"></a>\n+(## .*?)\s*(?=^<a id=|\Z|^\[[^\]]+\]: )', re.M | re.S)


def chapters() -> Mapping[str, str]:
    """List the pages of the spec.

    Returns:
        Each page's name, such as 50-device → its title; chapters first, by their numbers.
    """
    pages = sorted(specs_folder().glob("*.md"), key=lambda page: (not page.stem[0].isdigit(), page.stem))
    return {page.stem: _page(page.stem).partition("\n")[0].lstrip("# ").strip() for page in pages}


def chapter_text(word: str) -> str:
    """Give a page of the spec, one requirement, or one decision.

    Args:
        word: a chapter's number (50), a page's name (50-device, glossary), a requirement's id (WIN-3), or a
            decision (decision-8); in any case.

    Returns:
        The page's Markdown; for a requirement its class and sentence; for a decision its section.

    Raises:
        FlashrefError: there is no such page, requirement or decision.
    """
    known, pages = requirements(), list(chapters())
    if (of := known.get(word.upper())) is not None:
        return f"{of.id} [{of.kind}]: {of.sentence}\n\n(`flashref spec {of.page[:2]}` shows its chapter.)\n"
    decisions = _decisions()
    if (name := re.sub(r"[\s_]+", "-", word.strip().lower())) in decisions:
        return decisions[name]
    numbers = {page.partition("-")[0]: page for page in pages if page[0].isdigit()}
    names = numbers | {page.lower(): page for page in pages}
    wanted = word.lower().removesuffix(".md")
    if (page := names.get(wanted.zfill(2), names.get(wanted))) is None:
        others = near(wanted, [*names, *known, *decisions])
        raise FlashrefError(f"the spec has no {word!r}{others}; `flashref spec` lists its pages")
    return _page(page)


def _page(name: str) -> str:
    return (specs_folder() / f"{name}.md").read_text(encoding="utf-8")


def _decisions() -> dict[str, str]:
    """The sections of the page of decisions: decision-8 → its Markdown."""
    return {f"decision-{number}": f"{text}\n" for number, text in _DECISION.findall(_page("decisions"))}
