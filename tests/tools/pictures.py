"""Draws the README's picture from a run of the tiny model: what one layer holds in DRAM, and what it reads.

    PYTHONPATH=. python tests/tools/pictures.py [FILE]

FILE is specs/pictures/window.svg unless it is given. The model writes the same text every time, so the
picture changes only if the reference does. Needs the `plot` extra.
"""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from flashref import Step
from flashref.models import open_model
from flashref.types import Array

PICTURE = Path(__file__).parents[2] / "specs" / "pictures" / "window.svg"
PROMPT, TOKENS, LAYER, WINDOW = "And the king said unto David, ", 28, 1, 4
ON_FLASH, IN_DRAM, READ, OVER_READ, INK = "#ffffff", "#a9c4e4", "#c2410c", "#f2c9a8", "#374151"
NAIVE_BYTES = 2 * 1024 * 128 * 2  # up and down of 1,024 neurons, 128 values each, in F16


def states(steps: Sequence[Step]) -> Array:
    """What each neuron is for each token: 0 on flash, 1 in DRAM, 2 read for this token.

    A row for each neuron that was ever read, in the order of the first read; a column for each token.
    """
    reads = [np.concatenate([step.load, step.bypass]).tolist() for step in steps]
    rows = {neuron: row for row, neuron in enumerate(dict.fromkeys(chain(*reads)))}
    grid = np.zeros((len(rows), len(steps)), np.uint8)
    for column, (step, read) in enumerate(zip(steps, reads, strict=True)):
        grid[[rows[neuron] for neuron in step.resident.tolist()], column] = 1
        grid[[rows[neuron] for neuron in read], column] = 2
    return grid


def draw(steps: Sequence[Step], letters: str) -> Figure:
    """The neurons of one layer above, the bytes that each token reads below."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    above.imshow(
        states(steps), cmap=ListedColormap([ON_FLASH, IN_DRAM, READ]), aspect="auto", interpolation="none"
    )
    above.set_ylabel("neurons, by first use")
    for color, name in ((READ, "read from flash for this token"), (IN_DRAM, "in DRAM already")):
        above.plot([], [], "s", color=color, label=name)
    above.legend(loc="lower left", frameon=False)
    read, needed = (
        [getattr(step.io, name) / 1e3 for step in steps] for name in ("read_bytes", "useful_bytes")
    )
    below.bar(range(len(steps)), read, color=OVER_READ, width=0.8, label="read, in whole blocks")
    below.bar(range(len(steps)), needed, color=READ, width=0.8, label="needed")
    below.legend(loc="upper left", frameon=False, ncols=2)
    whole = NAIVE_BYTES / 1e3
    below.axhline(whole, color=INK, linestyle="--", linewidth=1)
    right = {"ha": "right", "va": "top", "color": INK}
    below.text(len(steps) - 0.5, 0.95 * whole, f"the whole layer: {whole:.0f} kB", **right)
    below.set(ylabel="kB", xlabel="token (one byte of text each); the model writes from the line on")
    below.set_xticks(range(len(steps)), [letter if letter != " " else "␣" for letter in letters])
    for axes in (above, below):
        axes.axvline(len(PROMPT) - 1.5, color=INK, linewidth=0.8)
        _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, length=2)


def main(words: Sequence[str]) -> None:
    matplotlib.rcParams |= {"svg.hashsalt": "flashref", "font.size": 10}
    with open_model("tiny", memory=0.5, window=WINDOW) as model:
        text = model.generate(PROMPT, tokens=TOKENS)
    passes = [layers[LAYER] for layers in text.steps]
    letters = str(text)[-len(passes) - 1 : -1]
    path = Path(words[0]) if words else PICTURE
    path.parent.mkdir(exist_ok=True)
    draw(passes, letters).savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1:])
