"""Devices by name or from a file, with how far their times may be off."""

from pathlib import Path
from typing import NamedTuple

from flashref.storage.calibration import calibration_from_json, find_device
from flashref.storage.device import PRESETS, Device
from flashref.storage.fit import Errors
from flashref.types import DomainError

# Chapter 50 says how far this preset is off; the others were not compared with a measurement.
PRESET_ERRORS = {"paper_m1max_fig2b": Errors(median=0.038, p90=0.077, max=0.101)}


class JudgedDevice(NamedTuple):
    """A device, and the relative errors of its times; None where they were not measured."""

    device: Device
    errors: Errors | None = None


def judged_device(name: str) -> JudgedDevice:
    """Find the device that a name stands for, and its errors.

    Args:
        name: the name of a preset, or the path of a JSON file with a device or a calibration.

    Returns:
        The device. Errors are known of a calibration, and of a preset that chapter 50 judges.

    Raises:
        DomainError: there is neither such a preset nor such a file, or the file holds no device.
    """
    device = find_device(name)
    if name in PRESETS:
        return JudgedDevice(device, PRESET_ERRORS.get(name))
    try:
        calibration = calibration_from_json(Path(name).read_bytes())
    except DomainError:  # the file holds a device without its calibration
        return JudgedDevice(device)
    judged = calibration.verification or calibration
    # A fit may be better than the disk is steady: then the disk's own noise is the error.
    return JudgedDevice(device, Errors(*map(max, judged.error, judged.noise)))
