"""The metadata of a predictors file: the model, the activation and the texts that it was made of."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FORMAT, VERSION = "flashref predictors", "1"
PARTS = ("fit", "choose", "judge")


class Source(NamedTuple):
    """A part of a text: the SHA-256 of the whole text in UTF-8, and ranges [first, end) of its tokens."""

    sha256: str
    ranges: tuple[tuple[int, int], ...]


class Origin(NamedTuple):
    """What predictors were made of.

    Attributes:
        fingerprint: the fingerprint of the model.
        activation, tau: the activation whose active neurons are predicted.
        fit: the text on which the maps were fitted.
        choose: the text on which ranks and thresholds were chosen.
        judge: the text on which the predictors were judged, and nothing else was done.
    """

    fingerprint: str
    activation: str
    tau: float
    fit: Source
    choose: Source
    judge: Source


def metadata_of(origin: Origin, dense: Sequence[int]) -> dict[str, str]:
    """Write an origin as the metadata of a file.

    Args:
        origin: what the predictors were made of.
        dense: the layers without a predictor.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": origin.fingerprint,
        "activation": origin.activation,
        "tau": repr(origin.tau),
        "texts": json.dumps({part: getattr(origin, part)._asdict() for part in PARTS}),
        "dense_layers": json.dumps(list(dense)),
    }


def read_metadata(metadata: Mapping[str, str], layers: int) -> tuple[Origin | None, tuple[int, ...]]:
    """Read the metadata of a file.

    Args:
        metadata: the strings of its header.
        layers: the model's number of layers.

    Returns:
        The origin and the dense layers; None and none, where the metadata have another format.

    Raises:
        ValueError: the metadata are damaged; the message goes on after the file's name.
    """
    if metadata.get("format") != FORMAT:
        return None, ()
    if metadata.get("version") != VERSION:
        raise ValueError(f"has version {metadata.get('version')!r}, but only version {VERSION} can be read")
    try:
        texts = json.loads(metadata["texts"])
        sources = {part: _source(texts[part]) for part in PARTS}
        dense = json.loads(metadata["dense_layers"])
        tau = float(metadata["tau"])
        origin = Origin(metadata["fingerprint"], metadata["activation"], tau, **sources)
        if not isinstance(dense, list) or not all(_whole(layer) and layer < layers for layer in dense):
            raise TypeError
        if not 0 <= tau < float("inf"):
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("has metadata that do not say what it was made of") from None
    return origin, tuple(dense)


def _source(values: Any) -> Source:
    """Read a part of a text; KeyError, TypeError or ValueError if it is none."""
    ranges = tuple((first, end) for first, end in values["ranges"])
    for first, end in ranges:
        if not (_whole(first) and _whole(end) and first <= end):
            raise TypeError
    if not isinstance(values["sha256"], str):
        raise TypeError
    return Source(values["sha256"], ranges)


def _whole(value: object) -> bool:
    return type(value) is int and value >= 0
