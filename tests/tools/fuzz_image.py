"""The image parser under atheris, guided by its coverage: a million edited headers and more.

    python tests/tools/fuzz_image.py [options of libFuzzer]

Every run edits a small image (image_edits.py) as the fuzzer's bytes choose, and checks what must hold of the
result. It ends with the first run that is wrong, takes 10 s, or holds more memory than the file accounts for.
"""

import hashlib
import random
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["flashref.storage.container", "flashref.storage.image"]):
    from image_edits import CONSTANT, check, edited, make_seeds, opening_peak

RUNS = 1_110_000
CHOICES = 48  # bytes that a run decides with
MEASURED = 32  # one run in so many has its memory measured, which takes as long as all the rest


def main() -> None:
    folder = Path(
        tempfile.mkdtemp(prefix="fuzz-image-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    corpus = folder / "corpus"
    corpus.mkdir()
    for i in range(32):  # what a run begins with are choices, not headers
        (corpus / f"{i}").write_bytes(hashlib.sha512(bytes([i])).digest())
    seeds, path = make_seeds(folder), folder / "edited"
    runs, headers, distinct, opened, started = 0, 0, set(), 0, time.monotonic()

    def run(data: bytes) -> None:
        nonlocal runs, headers, opened
        provider, further = atheris.FuzzedDataProvider(data), random.Random(data)

        def choose(n: int) -> int:  # the fuzzer's bytes, and when they have run out, what follows from them
            return (
                provider.ConsumeIntInRange(0, n - 1) if provider.remaining_bytes() else further.randrange(n)
            )

        seed = seeds[choose(2)]
        raw, mended = edited(seed, choose)
        opened += check(path, raw, mended, seed)
        if runs % MEASURED == 0:
            peak = opening_peak(path)
            assert peak <= len(raw) + CONSTANT, f"{peak} bytes held for a file of {len(raw)}"
        runs += 1
        header = raw[: 8 + int.from_bytes(raw[:8], "little")]
        if not seed.raw.startswith(header):
            headers += 1
            distinct.add(hash(header))
        if runs % 20_000 == 0 or runs == RUNS:
            print(
                f"{runs} runs, {headers} edited headers, {len(distinct)} of them different, "
                f"{opened} files opened, {time.monotonic() - started:.0f} s",
                flush=True,
            )

    options = [f"-runs={RUNS}", "-timeout=10", "-rss_limit_mb=2048", "-reduce_inputs=0"]
    options += [f"-max_len={CHOICES}", "-len_control=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(corpus)], run, custom_mutator=other_choices)
    atheris.Fuzz()


def other_choices(data: bytes, size: int, seed: int) -> bytes:
    """The first few choices of a run, which are its last bytes, and others in place of the rest."""
    chance, kept = random.Random(seed), data[-CHOICES // 6 :]
    kept = kept[chance.randrange(len(kept) + 1) :]
    return chance.randbytes(CHOICES - len(kept)) + kept


if __name__ == "__main__":
    main()
