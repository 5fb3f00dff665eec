"""What `flashref pack` costs beside copying: an F16 checkpoint of OPT-1.3B's shape, 2.6 GB of random weights.

    PYTHONPATH=. python tests/bench/pack.py [--rounds N] [--folder DIR] [--cold]

A round times, in random order, `cp` with the copy synced, and the whole process of `flashref pack`. The
target: at most 2.5 times as long, and at most 400 MB of resident memory. Memory is what the command says of
itself and, beside it, what the system says of the process that has ended.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flashref.storage.container import encode_header

LAYERS, WIDTH, NEURONS, VOCABULARY, CONTEXT = 24, 2048, 8192, 50272, 2048
CONFIG = {
    "model_type": "opt",
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "ffn_dim": NEURONS,
    "num_attention_heads": 32,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
    "do_layer_norm_before": True,
    "activation_function": "relu",
}
TARGET_RATIO, TARGET_BYTES = 2.5, 400_000_000
PIECE = 1 << 20  # values


def main() -> None:
    parser = argparse.ArgumentParser(description="flashref pack beside cp and sync")
    parser.add_argument("--rounds", type=int, default=7, help="(default 7)")
    parser.add_argument("--folder", default="/var/tmp", help="where the files are written (default /var/tmp)")
    parser.add_argument("--cold", action="store_true", help="the checkpoint is not in the page cache")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="flashref-bench-") as folder:
        weights = write_checkpoint(Path(folder) / "model", rng)
        print(f"{weights.stat().st_size:,} bytes, the checkpoint {'not ' * options.cold}in the page cache")
        taken: dict[str, list[float]] = {"cp": [], "pack": []}
        memory = []
        for _ in range(options.rounds):
            for which in rng.permutation(list(taken)).tolist():
                if options.cold:
                    forget(weights)
                if which == "cp":
                    seconds = copy(weights, Path(folder) / "copy")
                else:
                    seconds, told, counted = pack(weights.parent, Path(folder) / "image")
                    memory.append((told, counted))
                taken[which].append(seconds)
                print(f"{which:<5} {seconds:6.2f} s", flush=True)
        report(taken, memory)


def write_checkpoint(folder: Path, rng: np.random.Generator) -> Path:
    """The folder with a config.json, and its model.safetensors; gives the latter."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = dict(tensor_shapes())
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


def tensor_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as Hugging Face has them."""
    d, n = WIDTH, NEURONS
    yield "model.decoder.embed_tokens.weight", (VOCABULARY, d)
    yield "model.decoder.embed_positions.weight", (CONTEXT + 2, d)
    norms = ["final_layer_norm"]
    for layer in range(LAYERS):
        block = f"layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"model.decoder.{block}.self_attn.{name}.weight", (d, d)
            yield f"model.decoder.{block}.self_attn.{name}.bias", (d,)
        yield f"model.decoder.{block}.fc1.weight", (n, d)
        yield f"model.decoder.{block}.fc1.bias", (n,)
        yield f"model.decoder.{block}.fc2.weight", (d, n)
        yield f"model.decoder.{block}.fc2.bias", (d,)
        norms += [f"{block}.self_attn_layer_norm", f"{block}.final_layer_norm"]
    for name in norms:
        yield f"model.decoder.{name}.weight", (d,)
        yield f"model.decoder.{name}.bias", (d,)


def forget(path: Path) -> None:
    """Empties the page cache of a file that is synced."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def copy(source: Path, target: Path) -> float:
    """Seconds of cp and sync; the copy is removed."""
    started = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    subprocess.run(["sync", target], check=True)
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def pack(model: Path, image: Path) -> tuple[float, int, int]:
    """Seconds of flashref pack; its peak memory in bytes as it says, and as counted by the system."""
    command = [sys.executable, "-m", "flashref", "pack", str(model), "--image", str(image), "--json"]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = os.posix_spawn(
            sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
        )
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - started
        output.seek(0)
        if status:
            raise SystemExit(f"flashref pack ended with status {status}")
        result = json.load(output)
    image.unlink()
    return seconds, result["peak_memory_bytes"], usage.ru_maxrss * 1024


def report(taken: dict[str, list[float]], memory: list[tuple[int, int]]) -> None:
    """Medians, their ratio, and the largest peak."""
    medians = {which: statistics.median(seconds) for which, seconds in taken.items()}
    for which, seconds in taken.items():
        print(f"{which:<5} median {medians[which]:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"ratio {medians['pack'] / medians['cp']:.2f} (target: {TARGET_RATIO})")
    told, counted = (max(column) for column in zip(*memory, strict=True))
    print(
        f"peak memory {told / 1e6:.0f} MB as told, {counted / 1e6:.0f} MB as counted "
        f"(target: {TARGET_BYTES / 1e6:.0f} MB)"
    )


if __name__ == "__main__":
    main()
