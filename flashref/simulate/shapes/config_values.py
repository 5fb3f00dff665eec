"""The values of a config.json, read and checked one by one."""

from collections.abc import Mapping
from typing import Any

from flashref.types import ImageError

Values = Mapping[str, Any]  # a parsed config.json


def text(values: Values, key: str, default: str) -> str:
    """A name, or the default. Raises ImageError."""
    value = values.get(key, default)
    if not isinstance(value, str):
        raise ImageError(f"config.json has {key} {value!r}; it must be a name")
    return value


def count(values: Values, *keys: str, default: int | None = None) -> int:
    """The first of these keys that is given and not null, ≥ 1, or the default. Raises ImageError."""
    for key in keys:
        value = values.get(key)
        if value is not None:
            if type(value) is not int or value < 1:
                raise ImageError(f"config.json has {key} {value!r}; it must be a positive integer")
            return value
    if default is None:
        raise ImageError(f"config.json lacks {' or '.join(keys)}; give the whole config.json of the model")
    return default


def flag(values: Values, key: str, default: bool) -> bool:
    """True or false, or the default. Raises ImageError."""
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise ImageError(f"config.json has {key} {value!r}; it must be true or false")
    return value
