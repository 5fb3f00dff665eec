"""Devices by name or from a file, with how far their times may be trusted."""

from pathlib import Path
from typing import NamedTuple

from flashref.storage.calibration import calibration_from_json, find_device
from flashref.storage.device import PRESETS, Device
from flashref.storage.fit import Errors
from flashref.types import DomainError

# What specs/50-device.md says of a preset's error; of the others no measurement is at hand.
PRESET_ERRORS = {"paper_m1max_fig2b": Errors(median=0.038, p90=0.077, max=0.101)}


class JudgedDevice(NamedTuple):
    """A device, and the relative errors of its times; None where nobody measured them."""

    device: Device
    errors: Errors | None = None


def judged_device(name: str) -> JudgedDevice:
    """The device that a name stands for.

    Args:
        name: of a preset, or the path of a JSON file of a device or of a calibration.

    Returns:
        The device. A calibration brings its errors, and chapter 50 those of some presets.

    Raises:
        DomainError: there is no such preset and no such file, or the file holds no device.
    """
    device = find_device(name)
    if name in PRESETS:
        return JudgedDevice(device, PRESET_ERRORS.get(name))
    try:
        calibration = calibration_from_json(Path(name).read_bytes())
    except DomainError:  # a device without its calibration
        return JudgedDevice(device)
    judged = calibration.verification or calibration
    # A quiet minute fits well, and the next one reads otherwise: the disk's own noise is a part of the error.
    return JudgedDevice(device, Errors(*map(max, judged.error, judged.noise)))
