"""A model's shape by the name of a preset, or from the config.json of any model."""

import os
from pathlib import Path

from flashref.models.checkpoint import TINY
from flashref.models.config import parse_object
from flashref.simulate.shapes.presets import CONFIGS, preset_shape
from flashref.simulate.shapes.shape import ModelShape, shape_of_config
from flashref.types import DomainError, ImageError


def find_shape(model: str | os.PathLike[str], dtype: str | None = None) -> ModelShape:
    """The shape of a model.

    Args:
        model: a preset's name, "tiny" for the shipped model, a config.json or the folder that has one.
        dtype: F32, F16 or BF16, of the weights; None for the config's own, which is F16 for a preset.

    Raises:
        DomainError: there is neither such a preset nor such a file, or the model is not supported.
        ImageError: the file is no config.json.
    """
    name = os.fspath(model)
    if name in CONFIGS:
        return preset_shape(name, dtype or "F16")
    path = TINY if name == TINY.name else Path(name)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise DomainError(
            f"--model {name}: neither a config.json nor a preset; use one of tiny, {', '.join(CONFIGS)}"
        )
    values = parse_object(path.read_bytes(), str(path))
    try:
        return shape_of_config(values, name, dtype)
    except (DomainError, ImageError) as error:
        raise type(error)(f"{path}: {error}") from None
