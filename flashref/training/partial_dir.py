"""Keeps finished layers in a folder beside the output: the same command continues after an interrupt.

Every file in the folder appears whole or not at all, and none is ever changed. The folder is locked, so that
only one process at a time uses it.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from flashref.storage.container import read_container, tensor_array
from flashref.storage.files import locked_folder, save_file
from flashref.types import Array, ImageError

MADE_OF = "made_of.json"


def partial_dir_of(output: Path) -> Path:
    """The folder that keeps the finished layers of a fit.

    Args:
        output: the file NAME that will be written at the end.

    Returns:
        The path `.NAME.partial` beside it.
    """
    return output.with_name(f".{output.name}.partial")


@contextmanager
def open_partial_dir(output: Path, made_of: Mapping[str, object]) -> Iterator[Path]:
    """Open the folder beside a file, or make it, and lock it while the context lasts.

    Args:
        output: the file that will be written at the end.
        made_of: everything that the results depend on; the key is the option that decides it, such as
            `--steps`, or its name.

    Returns:
        The path of the folder.

    Raises:
        ImageError: another process has the folder, or the folder was made by a command with other options.
    """
    folder = partial_dir_of(output)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from None
    with locked_folder(folder) as ours:
        if not ours:
            raise ImageError(
                f"{folder}: another process is fitting predictors for {output.name} right now; wait until "
                "it has finished, or choose another file with --out"
            )
        _check_made_of(folder, made_of)
        yield folder


def load_part(partial_dir: Path, name: str) -> dict[str, Array] | None:
    """Load the arrays of a finished part.

    Args:
        partial_dir: the folder.
        name: the name of the part, such as `layer-3`.

    Returns:
        The arrays by name, or None if the part is not finished.

    Raises:
        ImageError: the part cannot be read.
    """
    path = partial_dir / f"{name}.safetensors"
    if not path.exists():
        return None
    try:
        container = read_container(path)
        return {each: tensor_array(container, each) for each in container.tensors}
    except ImageError as error:
        raise ImageError(f"{error}; or remove {partial_dir} and start again") from None


def save_part(partial_dir: Path, name: str, arrays: Mapping[str, Array]) -> None:
    """Save the arrays of a finished part into a file that appears whole or not at all.

    Args:
        partial_dir: the folder.
        name: the name of the part, such as `layer-3`.
        arrays: the arrays by name.

    Raises:
        ImageError: the file cannot be written.
    """
    contiguous = {each: np.ascontiguousarray(array) for each, array in arrays.items()}
    save_file(partial_dir / f"{name}.safetensors", save(contiguous))


def remove_partial_dir(partial_dir: Path) -> None:
    """Remove the folder: its file has been written, or the same command would only fail again."""
    shutil.rmtree(partial_dir)


def _check_made_of(folder: Path, made_of: Mapping[str, object]) -> None:
    """Write what a new folder is made of; ImageError if an existing folder is made of something else."""
    path, text = folder / MADE_OF, json.dumps(made_of, sort_keys=True, indent=1)
    try:
        begun = path.read_text() if path.exists() else None
    except OSError as error:
        raise _unusable(folder, error) from None
    if begun is None and not any(folder.glob("*.safetensors")):
        save_file(path, text.encode())
    elif begun != text:
        raise ImageError(
            f"{folder}: was begun {_difference(begun, json.loads(text))}; repeat that command, or remove the "
            "folder to start again"
        )


def _difference(begun: str | None, made_of: Mapping[str, object]) -> str:
    """How the command that made the folder differs from this one, such as "with --steps 3000, not 200"."""
    try:
        before = dict(json.loads(begun or ""))
    except (ValueError, TypeError):
        return "with something else"
    found = []
    for name in dict.fromkeys([*made_of, *before]):
        if before.get(name) == made_of.get(name):
            continue
        if not name.startswith("--"):
            found.append(f"with another {name}")
        elif name not in before:
            found.append(f"without {name}")
        else:
            now = f", not {made_of[name]}" if name in made_of else ""
            found.append(f"with {name} {before[name]}{now}")
    return " and ".join(found)


def _unusable(folder: Path, error: OSError) -> ImageError:
    return ImageError(f"{folder}: cannot be made or read ({error.strerror}); choose another file with --out")
