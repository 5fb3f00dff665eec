"""config.json: parsed, and read by the family of models that it names."""

import json
from collections.abc import Mapping
from typing import Any

from flashref.models.config_values import text
from flashref.models.families import FAMILIES
from flashref.models.family import Config
from flashref.types import DomainError, ImageError


def parse_config(source: str) -> Config:
    """Read the text of a config.json.

    Args:
        source: the text, from a checkpoint's folder or from an image's metadata.

    Raises:
        ImageError: it is not JSON, or lacks a value, or has a wrong one.
        DomainError: the model is not supported.
    """
    # A lone surrogate passes here; parse_object refuses it like everything else that is not UTF-8.
    values = parse_object(source.encode("utf-8", "surrogatepass"), "config.json")
    family = text(values, "model_type")
    if family not in FAMILIES:
        raise DomainError(
            f"config.json has model_type {family!r}, which is not supported; use one of {', '.join(FAMILIES)}"
        )
    if values.get("quantization_config") is not None:
        raise DomainError(
            "config.json has a quantization_config, and quantised weights are not read; "
            "give the checkpoint from which they were made"
        )
    config = FAMILIES[family].config_from(values)
    _check_attention(values, config.context)
    return config


def parse_object(raw: bytes, source: str) -> dict[str, Any]:
    """Parse a JSON object in UTF-8 without NaN and Infinity; ImageError, with the source, if it is none."""

    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        values = json.loads(raw.decode(), parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{source}: is not JSON in UTF-8 ({error}); get the file again") from None
    if not isinstance(values, dict):
        raise ImageError(f"{source}: is JSON, but not an object; get the file again")
    return values


def _check_attention(values: Mapping[str, Any], context: int) -> None:
    """Raise DomainError unless all tokens attend to all earlier tokens, and to no later one."""
    if not values.get("is_causal", True):
        raise DomainError(
            "config.json has is_causal false, and a token that attends to later ones cannot be decoded; "
            "give a model that writes"
        )
    for key in ("sliding_window", "attention_chunk_size"):
        size = values.get(key)
        if size is not None and not (type(size) is int and size >= context):
            raise DomainError(
                f"config.json has {key} {size!r} and a context of {context}, and attention to a part of it "
                "is not supported; lower max_position_embeddings to that, or take the key out"
            )
    if values.get("per_layer_config"):
        raise DomainError(
            "config.json has a per_layer_config, which is not read; give a model whose layers are alike"
        )
    kinds = values.get("layer_types") or ["full_attention"]
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise DomainError(
            "config.json has layer_types that are not full_attention; give a model that attends to all tokens"
        )
