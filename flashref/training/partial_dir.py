"""What a fit has done so far, in a folder beside its file, so that a second start goes on where one ended.

Every file in the folder appears whole, and none is ever changed. One process at a time has the folder.
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
    """The folder `.NAME.partial` beside a file."""
    return output.with_name(f".{output.name}.partial")


@contextmanager
def open_partial_dir(output: Path, made_of: Mapping[str, object]) -> Iterator[Path]:
    """The folder beside a file, new or found, which nobody else gets meanwhile.

    Args:
        output: the file that will be written at the end.
        made_of: all that the results depend on, by the option that decides it (`--steps`) or by its name.

    Raises:
        ImageError: another process has the folder, or what was found was made of something else.
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
                "it is done, or give another place with --out"
            )
        _check_made_of(folder, made_of)
        yield folder


def load_part(partial_dir: Path, name: str) -> dict[str, Array] | None:
    """The arrays of a finished part, or None if it is not there.

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
        raise ImageError(f"{error}; or remove {partial_dir} and begin again") from None


def save_part(partial_dir: Path, name: str, arrays: Mapping[str, Array]) -> None:
    """Keep the arrays of a finished part, whole or not at all."""
    contiguous = {each: np.ascontiguousarray(array) for each, array in arrays.items()}
    save_file(partial_dir / f"{name}.safetensors", save(contiguous))


def remove_partial_dir(partial_dir: Path) -> None:
    """Remove the folder, because its file is written, or because the same command would fail again."""
    shutil.rmtree(partial_dir)


def _check_made_of(folder: Path, made_of: Mapping[str, object]) -> None:
    """Write what a new folder is made of; ImageError if a folder that was found is of something else."""
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
            "folder"
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
    return ImageError(f"{folder}: cannot be made or read ({error.strerror}); give another place with --out")
