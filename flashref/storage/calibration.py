"""The result of a calibration and its JSON file: the device, its errors, and all that was measured."""

import html
import json
import types
import typing
from pathlib import Path
from typing import Any, NamedTuple, Never, TypeVar

from flashref.storage.device import PRESETS, Device, device_from_json, device_to_json
from flashref.storage.fit import Errors, Point
from flashref.types import DomainError, FlashrefError

Kind = TypeVar("Kind")


class CalibrationError(FlashrefError):
    """A disk cannot be measured: it is not writable, too full, cached, or too unsteady."""


class Conditions(NamedTuple):
    """The conditions under which a disk was measured."""

    date: str  # ISO 8601
    kernel: str
    load_average: float  # of the minute before
    python: str
    engine: str
    buffer: str
    direct: bool
    folder: str
    file_system: str
    file_bytes: int
    rounds: int
    seed: int


class MeasuredBatch(NamedTuple):
    """A batch of mixed reads: the time that the device predicts, and the measured time of each repeat."""

    kind: str
    depth: int
    reads: int
    bytes: int
    predicted_ns: int
    nanoseconds: tuple[int, ...]


class Verification(NamedTuple):
    """The error of a device on batches of mixed reads, and the noise of their measurement.

    traces: the batches; the field has this name in the JSON file.
    """

    error: Errors
    noise: Errors
    traces: tuple[MeasuredBatch, ...]


class Calibration(NamedTuple):
    """A device that was fitted to a disk, its error, and all that was measured.

    error: of the device on the points that it was fitted to; noise: the medians of the even rounds against
    those of the odd rounds; batches: the small batches to which dispatch_ns was fitted.
    """

    device: Device
    error: Errors
    noise: Errors
    conditions: Conditions
    points: tuple[Point, ...]
    batches: tuple[Point, ...]
    verification: Verification | None = None

    def __str__(self) -> str:
        """The device and its errors in a few lines."""
        errors = {"fitted points": self.error, "noise": self.noise}
        if self.verification is not None:
            errors["mixed reads"] = self.verification.error
        lines = [f"{self.conditions.folder}, measured on {self.conditions.date}", str(self.device)]
        for name, (median, p90, largest) in errors.items():
            lines.append(f"{name}: median {median:.1%}, 90th percentile {p90:.1%}, largest {largest:.1%}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self), quote=False)}</pre>"


def calibration_to_json(calibration: Calibration) -> str:
    """Write a calibration as the text of a JSON file.

    Args:
        calibration: the calibration.

    Returns:
        One object, which holds the device as DEV-12 describes it.
    """
    return json.dumps(_plain(calibration), indent=2, allow_nan=False) + "\n"


def calibration_from_json(text: str | bytes) -> Calibration:
    """Read a calibration from the text of a JSON file.

    Args:
        text: the file's content.

    Returns:
        The calibration.

    Raises:
        DomainError: the text does not describe a calibration.
    """
    try:
        fields = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DomainError(
            f"a calibration must be a JSON object, but this text is not one: {error}"
        ) from error
    calibration = _typed(Calibration, fields, "calibration")
    verified = calibration.verification
    errors = [calibration.error, calibration.noise, *((verified.error, verified.noise) if verified else ())]
    if min(min(each) for each in errors) < 0:
        raise DomainError("a calibration's errors must be shares of at least 0; calibrate again")
    return calibration


def device_of(text: str | bytes) -> Device:
    """Read the device from the text of a JSON file of a device (DEV-12) or of a calibration.

    Args:
        text: the file's content.

    Returns:
        The device.

    Raises:
        DomainError: the text describes neither.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and "device" in fields:
        return calibration_from_json(text).device
    return device_from_json(text)


def find_device(name: str) -> Device:
    """Find a device by the name of a preset or the path of a file.

    Args:
        name: the name of a preset, or the path of a JSON file of a device or of a calibration.

    Returns:
        The device.

    Raises:
        DomainError: there is no such preset and no such file, or the file does not describe a device.

    Chapter 50.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.is_file():
        raise DomainError(f"--device {name}: neither a file nor a preset; use one of {', '.join(PRESETS)}")
    try:
        return device_of(path.read_bytes())
    except DomainError as error:
        raise DomainError(f"{path}: {error}; correct the file, or use a preset") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Device):
        return json.loads(device_to_json(value))
    if hasattr(value, "_asdict"):
        return {name: _plain(field) for name, field in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(kind: type[Kind], value: Any, where: str) -> Kind:
    """Convert a value of a JSON file to a type, or raise DomainError; where: its place in the file."""
    found: Any = value
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # X | None
        found = None if value is None else _typed(inside[0], value, where)
    elif origin is tuple and isinstance(value, list):
        found = tuple(_typed(inside[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    elif kind is Device and isinstance(value, dict):
        found = device_from_json(json.dumps(value))
    elif hasattr(kind, "_fields") and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        if set(value) != set(hints):
            odd = sorted(set(value) ^ set(hints))[0]
            what = "is missing" if odd in hints else "is not known"
            raise DomainError(f"a calibration's {where}.{odd} {what}; calibrate again")
        found = kind(**{name: _typed(hints[name], value[name], f"{where}.{name}") for name in hints})
    elif kind is float and type(value) is int:
        found = float(value)
    elif type(value) is not kind:
        name = "list" if origin is tuple else kind.__name__
        raise DomainError(
            f"a calibration's {where} must be of type {name}, not {value!r:.40}; calibrate again"
        )
    return typing.cast(Kind, found)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("it names a field twice")
    return fields


def _no_number(word: str) -> Never:
    raise ValueError(f"it has {word} for a number")
