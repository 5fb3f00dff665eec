"""The figure of `flashref simulate --plot`: times over memory or window, or a bar a configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashref.cli.plots import COLOURS, MARKERS, STYLE, new_plot, save_plot
from flashref.simulate.sweep import Estimate, irrelevant

WIDTH, HEIGHT, BAR = 800, 380, 22  # points
AXES = {"memory": "memory (share of the model's bytes)", "window": "window (tokens)"}
TIMES = {"io_ms": "I/O", "memory_ms": "memory management", "compute_ms": "compute"}

Choice = Mapping[str, Any]  # the fields of a configuration that make a difference to its policy


def plot(path: Path, outcomes: Sequence[Estimate], title: str) -> None:
    """Draw the outcomes into a new file that appears whole or not at all."""
    import matplotlib  # slow to import

    choices = [_choice(outcome) for outcome in outcomes]
    x = next((field for field in AXES if len({c[field] for c in choices if field in c}) > 1), None)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        if x is None:
            figure = new_plot(WIDTH, 120 + BAR * len(outcomes))
            handles = _draw_bars(figure.subplots(), outcomes, _labels(choices))
        else:
            figure = new_plot(WIDTH, HEIGHT)
            handles = _draw_lines(figure.subplots(1, 2), outcomes, choices, x)
        figure.suptitle(title)
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize="small")
        save_plot(path, figure)


def _draw_lines(axes: Any, outcomes: Sequence[Estimate], choices: Sequence[Choice], x: str) -> list[Any]:
    """I/O on the left, the sum on the right: a line for all that differ in x only, level without x."""
    series: dict[tuple[tuple[str, Any], ...], list[tuple[float | None, Estimate]]] = {}
    for outcome, choice in zip(outcomes, choices, strict=True):
        rest = tuple((field, value) for field, value in choice.items() if field != x)
        at = outcome.window if x == "window" else choice.get(x)
        series.setdefault(rest, []).append((at, outcome))
    labels = _labels([dict(rest) for rest in series])
    handles: list[Any] = []
    for axis, field, heading in zip(axes, ("io_ms", "total_ms"), ("I/O", "sum"), strict=True):
        handles = []
        for number, (label, line) in enumerate(zip(labels, series.values(), strict=True)):
            look = {"color": COLOURS[number % len(COLOURS)], "label": label}
            points = sorted((at, getattr(outcome, field)) for at, outcome in line if at is not None)
            if points:
                marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
                handles += axis.plot(*zip(*points, strict=True), marker=marker, **look)
            else:
                handles.append(axis.axhline(getattr(line[0][1], field), linestyle="--", **look))
        axis.set(title=heading, xlabel=AXES[x], ylabel="milliseconds a token")
        times = [getattr(outcome, field) for outcome in outcomes]
        if max(times) > 10 * min(times) > 0:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
    return handles


def _draw_bars(axis: Any, outcomes: Sequence[Estimate], labels: Sequence[str]) -> list[Any]:
    """Where neither memory nor window varies: what each configuration's sum is made of."""
    left = np.zeros(len(outcomes))
    handles = []
    for (field, name), colour in zip(TIMES.items(), COLOURS, strict=False):
        widths = np.array([getattr(outcome, field) for outcome in outcomes])
        handles.append(axis.barh(range(len(labels)), widths, left=left, label=name, color=colour))
        left += widths
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set(xlabel="milliseconds a token")
    axis.grid(visible=False, axis="y")
    return handles


def _choice(outcome: Estimate) -> Choice:
    configuration = outcome.configuration
    nothing = irrelevant(configuration.policy)
    return {field: value for field, value in configuration._asdict().items() if field not in nothing}


def _labels(choices: Sequence[Choice]) -> list[str]:
    """What tells them apart: the policy, and every other word in which two of them differ."""
    seen: dict[str, set[Any]] = {}
    for choice in choices:
        for field, value in choice.items():
            seen.setdefault(field, set()).add(value)
    return [
        ", ".join(
            _word(field, value)
            for field, value in choice.items()
            if field == "policy" or len(seen[field]) > 1
        )
        for choice in choices
    ]


def _word(field: str, value: Any) -> str:
    if field == "bundled":
        return "bundled" if value else "unbundled"
    words = {"memory": f"memory {value}", "window": f"window {value or 'auto'}", "max_gap": f"gap {value}"}
    return words.get(field, str(value))
