"""The requirements as the chapters state them: id, class, sentence, and whom they bind (chapter 00)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flashref
from flashref.types import FlashrefError

CLASSES = ("exact", "bounded", "unspecified", "informative")
# A paragraph of one line: <a id="WIN-3"></a>**WIN-3** `[exact]` After each token …
_PARAGRAPH = re.compile(r'^<a id="([A-Z]+-\d+)"></a>\*\*\1\*\* `\[(\w+)\]` (.*)$', re.M)
# A citation is a link by reference, [ACC-9]. Other brackets, such as [offset, offset + length), are no links.
_CITATION = re.compile(r"\[([A-Z]+-\d+|chapter \d+|decision \d+)\]")
_REFERENCE_ONLY = "(reference only)"
_WHOLE_CHAPTER = "Every requirement of this chapter is *(reference only)*"


class Requirement(NamedTuple):
    """One numbered requirement of a chapter.

    Attributes:
        id: such as "WIN-3".
        kind: its class, one of CLASSES.
        sentence: as a reader sees it, without links and without "(reference only)".
        page: the name of the chapter's file.
        reference_only: whether it binds flashref and nobody else.
    """

    id: str
    kind: str
    sentence: str
    page: str
    reference_only: bool

    @property
    def testable(self) -> bool:
        """Whether a test can decide it."""
        return self.kind in ("exact", "bounded")


def specs_folder() -> Path:
    """Find the folder of the chapters: in an installed package beside the code, in a checkout at its top."""
    package = Path(flashref.__file__).parent
    for folder in (package / "specs", package.parent / "specs"):
        if (folder / "00-conventions.md").is_file():
            return folder
    raise FlashrefError("the chapters of the spec are missing from this installation; install flashref again")


def requirements() -> Mapping[str, Requirement]:
    """Read every requirement of every chapter.

    Returns:
        Id → requirement, in the order of the chapters.

    Raises:
        FlashrefError: the chapters are missing, an id stands twice, or a class is unknown.
    """
    found: dict[str, Requirement] = {}
    for page in sorted(specs_folder().glob("[0-9]*.md")):
        text = page.read_text(encoding="utf-8")
        for name, kind, sentence in _PARAGRAPH.findall(text):
            if name in found or kind not in CLASSES:
                raise FlashrefError(f"{page.name}: {name} is there twice, or its class {kind} is unknown")
            mine = _WHOLE_CHAPTER in text or _REFERENCE_ONLY in sentence
            plain = _CITATION.sub(r"\1", sentence).replace(_REFERENCE_ONLY, "").strip()
            found[name] = Requirement(name, kind, plain, page.name, mine)
    return found
