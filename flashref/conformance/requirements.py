"""The requirements as the chapters state them: id, class, sentence, and whom they bind (chapter 00)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flashref
from flashref.types import FlashrefError

CLASSES = ("exact", "bounded", "unspecified", "informative")
_LINE = re.compile(r"^\*\*([A-Z]+-\d+)\*\* `\[(\w+)\]` (.*)$", re.M)
_REFERENCE_ONLY = "(reference only)"
_WHOLE_CHAPTER = "Every requirement of this chapter is *(reference only)*"


class Requirement(NamedTuple):
    """One numbered sentence. page: its file's name; reference_only: it binds flashref and nobody else."""

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
    """The folder of the chapters: in an installed package beside the code, in a checkout at its top."""
    package = Path(flashref.__file__).parent
    for folder in (package / "specs", package.parent / "specs"):
        if (folder / "00-conventions.md").is_file():
            return folder
    raise FlashrefError("the chapters of the spec are missing from this installation; install flashref again")


def requirements() -> Mapping[str, Requirement]:
    """Every requirement of every chapter by its id, in the order of the chapters."""
    found: dict[str, Requirement] = {}
    for page in sorted(specs_folder().glob("[0-9]*.md")):
        text = page.read_text(encoding="utf-8")
        for name, kind, sentence in _LINE.findall(text):
            if name in found or kind not in CLASSES:
                raise FlashrefError(f"{page.name}: {name} is there twice, or its class {kind} is unknown")
            mine = _WHOLE_CHAPTER in text or _REFERENCE_ONLY in sentence
            plain = sentence.replace(_REFERENCE_ONLY, "").strip()
            found[name] = Requirement(name, kind, plain, page.name, mine)
    return found
