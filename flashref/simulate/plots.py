"""A simulation as a figure: times over memory or window, or a bar for each configuration."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from flashref.models.budget import UNITS, Amount
from flashref.simulate.look import COLOURS, INK, MARKERS, STYLE, new_plot
from flashref.simulate.simulation import Simulation
from flashref.simulate.sweep import Estimate, irrelevant
from flashref.simulate.wording import choice_phrase, choice_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

WIDTH, HEIGHT, LEGEND, BAR = 800, 300, 100, 22  # points: of the plot, a row of panels, its legend, a bar
AXES = {"memory": "memory (share of the model's bytes)", "window": "window (tokens)"}
TIMES = {"io_ms": "I/O", "memory_ms": "copying", "compute_ms": "compute"}
PANELS = {"io_ms": "I/O", "total_ms": "I/O + copying + compute"}
WIDE = 5  # times whose largest is more than so many smallest ones get a logarithmic scale
MOST_TICKS = 8  # where each value that was asked for still has a tick of its own
GREY = "#6e6e6e"
# A colour and a marker for each policy, the same in every plot; a bound is dotted and has no marker.
LOOKS: Mapping[str, Mapping[str, Any]] = {
    "naive": {"color": INK, "marker": "x"},
    "hybrid": {"color": GREY, "marker": "*"},
    **{
        policy: {"color": colour, "marker": marker}
        for policy, colour, marker in zip(
            ("window", "lru", "predictor", "lfu", "s3-fifo", "pinned"), COLOURS, MARKERS, strict=True
        )
    },
    "belady": {"color": INK, "linestyle": ":"},
}
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)))  # of the lines of one policy

Choice = Mapping[str, Any]  # the fields of a configuration that make a difference to its policy
Line = list[tuple[float | None, Estimate]]  # where it is on the x axis, None where it is everywhere


def draw(simulation: Simulation) -> "Plot":
    """Draw the times of a simulation with matplotlib, which must be installed.

    If there are several memories, or else several windows, they are the x axis: I/O is on the left and the
    sum on the right, with a line for each policy, and a row of panels for each combination of all other
    choices. Otherwise each configuration has a bar. Times are milliseconds, means over the counted tokens.

    Args:
        simulation: the simulation.

    Returns:
        matplotlib's figure.
    """

    import matplotlib  # slow to import

    estimates = simulation.estimates
    choices = [_choice(each) for each in estimates]
    x = next((field for field in AXES if _differ(choices, field)), None)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        if x is None:
            plot = new_plot(WIDTH, 120 + BAR * len(estimates))
            handles = _draw_bars(plot.subplots(), estimates, _labels(choices))
        else:
            groups = _grouped(estimates, choices)
            plot = new_plot(WIDTH, HEIGHT * len(groups) + LEGEND)
            panels = plot.subplots(len(groups), len(PANELS), squeeze=False)
            handles = {}
            for row, (title, group) in zip(panels, groups.items(), strict=True):
                handles |= _draw_lines(row, _lines(group, x, simulation.shape.total_bytes), x, title)
        plot.suptitle(f"{simulation.shape.name}, {simulation.shape.dtype}")
        plot.legend(
            handles=list(handles.values()),
            loc="outside lower center",
            ncols=4,
            fontsize="small",
            handlelength=3,
        )
    return plot


def _grouped(estimates: Sequence[Estimate], choices: Sequence[Choice]) -> dict[str, list[Estimate]]:
    """The estimates of each row of panels, by its title: alike in all but policy, memory and window.

    A policy to which a field makes no difference is in every row.
    """
    fields = [field for field in ("device", "bundled", "order", "max_gap") if _differ(choices, field)]
    ways = list(dict.fromkeys(tuple(c[f] for f in fields) for c in choices if all(f in c for f in fields)))
    groups: dict[str, list[Estimate]] = {}
    for way in ways:
        title = ", ".join(_word(field, value) for field, value in zip(fields, way, strict=True))
        groups[title] = [
            each
            for each, choice in zip(estimates, choices, strict=True)
            if all(choice.get(field, value) == value for field, value in zip(fields, way, strict=True))
        ]
    return groups


def _lines(estimates: Sequence[Estimate], x: str, model_bytes: int) -> dict[str, Line]:
    """The lines of a row of panels by their labels: the estimates of each differ in x only."""
    lines: dict[str, Line] = {}
    choices = [_choice(each) for each in estimates]
    kept = {"policy", "memory", "window"} - {x}
    rest = [{field: value for field, value in choice.items() if field in kept} for choice in choices]
    for each, choice, label in zip(estimates, choices, _labels(rest), strict=True):
        lines.setdefault(label, []).append((_place(each, choice, x, model_bytes), each))
    return lines


def _draw_lines(panels: Any, lines: Mapping[str, Line], x: str, title: str) -> dict[str, Any]:
    """A row of panels; a line is level where x makes no difference to it. Returns the legend's handles."""
    handles: dict[str, Any] = {}
    estimates = [each for line in lines.values() for _, each in line]
    for panel, (field, heading) in zip(panels, PANELS.items(), strict=True):
        drawn: dict[str, int] = {}  # how many lines each policy has
        for number, (label, line) in enumerate(lines.items()):
            policy = line[0][1].configuration.policy
            dash = DASHES[drawn.get(policy, 0) % len(DASHES)]
            drawn[policy] = drawn.get(policy, 0) + 1
            look = {"linestyle": dash, **LOOKS[policy], "label": label}
            points = sorted((at, getattr(each, field)) for at, each in line if at is not None)
            if points:
                (handles[label],) = panel.plot(*zip(*points, strict=True), **look)
            else:
                (handles[label],) = _draw_level(panel, getattr(line[0][1], field), number, look)
        panel.set(title=f"{heading}, {title}" if title else heading, ylabel="milliseconds a token")
        places = sorted({at for line in lines.values() for at, _ in line if at is not None})
        _scale(panel, AXES[x], places, [getattr(each, field) for each in estimates])
    return handles


