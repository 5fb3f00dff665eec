"""The pages of the spec as this installation has them, found by number, by name or by a requirement."""

import difflib
from collections.abc import Mapping

from flashref.conformance.requirements import requirements, specs_folder
from flashref.types import FlashrefError


def chapters() -> Mapping[str, str]:
    """The title of every page by its name, such as 50-device; chapters first, by their numbers."""
    pages = sorted(specs_folder().glob("*.md"), key=lambda page: (not page.stem[0].isdigit(), page.stem))
    titles = {}
    for page in pages:
        first = page.read_text(encoding="utf-8").partition("\n")[0]
        titles[page.stem] = first.lstrip("# ").strip()
    return titles


def chapter_text(word: str) -> str:
    """A page of the spec, or one requirement.

    Args:
        word: a chapter's number (50), a page's name (50-device, decisions) or a requirement's id (WIN-3), in
            any case.

    Returns:
        The page's Markdown; of a requirement, its class and sentence.

    Raises:
        FlashrefError: there is no such page and no such requirement.
    """
    known, pages = requirements(), list(chapters())
    if (of := known.get(word.upper())) is not None:
        return f"{of.id} [{of.kind}]: {of.sentence}\n(`flashref spec {of.page[:2]}` shows its chapter.)\n"
    numbers = {page.partition("-")[0]: page for page in pages if page[0].isdigit()}
    names = numbers | {page.lower(): page for page in pages}
    if (page := names.get(word.lower().removesuffix(".md"))) is None:
        near = difflib.get_close_matches(word.lower(), [*names, *map(str.lower, known)], 3, 0.4)
        also = f"; near it are {', '.join(near)}" if near else ""
        raise FlashrefError(f"the spec has no {word!r}{also}; `flashref spec` lists its pages")
    return (specs_folder() / f"{page}.md").read_text(encoding="utf-8")
