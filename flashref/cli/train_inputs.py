"""What `flashref train` reads: a text in the model's tokens, and what tells the model from others."""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.models.checkpoint import Checkpoint
from flashref.models.tokens import open_tokenizer, read_text
from flashref.storage.image import fingerprint
from flashref.storage.progress import Progress
from flashref.types import DomainError


class Text(NamedTuple):
    """A text as the model has it, and its SHA-256 in UTF-8."""

    ids: npt.NDArray[np.int32]
    sha256: str


def open_text(path: Path, checkpoint: Checkpoint) -> Text:
    """A text in the model's tokens. Raises DomainError for ids that the model does not have."""
    vocabulary = checkpoint.config.vocabulary
    text = read_text(path)
    ids = np.array(open_tokenizer(checkpoint.directory, vocabulary).encode(text), np.int32)
    if len(ids) and int(ids.max()) >= vocabulary:
        raise DomainError(f"{path}: has token {ids.max()}, outside the model's vocabulary of {vocabulary}")
    return Text(ids, sha256(text.encode()).hexdigest())


def identify(checkpoint: Checkpoint, advance: Progress) -> str:
    """The checkpoint's fingerprint."""
    return fingerprint(checkpoint.tensors, checkpoint.config_text, advance)