def _draw_level(panel: Any, value: float, number: int, look: Mapping[str, Any]) -> Any:
    """A level line from edge to edge, with one marker where no other level line has its own.

    So two lines that lie on each other are both seen.
    """
    place = 0.04 + 0.11 * number % 0.92  # in parts of the panel's width
    places, heights = [0.0, place, 1.0], [value] * 3
    return panel.plot(places, heights, transform=panel.get_yaxis_transform(), markevery=[1], **look)


def _scale(panel: Any, label: str, places: Sequence[float], times: Sequence[float]) -> None:
    """Ticks at the values that were asked for, if they are few and apart, and times as plain numbers."""
    from matplotlib import ticker

    panel.set_xlabel(label)
    narrowest = (places[-1] - places[0]) / (2 * MOST_TICKS)
    apart = all(after - before >= narrowest for before, after in pairwise(places))
    if len(places) <= MOST_TICKS and apart:
        panel.set_xticks(places, [f"{place:.3g}" for place in places])
    else:
        panel.xaxis.set_major_locator(ticker.MaxNLocator(MOST_TICKS, integer=label == AXES["window"]))
        panel.xaxis.set_major_formatter(_plain)
    if max(times) > WIDE * min(times) > 0:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(_plain)


def _plain(value: float, _: Any = None) -> str:
    """A tick as people write numbers: 2,000 and 0.45."""
    return f"{value:,.6g}"


def _place(estimate: Estimate, choice: Choice, x: str, model_bytes: int) -> float | None:
    """Where an estimate is on the x axis; None where x makes no difference to it."""
    if x == "window":
        return estimate.window
    memory = choice.get("memory")
    if isinstance(memory, Amount):
        return float(memory.number * UNITS[memory.unit] / model_bytes)
    return memory


def _draw_bars(axis: Any, estimates: Sequence[Estimate], labels: Sequence[str]) -> dict[str, Any]:
    """Where neither memory nor window varies: what each configuration's sum is made of."""
    left = np.zeros(len(estimates))
    handles = {}
    for (field, name), colour in zip(TIMES.items(), COLOURS, strict=False):
        widths = np.array([getattr(each, field) for each in estimates])
        handles[name] = axis.barh(range(len(labels)), widths, left=left, label=name, color=colour)
        left += widths
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter(_plain)
    axis.set(xlabel="milliseconds a token")
    axis.grid(visible=False, axis="y")
    return handles


def _choice(estimate: Estimate) -> Choice:
    configuration = estimate.configuration
    nothing = irrelevant(configuration.policy)
    return {field: value for field, value in configuration._asdict().items() if field not in nothing}


def _differ(choices: Sequence[Choice], field: str) -> bool:
    return len({choice[field] for choice in choices if field in choice}) > 1


def _labels(choices: Sequence[Choice]) -> list[str]:
    """A label for each choice: the policy, and every other field in which two of the choices differ."""
    return [
        ", ".join(
            _word(field, value)
            for field, value in choice.items()
            if field == "policy" or _differ(choices, field)
        )
        for choice in choices
    ]


def _word(field: str, value: Any) -> str:
    if field == "policy" and value == "belady":
        return "belady (a bound)"
    if field == "window" and value is not None:
        return f"{value} token{'s' * (value != 1)}"
    return choice_text(field, value) if field in ("window", "bundled") else choice_phrase(field, value)
