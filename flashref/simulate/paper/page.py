"""The page of `flashref paper --html`: one file that needs no other file, no script and no network."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from flashref import SPEC_VERSION, __version__
from flashref.simulate.html import html_table
from flashref.simulate.look import COLOURS, GRID, INK
from flashref.simulate.paper.figure import DEVICE, DEVICE_NAME, Figure
from flashref.simulate.paper.plots import plot_svg
from flashref.simulate.paper.sections import RULE, SUMMARY, Section, section_html
from flashref.simulate.paper.table2 import Table2

TITLE = "“LLM in a flash”: its figures and tables, derived"
FOLDED = 24  # a table with more rows is folded away under its plot
# The plots' colours on a light and on a dark ground, each with a contrast of at least 3 : 1.
LIGHT = ("#0072b2", "#c65300", "#00835f", "#b4508f", "#2f86b5", "#9a6a00")
DARK = ("#5ab4f0", "#ff9a52", "#3ed6a9", "#f0a3cf", "#b9e2ff", "#ffc957")
STYLESHEET = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1a1a1a; --soft: #595959; --line: #d0d0d0;
  --band: #f4f6f8; --link: #00539c; LIGHT_COLOURS }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15181c; --ink: #e8e8e8; --soft: #b0b0b0; --line: #444a52; --band: #1f242a;
    --link: #8cc8ff; DARK_COLOURS } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.25 }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .5rem }
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.5rem }
a { color: var(--link) }
.from, figcaption, caption, footer { color: var(--soft); font-size: .9rem }
figure { margin: 1rem 0; max-width: 34rem }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt }
svg text { fill: currentColor; font-family: system-ui, sans-serif }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
caption { text-align: left; padding-bottom: .4rem }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; font-weight: normal;
  border-bottom: 1px solid var(--line) }
thead th { font-weight: 600; vertical-align: bottom }
.number { text-align: right }
td.number { white-space: nowrap }
tbody th { min-width: 9.5rem }
td.words { min-width: 16rem }
summary { cursor: pointer; padding: .3rem 0 }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
"""


def page(results: Mapping[str, Figure | Table2]) -> str:
    """Write the page: a summary, then each result with its plot, its table and its notes.

    Args:
        results: figures and tables by name, as `paper_tables` returns them.

    Returns:
        The page's HTML.
    """
    sections = [result.section(name) for name, result in results.items()]
    parts = [_part(each, plot_svg(each.name, results[each.name])) for each in sections]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(TITLE)}</title>
<style>{_stylesheet()}</style>
</head>
<body>
<header>
<h1>{escape(TITLE)}</h1>
<p>flashref is the executable reference of “LLM in a flash: Efficient Large Language Model Inference with
Limited Memory” (Alizadeh et al., arXiv 2312.11514v3). This page sets what it derives beside what the paper
prints. {escape(RULE)}</p>
<p>Where the paper contradicts itself, or a value cannot be derived, a note says so.</p>
</header>
<main>
{_summary(sections)}
{"".join(parts)}</main>
<footer>
<p>flashref {escape(__version__)}, spec {escape(SPEC_VERSION)}: <code>flashref paper --html FILE</code>. The
device {escape(DEVICE_NAME)}: {_device()}.</p>
</footer>
</body>
</html>
"""


def _stylesheet() -> str:
    colours = [
        " ".join(f"--colour{at}: {colour};" for at, colour in enumerate(ground)) for ground in (LIGHT, DARK)
    ]
    return STYLESHEET.replace("LIGHT_COLOURS", colours[0]).replace("DARK_COLOURS", colours[1])


def _device() -> str:
    return (
        f"{DEVICE.latency_ns / 1e3:g} µs, {DEVICE.max_iops:,} reads/s, {DEVICE.max_bandwidth / 1e9:g} GB/s, "
        f"{DEVICE.stream_bandwidth / 1e9:g} GB/s in one read, knee {DEVICE.knee:g}, depth "
        f"{DEVICE.queue_depth}, blocks of {DEVICE.block:,} bytes"
    )


def _summary(sections: Sequence[Section]) -> str:
    table = html_table(
        "Summary: how large the relative errors are",
        SUMMARY,
        [each.summary for each in sections],
        words={len(SUMMARY) - 1},
        links=[f"#{each.name}" for each in sections],
    )
    return _scrolled("Summary", table)


def _part(each: Section, svg: str) -> str:
    """A section of the page."""
    table = _scrolled(each.title, section_html(each._replace(title="The same in numbers")))
    if len(each.rows) > FOLDED:
        table = f"<details><summary>All {len(each.rows)} rows</summary>\n{table}</details>\n"
    title, notes = escape(each.title), "\n".join(f"<li>{escape(note)}</li>" for note in each.notes)
    return f"""
<section id="{each.name}" aria-labelledby="{each.name}-title">
<h2 id="{each.name}-title">{title}</h2>
<p class="from">Derived from: {escape(each.inputs)}. {escape(each.agreement)}</p>
<figure>
{inline_svg(svg, each.name, f"Plot of {each.title}. Its values are in the table below.")}
<figcaption>{title}. Lines: ours; markers: the paper's.</figcaption>
</figure>
{table}<ul>
{notes}
</ul>
</section>
"""


def inline_svg(svg: str, name: str, label: str) -> str:
    """Make an SVG of matplotlib a part of a page, with the page's width, font and colours.

    Args:
        svg: the SVG's text.
        name: what the ids in the SVG begin with, so that they are unique in the page.
        label: what a screen reader says.

    Returns:
        The `<svg>` element.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    # The font is one property or two, depending on the release of matplotlib.
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*(; |;|(?=\"))", "", svg)
    for at, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--colour{at})")
    svg = svg.replace(INK, "currentColor").replace(GRID, "currentColor")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    head = f'<svg {box.group()} role="img" aria-label="{escape(label)}">'
    return head + svg[svg.index(">") + 1 :].strip()


def _scrolled(label: str, table: str) -> str:
    """Put a table into a container of its own, in which it scrolls, by keyboard too, on a narrow screen."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n{table}\n</div>\n'
