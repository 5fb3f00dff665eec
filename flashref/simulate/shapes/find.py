"""The shape of a model, by the name of a preset or from the config.json of any model."""

import os
from pathlib import Path

from flashref.models.checkpoint import TINY
from flashref.models.config import parse_object
from flashref.simulate.shapes.presets import CONFIGS, preset_shape
from flashref.simulate.shapes.shape import ModelShape, shape_of_config
from flashref.types import DomainError, ImageError


def find_shape(model: str | os.PathLike[str], dtype: str | None = None) -> ModelShape:
    """Find the shape of a model.

    Args:
        model: the name of a preset, "tiny" for the shipped model, or a config.json or the folder that has
            one.
        dtype: F32, F16 or BF16; None for the one that the config.json names, or F16 for a preset.

    Returns:
        The shape.

    Raises:
        DomainError: there is neither such a preset nor such a file, or the model is not supported.
        ImageError: the file is not a config.json.
    """
    name = os.fspath(model)
    if name in CONFIGS:
        return preset_shape(name, dtype or "F16")
    path = TINY if name == TINY.name else Path(name)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise DomainError(
            f"--model {name}: there is neither such a config.json nor such a preset; give the path of a "
            f"config.json, or one of tiny, {', '.join(CONFIGS)}"
        )
    values = parse_object(path.read_bytes(), str(path))
    try:
        return shape_of_config(values, name, dtype)
    except (DomainError, ImageError) as error:
        raise type(error)(f"{path}: {error}") from None
