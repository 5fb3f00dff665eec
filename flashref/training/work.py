"""What a fit has done so far, in a folder beside its file, so that a second start goes on where one ended."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

from flashref.storage.container import read_container, tensor_array
from flashref.storage.files import create_file, write_all
from flashref.types import Array, ImageError

MADE_OF = "made_of.json"


class Work(NamedTuple):
    """The folder; each file in it appeared whole, and none is ever changed."""

    folder: Path


def open_work(output: Path, made_of: Mapping[str, object]) -> Work:
    """The folder `.NAME.partial` beside a file, new or found. made_of: all that the results depend on.

    Raises ImageError if what is found was made of something else: that is said, and never mixed.
    """
    work = Work(output.with_name(f".{output.name}.partial"))
    path, text = work.folder / MADE_OF, json.dumps(made_of, sort_keys=True, indent=1)
    try:
        work.folder.mkdir(exist_ok=True)
        begun = path.read_text() if path.exists() else None
    except OSError as error:
        raise ImageError(
            f"{work.folder}: cannot be made or read ({error.strerror}); give another place with --out"
        ) from None
    if begun is None and not any(work.folder.glob("*.safetensors")):
        _create(path, text.encode())
    elif begun != text:
        raise ImageError(
            f"{work.folder}: was begun with another model, text or options{_differing(begun, made_of)}; "
            "repeat that command, or remove the folder"
        )
    return work


def kept(work: Work, name: str) -> dict[str, Array] | None:
    """The arrays of a finished piece of work, or None. Raises ImageError if they cannot be read."""
    path = work.folder / f"{name}.safetensors"
    if not path.exists():
        return None
    try:
        container = read_container(path)
        return {each: tensor_array(container, each) for each in container.tensors}
    except ImageError as error:
        raise ImageError(f"{error}; or remove {work.folder} and begin again") from None


def keep(work: Work, name: str, arrays: Mapping[str, Array]) -> None:
    """Keep the arrays of a finished piece of work, whole or not at all."""
    contiguous = {each: np.ascontiguousarray(array) for each, array in arrays.items()}
    _create(work.folder / f"{name}.safetensors", save(contiguous))


def close_work(work: Work) -> None:
    """Remove the folder: its file is written."""
    shutil.rmtree(work.folder)


def _create(path: Path, content: bytes) -> None:
    with create_file(path, len(content)) as descriptor:
        write_all(descriptor, np.frombuffer(content, np.uint8), 0)


def _differing(begun: str | None, made_of: Mapping[str, object]) -> str:
    """Which of the things differ, where that is known."""
    try:
        before, now = json.loads(begun or ""), json.loads(json.dumps(made_of))
        names = [name for name in now if before.get(name) != now[name]]
    except (ValueError, AttributeError):
        return ""
    return f" ({', '.join(names)})" if names else ""
