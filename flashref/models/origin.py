"""What a file of predictors says in its metadata: the model, the activation and the texts that made it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FORMAT, VERSION = "flashref predictors", "1"
PARTS = ("fit", "choose", "judge")


class Source(NamedTuple):
    """A part of a text: SHA-256 of the whole text in UTF-8, and which of its tokens, [first, end) each."""

    sha256: str
    ranges: tuple[tuple[int, int], ...]


class Origin(NamedTuple):
    """What predictors were made of, as their file says.

    fingerprint: of the model; activation, tau: whose neurons they predict; fit, choose, judge: the texts that
    maps were fitted on, ranks and thresholds chosen on, and neither.
    """

    fingerprint: str
    activation: str
    tau: float
    fit: Source
    choose: Source
    judge: Source


def metadata_of(origin: Origin, dense: Sequence[int]) -> dict[str, str]:
    """The strings of a header; dense: the layers without a predictor."""
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
    """The origin and the dense layers; nothing where the metadata are not of this format.

    Raises ValueError with half a sentence.
    """
    if metadata.get("format") != FORMAT:
        return None, ()
    if metadata.get("version") != VERSION:
        raise ValueError(f"is of version {metadata.get('version')!r}, and {VERSION} is read here")
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
    """Raises KeyError, TypeError, ValueError."""
    ranges = tuple((first, end) for first, end in values["ranges"])
    for first, end in ranges:
        if not (_whole(first) and _whole(end) and first <= end):
            raise TypeError
    if not isinstance(values["sha256"], str):
        raise TypeError
    return Source(values["sha256"], ranges)


def _whole(value: object) -> bool:
    return type(value) is int and value >= 0
