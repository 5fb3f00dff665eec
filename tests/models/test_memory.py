"""The peak of a process's memory as it is measured, and what a run may take beside its budget."""

import subprocess
import sys

import pytest
from random_models import LAYERS, write_family

from flashref.models import memory
from flashref.models.budget import Budget, Demand
from flashref.models.checkpoint import open_checkpoint

MEASURING = """
import numpy as np
from flashref.models.memory import peak_bytes, reset_peak, resident_bytes
before = resident_bytes()
held = np.ones(100 << 20, np.uint8)
with_it = resident_bytes()
del held
after = resident_bytes()
peak = peak_bytes()
reset_peak()
print(before, with_it, after, peak, peak_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is forgotten on Linux only")
def test_the_peak_is_measured_and_forgotten():
    found = subprocess.run([sys.executable, "-c", MEASURING], capture_output=True, text=True, check=True)
    before, with_it, after, peak, forgotten = map(int, found.stdout.split())
    size, little = 100 << 20, 4 << 20
    assert size <= with_it - before < size + little and after - before < little
    assert abs(peak - with_it) < little and forgotten < peak - size + little


def test_a_system_that_does_not_say_is_asked_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "no" / "folder")
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "none")
    usage = type("Usage", (), {"ru_maxrss": 7})
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: usage)
    memory.reset_peak()
    for platform, unit in (("linux", 1024), ("darwin", 1)):
        monkeypatch.setattr(memory.sys, "platform", platform)
        assert memory.peak_bytes() == memory.resident_bytes() == 7 * unit
    assert memory.available_bytes() is None


def test_lines_of_the_system(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmHWM:\t      30 kB\nVmRSS:\t 20 kB\n")
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\nMemAvailable:   3 kB\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    assert (memory.peak_bytes(), memory.resident_bytes()) == (30 * 1024, 20 * 1024)
    assert memory.available_bytes() == 3 * 1024


def test_what_is_allowed_worked_by_hand(monkeypatch):
    demand = Demand(total=0, resident=0, predictors=0, layers=2, neurons=100, stride=512)
    budget = Budget(5000, 3, (20, 10), 4000)
    allowance = memory.ALLOWANCE + memory.ALLOWED_COPIES * 100 * 512
    allowed = 5000 + 70 + 8 + allowance
    for peak, proof, held in ((allowed, False, True), (allowed + 1, False, False), (allowed + 1, True, None)):
        monkeypatch.setattr(memory, "peak_bytes", lambda peak=peak: 900 + peak)
        found = memory.measure_memory(budget, demand, 900, (70, 8), proof)
        assert found == (5000, 4000, 900, peak, allowed, 70, 8, allowance, held)
    monkeypatch.setattr(memory, "peak_bytes", lambda: 899)  # what Python had was freed meanwhile
    assert memory.measure_memory(budget, demand, 900, (70, 8), False).peak == 0


def test_the_cache_of_a_text_by_hand(tmp_path):
    config = open_checkpoint(write_family(tmp_path, "opt")).config
    # Keys and values of 10 tokens: 2 layers of 4 heads of 4 float32.
    assert memory.kv_cache_bytes(config, 10) == 2 * LAYERS * 4 * 10 * 4 * 4
