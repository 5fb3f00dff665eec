"""A checkpoint of any shape with random weights, and a process of `flashref` with the memory that it took."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from flashref.models.checkpoint import tensor_shapes
from flashref.models.config import parse_config
from flashref.storage.container import encode_header

PIECE = 1 << 20  # values


def write_checkpoint(folder: Path, config: dict[str, Any], rng: np.random.Generator) -> Path:
    """The folder with a config.json, and its model.safetensors in F16, synced; gives the latter."""
    folder.mkdir()
    (folder / "config.json").write_text(text := json.dumps(config))
    shapes = {tensor.name: tensor.shape for tensor in tensor_shapes(parse_config(text))}
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(encode_header({name: ("F16", shape) for name, shape in shapes.items()}, {}, 8))
        for shape in shapes.values():
            # Little at a time: exec hands down to a process the peak of the one that started it.
            for first in range(0, size := math.prod(shape), PIECE):
                values = rng.standard_normal(min(PIECE, size - first), np.float32)
                file.write((0.02 * values).astype(np.float16).data)
        file.flush()
        os.fsync(file.fileno())
    return path


def flashref(*words: object) -> tuple[Any, int]:
    """What `flashref … --json` prints, and the most memory that the system saw its process have, in bytes."""
    command = [sys.executable, "-m", "flashref", *map(str, words), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if not output:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    return json.loads(output), usage.ru_maxrss * 1024
