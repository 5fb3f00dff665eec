"""How many reads a second DirectReader reaches, beside `fio --ioengine=psync`, in turn in one run.

    PYTHONPATH=. python tests/bench/direct_reader.py [--folder DIR] [--gib 2] [--rounds 9] [--seconds 0.4]

Writes a file of random bytes into the folder, and removes it. A round measures every point with both, in
shuffled order: the disk's speed drifts, so only neighbours in time are compared. Prints the medians, the
ratio of the medians and the median of the rounds' ratios. Not a test: its verdict depends on a clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from flashref.storage.readers import DirectReader
from flashref.types import Extent

POINTS = [(kib * 1024, depth) for kib in (8, 16, 32) for depth in (8, 32)]
BATCH_BYTES = 16 * 2**20  # what a layer of OPT 6.7B reads for a token without a window is 27 MB, with one 6


def fio_reads_per_second(path, size, depth, seconds):
    """What fio's psync engine reaches with a thread for each outstanding read."""
    words = f"""fio --name=reads --filename={path} --readonly --rw=randread --ioengine=psync --direct=1
        --thread --numjobs={depth} --bs={size} --size={os.path.getsize(path)} --norandommap --randrepeat=0
        --invalidate=0 --time_based --runtime={int(seconds * 1000)}ms --group_reporting
        --output-format=json"""
    done = subprocess.run(words.split(), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["jobs"][0]["read"]["iops"]


def direct_reads_per_second(reader, size, seconds, generator):
    """What DirectReader reaches in batches of 16 MiB, by its own clock: waking and waiting included."""
    reads = BATCH_BYTES // size
    done = elapsed = 0
    while elapsed < seconds * 1e9:
        offsets = generator.integers(0, (reader.size - size) // reader.block + 1, reads) * reader.block
        elapsed += reader.read(tuple(Extent(offset, size) for offset in offsets.tolist())).nanoseconds
        done += reads
    return done / elapsed * 1e9


def measure(path, rounds, seconds, generator):
    """{(size, depth): [(fio, direct), ...]}, in reads a second."""
    readers = {depth: DirectReader(path, depth) for _, depth in POINTS}
    found = {point: [] for point in POINTS}
    for _ in range(rounds):
        for index in generator.permutation(len(POINTS)).tolist():
            size, depth = POINTS[index]

            def fio(size=size, depth=depth):
                return fio_reads_per_second(path, size, depth, seconds)

            def direct(size=size, depth=depth):
                return direct_reads_per_second(readers[depth], size, seconds, generator)

            if generator.random() < 0.5:
                by_fio = fio()
                by_us = direct()
            else:
                by_us = direct()
                by_fio = fio()
            found[size, depth].append((by_fio, by_us))
    for reader in readers.values():
        reader.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="/var/tmp")
    parser.add_argument("--gib", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "random"
        with open(path, "wb") as file:
            for _ in range(options.gib * 16):
                file.write(generator.bytes(64 * 2**20))
            os.fsync(file.fileno())
        load = os.getloadavg()[0]
        found = measure(path, options.rounds, options.seconds, generator)
    print(f"load average {load:.2f} before, {os.getloadavg()[0]:.2f} after; thousands of reads a second")
    print("  size depth   fio psync (min-max)    DirectReader (min-max)   ratio  ratio in a round")
    for (size, depth), pairs in found.items():
        fio, direct = ([rate / 1000 for rate in rates] for rates in zip(*pairs, strict=True))
        middle = statistics.median(fio), statistics.median(direct)
        in_round = statistics.median(b / a for a, b in zip(fio, direct, strict=True))
        print(
            f"{size // 1024:4} K {depth:5}   {middle[0]:6.1f} ({min(fio):5.1f}-{max(fio):5.1f})"
            f"     {middle[1]:6.1f} ({min(direct):5.1f}-{max(direct):5.1f})"
            f"       {middle[1] / middle[0]:5.2f}   {in_round:5.2f}"
        )


if __name__ == "__main__":
    main()
