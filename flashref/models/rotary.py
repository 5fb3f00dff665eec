"""Rotary positions as a config.json asks for them, scaled for longer contexts or not.

Frequencies are rounded to float32 at every step, as transformers computes them and the models were trained.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flashref.models.config_values import Values, count, flag, positive, text
from flashref.models.parts import Rotary
from flashref.types import DomainError, ImageError

Frequencies = npt.NDArray[np.float32]
Shares = npt.NDArray[np.float64]

KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
LARGEST_HEAD = 1 << 16  # larger heads in a config.json are refused, so that no huge array is made


def rotary_from(values: Values, head_size: int, context: int, share: float = 1.0) -> Rotary:
    """Read the rotary positions of a config.json: its rope_parameters, or rope_theta and rope_scaling.

    Args:
        values: the parsed config.json.
        head_size: the values of a head.
        context: the model's context.
        share: the share of a head's values that is turned where partial_rotary_factor is not given.

    Raises:
        ImageError: a value is missing or wrong.
        DomainError: the kind of scaling is not known.
    """
    given = _parameters(values)
    kind = text(given, "rope_type", text(given, "type", "default"))
    base = positive(given, "rope_theta", 10_000.0)
    if base <= 1:
        raise ImageError(f"config.json has rope_theta {base:g}; it must be above 1")
    plain = _plain(_turned(head_size, positive(given, "partial_rotary_factor", share)), base)
    if kind in ("default", "dynamic"):  # dynamic scales beyond the context only, and no text is longer
        return _rotary(plain)
    if kind == "linear":
        return _rotary(plain / np.float32(positive(given, "factor")))
    context = count(given, "original_max_position_embeddings", default=context)
    if kind == "llama3":
        return _rotary(_stretched(plain, given, _kept_by_llama3(plain, given, context)))
    if kind == "yarn":
        stretched = _stretched(plain, given, _kept_by_yarn(2 * len(plain), given, context, base))
        return _rotary(stretched, _yarn_scale(given))
    raise DomainError(f"config.json scales rotary positions by {kind!r}; use one of {', '.join(KINDS)}")


def whole_rotary_from(values: Values, head_size: int, context: int) -> Rotary:
    """Read the rotary positions of a family that turns whole heads; DomainError for a part of a head."""
    rotary = rotary_from(values, head_size, context)
    if 2 * len(rotary.frequencies) != head_size:
        raise DomainError(
            "config.json turns only a part of each head, which no "
            f"{text(values, 'model_type').capitalize()} does; remove partial_rotary_factor"
        )
    return rotary


def _parameters(values: Values) -> dict[str, Any]:
    """Find rope_parameters, or rope_scaling of older files, with the keys that stand beside it."""
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    part = values.get(key)
    if part is None:
        part = {}
    if not isinstance(part, Mapping):
        raise ImageError(f"config.json has {key} {part!r}; it must be an object")

    def beside(*keys: str) -> dict[str, Any]:
        return {key: values[key] for key in keys if values.get(key) is not None}

    # In transformers' order: original_max_position_embeddings beside the part overrides the one in it.
    return (
        beside("rope_theta", "partial_rotary_factor") | {**part} | beside("original_max_position_embeddings")
    )


def _turned(head_size: int, share: float) -> int:
    """Return the number of values of a head that are turned."""
    if head_size > LARGEST_HEAD:
        raise ImageError(f"config.json has heads of {head_size} values; correct it, at most {LARGEST_HEAD}")
    size = int(head_size * share)
    if not 0 < size <= head_size or size % 2:
        raise ImageError(
            f"config.json turns {size} of the {head_size} values of a head, which must be an even number of "
            "at least 2; correct partial_rotary_factor, or the number of heads"
        )
    return size


def _plain(size: int, base: float) -> Frequencies:
    """Compute base ** (−2 i / size), each of its three steps rounded to float32."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.float32(1) / (base ** exponents.astype(np.float64)).astype(np.float32)


def _rotary(frequencies: Frequencies, scale: float = 1.0) -> Rotary:
    return Rotary(tuple(frequencies.tolist()), scale)


def _stretched(plain: Frequencies, given: Values, kept: Shares) -> Frequencies:
    """Divide each frequency by the factor, except for the share of it that is kept."""
    share = kept.astype(np.float32)
    return plain / np.float32(positive(given, "factor")) * (1 - share) + plain * share


def _kept_by_llama3(plain: Frequencies, given: Values, context: int) -> Shares:
    """Keep frequencies that turn often within the context, and none that turn rarely."""
    low, high = (positive(given, key) for key in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise ImageError(
            f"config.json has low_freq_factor {low:g}, not below high_freq_factor {high:g}; correct it"
        )
    turns = context * plain.astype(np.float64) / (2 * math.pi)
    return np.clip((turns - low) / (high - low), 0, 1)


def _kept_by_yarn(size: int, given: Values, context: int, base: float) -> Shares:
    """Keep the first pairs whole, the last not at all, and shares between beta_fast and beta_slow."""

    def index(turns: float) -> float:
        return size * (math.log(context) - math.log(turns) - math.log(2 * math.pi)) / (2 * math.log(base))

    low, high = index(positive(given, "beta_fast", 32.0)), index(positive(given, "beta_slow", 1.0))
    if flag(given, "truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = float(max(low, 0)), float(min(high, size - 1))
    stretched: Shares = np.clip((np.arange(size // 2) - low) / (high - low or 0.001), 0, 1)
    return 1 - stretched


def _yarn_scale(given: Values) -> float:
    """Compute the factor of sine and cosine: attention_factor, or YaRN's own, or a ratio of two of these."""
    if given.get("attention_factor") is not None:
        return positive(given, "attention_factor")
    longer = math.log(max(positive(given, "factor"), 1))
    if given.get("mscale") and given.get("mscale_all_dim"):
        above, below = (0.1 * positive(given, key) * longer + 1 for key in ("mscale", "mscale_all_dim"))
        return above / below
    return 0.1 * longer + 1
