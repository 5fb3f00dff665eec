"""The values of a config.json, read and checked one by one.

A key whose value is null counts as left out. The exception is a flag whose default is true: transformers
takes null for false there, so it is refused.
"""

from collections.abc import Mapping
from typing import Any

from flashref.types import DomainError, ImageError

SMALLEST, LARGEST = 2.0**-126, 2.0**127  # the numbers that float32 computes with

Values = Mapping[str, Any]  # a parsed config.json

ACTIVATIONS: Mapping[str, str] = {  # Hugging Face's name, and the name in FFN.activation
    "relu": "relu",
    "relu2": "squared_relu",
    "fatrelu": "fatrelu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def text(values: Values, key: str, default: str | None = None) -> str:
    """Read a name, or the default where the key is left out; ImageError if it is not a text."""
    _, value = _given(values, (key,), default)
    if not isinstance(value, str):
        raise ImageError(f"config.json has {key} {value!r}; it must be a name")
    return value


def count(values: Values, *keys: str, default: int | None = None) -> int:
    """Read a count, at least 1, from the first of these keys that is given, or the default; or ImageError."""
    if default is not None and all(values.get(key) is None for key in keys):
        return default
    key, value = _given(values, keys, None)
    if type(value) is not int or not 1 <= value < 2**63:
        raise ImageError(f"config.json has {key} {value!r}; it must be a positive integer of 64 bits")
    return value


def flag(values: Values, key: str, default: bool) -> bool:
    """Read true or false, or the default where the key is left out; ImageError if it is neither."""
    value = values.get(key, default)
    if value is None and not default:
        return False
    if not isinstance(value, bool):
        raise ImageError(f"config.json has {key} {value!r}; it must be true or false")
    return value


def positive(values: Values, key: str, default: float | None = None) -> float:
    """Read a number above 0 within float32, or the default; ImageError if it is none."""
    _, value = _given(values, (key,), default)
    if type(value) not in (int, float) or not SMALLEST <= value <= LARGEST:
        raise ImageError(f"config.json has {key} {value!r}; it must be a number above 0 within float32")
    return float(value)


def activation(values: Values, key: str, default: str | None = None) -> tuple[str, float]:
    """Read an activation: its name in FFN.activation, and FATReLU's tau (hidden_act_param), else 0.

    Raises:
        ImageError: a value is missing or wrong.
        DomainError: the activation is not known.
    """
    name = text(values, key, default)
    if name not in ACTIVATIONS:
        raise DomainError(f"config.json has {key} {name!r}; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name], positive(values, "hidden_act_param") if name == "fatrelu" else 0.0


def _given(values: Values, keys: tuple[str, ...], default: Any) -> tuple[str, Any]:
    """Find the first of these keys that is given, and its value; without a default, one must be given."""
    for key in keys:
        if values.get(key) is not None:
            return key, values[key]
    if default is None:
        raise ImageError(f"config.json lacks {' or '.join(keys)}; give the whole config.json of the model")
    return keys[0], default
