"""The file of a calibration: it says everything, --device takes it, and a damaged one is refused."""

import json

import pytest
import simulated_disk

from flashref.cli.options import device as device_word
from flashref.storage.calibration import calibration_from_json, calibration_to_json, device_of
from flashref.storage.device import device_to_json
from flashref.types import DomainError

calibration = simulated_disk.calibration


@pytest.mark.parametrize("verified", [True, False])
def test_a_calibration_survives_its_file(calibration, verified):
    wanted = calibration if verified else calibration._replace(verification=None)
    text = calibration_to_json(wanted)
    fields = json.loads(text)
    assert list(fields) == [*("device", "error", "noise", "conditions", "points", "batches", "verification")]
    assert list(fields["error"]) == ["median", "p90", "max"]
    assert fields["device"] == json.loads(device_to_json(calibration.device))
    assert fields["points"][0]["nanoseconds"] == list(calibration.points[0].nanoseconds)
    assert calibration_from_json(text) == calibration_from_json(text.encode()) == wanted
    assert device_of(text) == wanted.device


def changed(calibration, path, value):
    fields = json.loads(calibration_to_json(calibration))
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["error"], None, r"calibration\.error is missing"),
        (["extra"], 1, r"calibration\.extra is not known"),
        (["error", "p90"], "much", r"calibration\.error\.p90 must be of type float, not 'much'"),
        (["error", "p90"], True, r"calibration\.error\.p90 must be of type float, not True"),
        (["conditions", "direct"], 1, r"conditions\.direct must be of type bool, not 1"),
        (["conditions", "rounds"], 8.0, r"conditions\.rounds must be of type int, not 8\.0"),
        (["points", 2, "nanoseconds"], 7, r"points\[2\]\.nanoseconds must be of type list"),
        (["points", 2, "nanoseconds", 1], "x", r"points\[2\]\.nanoseconds\[1\] must be of type int, not 'x'"),
        (["points"], {}, r"calibration\.points must be of type list"),
        (["device", "latency_ns"], -1, "latency_ns must be an integer of at least 0, not -1"),
        (["device", "knee"], None, "field 'knee' is missing"),
        (["device"], 3, r"calibration\.device must be of type Device, not 3"),
        (["error", "p90"], -1.0, "errors must be shares of at least 0"),
        (["verification", "noise", "max"], -0.1, "errors must be shares of at least 0"),
        (["verification"], [], r"calibration\.verification must be of type Verification"),
    ],
)
def test_a_damaged_file_is_said_in_one_sentence(calibration, path, value, message, tmp_path):
    text = changed(calibration, path, value)
    with pytest.raises(DomainError, match=message) as caught:
        calibration_from_json(text)
    assert "\n" not in str(caught.value)
    file = tmp_path / "device.json"
    file.write_text(text)
    with pytest.raises(DomainError, match=f"^{file}: .*{message}.*; correct the file, or use a preset$"):
        device_word(str(file))


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"device": NaN}', '{"device": 1, "device": 1}', b"\xff", "3"]
)
def test_what_is_no_json_object_is_refused(text):
    for read in (calibration_from_json, device_of):
        with pytest.raises(DomainError):
            read(text)


def test_what_json_does_not_have_is_refused(calibration):
    with pytest.raises(DomainError, match="it has NaN for a number"):
        calibration_from_json(changed(calibration, ["error", "p90"], float("nan")))
    twice = calibration_to_json(calibration).replace('"seed": 0', '"seed": 1, "seed": 0')
    with pytest.raises(DomainError, match="it names a field twice"):
        calibration_from_json(twice)


def test_an_error_may_be_a_whole_number(calibration):
    assert calibration_from_json(changed(calibration, ["error", "p90"], 1)).error.p90 == 1.0


def test_a_device_option_takes_both_kinds_of_file(calibration, tmp_path):
    (tmp_path / "calibration").write_text(calibration_to_json(calibration))
    (tmp_path / "device").write_text(device_to_json(calibration.device))
    for name in ("calibration", "device"):
        assert device_word(str(tmp_path / name)) == calibration.device
