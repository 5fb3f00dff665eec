"""What `flashref pack` costs beside copying: an F16 checkpoint of OPT-1.3B's shape, 2.6 GB of random weights.

    PYTHONPATH=. python tests/bench/pack.py [--rounds N] [--folder DIR] [--cold]

A round times, in random order, `cp` with the copy synced, and the whole process of `flashref pack`. The
target: at most 2.5 times as long, and at most 400 MB of resident memory. Memory is what the command says of
itself and, beside it, what the system says of the process that has ended.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from checkpoints import flashref, write_checkpoint

CONFIG = {
    "model_type": "opt",
    "num_hidden_layers": 24,
    "hidden_size": 2048,
    "word_embed_proj_dim": 2048,
    "ffn_dim": 8192,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "vocab_size": 50272,
    "do_layer_norm_before": True,
    "activation_function": "relu",
}
TARGET_RATIO, TARGET_BYTES = 2.5, 400_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description="flashref pack beside cp and sync")
    parser.add_argument("--rounds", type=int, default=7, help="(default 7)")
    parser.add_argument("--folder", default="/var/tmp", help="where the files are written (default /var/tmp)")
    parser.add_argument("--cold", action="store_true", help="the checkpoint is not in the page cache")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="flashref-bench-") as folder:
        weights = write_checkpoint(Path(folder) / "model", CONFIG, rng)
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
    started = time.perf_counter()
    result, counted = flashref("pack", model, "--image", image)
    seconds = time.perf_counter() - started
    image.unlink()
    return seconds, result["peak_memory_bytes"], counted


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
