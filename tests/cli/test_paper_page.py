"""The page of `flashref paper --html`: well-formed, complete, and readable by everybody."""

import re
from html.parser import HTMLParser

import pytest
from paper_figures import NAMES, derived

from flashref.simulate.look import COLOURS, GRID, INK
from flashref.simulate.paper.figure import Figure, FigureRow
from flashref.simulate.paper.page import FOLDED, inline_svg, page

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert(\"a & 'b'\")</script>"


class Page(HTMLParser):
    """A page taken apart; an end that nothing began is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.text[tag] = self.text.get(tag, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def whole():
    return page({name: derived(name) for name in NAMES})


def test_the_page_is_well_formed_and_says_its_language(whole):
    parsed = Page(whole)
    assert whole.startswith("<!DOCTYPE html>")
    assert parsed.open == []
    assert parsed.all("html") == [{"lang": "en"}]
    assert "LLM in a flash" in parsed.text["title"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all("meta")
    assert len(parsed.all("h1")) == len(parsed.all("main")) == len(parsed.all("style")) == 1


def test_the_page_needs_nothing_else(whole):
    parsed = Page(whole)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "base", "image", "foreignobject"}
    assert "://" not in whole and "@import" not in whole
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset")]
        link = attributes.get("href")
        assert link is None or link.startswith("#") or (tag, link) == ("link", "data:,")
    assert all(word.startswith("url(#") for word in re.findall(r"url\([^)]{2}", whole))


def test_ids_are_unique_and_whatever_is_referred_to_is_there(whole):
    parsed = Page(whole)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', whole))
    wanted |= {attributes["aria-labelledby"] for attributes in parsed.all("section")}
    assert wanted <= set(ids)
    assert set(NAMES) <= wanted


def test_every_figure_is_on_the_page_with_a_plot_a_table_and_its_notes(whole):
    parsed = Page(whole)
    assert [attributes["id"] for attributes in parsed.all("section")] == NAMES
    plots = parsed.all("svg")
    assert len(plots) == len(parsed.all("figcaption")) == len(NAMES)
    for name, plot in zip(NAMES, plots, strict=True):
        assert plot["role"] == "img" and derived(name).title in plot["aria-label"]
        assert set(plot) == {"viewbox", "role", "aria-label"}  # as wide as there is room
        assert re.fullmatch(r"0 0 350 [2-9]\d\d", plot["viewbox"])
    assert len(parsed.all("table")) == len(parsed.all("caption")) == 1 + len(NAMES)
    rows = sum(len(derived(name).rows) for name in NAMES)
    assert len(parsed.all("tr")) == len(NAMES) + rows + len(parsed.all("table"))
    for name in NAMES:
        for note in derived(name).notes:
            assert note in parsed.text["li"]
        assert derived(name).inputs in parsed.text["p"]


def test_headings_of_tables_say_what_they_head(whole):
    heads = [attributes.get("scope") for attributes in Page(whole).all("th")]
    rows = sum(len(derived(name).rows) for name in NAMES)
    assert heads.count("row") == len(NAMES) + rows
    assert set(heads) == {"row", "col"}


def test_only_tables_scroll_and_the_keyboard_reaches_them(whole):
    scrolled = [attributes for attributes in Page(whole).all("div") if attributes.get("class") == "scroll"]
    assert len(scrolled) == 1 + len(NAMES)
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in scrolled)
    assert whole.count("overflow-x") == 1


def test_long_tables_are_folded_away(whole):
    folded = [name for name in NAMES if len(derived(name).rows) > FOLDED]
    assert folded == ["figure2b", "figure4a", "figure8"]
    assert len(Page(whole).all("details")) == len(folded)


def test_plots_take_their_colours_from_the_page_which_has_them_light_and_dark(whole):
    start, end = whole.index("<style>"), whole.index("</style>")
    sheet, body = whole[start:end], whole[end:]
    for colour in (*COLOURS, INK, GRID, "#ffffff"):
        assert colour not in body
    assert re.search(r"svg text \{[^}]*fill: currentColor", sheet)  # black unless told
    assert "DejaVu" not in body and "font-size: " in body  # in the page's font
    used = set(re.findall(r"var\((--colour\d)\)", body))
    assert used == {f"--colour{at}" for at in range(5)}
    light, dark = sheet.split("prefers-color-scheme: dark")
    for colour in used:
        assert f"{colour}: #" in light and f"{colour}: #" in dark


@pytest.mark.parametrize(
    "font", ["font: 11px 'A B', serif; ", "font-size: 11px; font-family: 'A B', serif; ", "font-size: 11px; "]
)
def test_words_in_a_plot_keep_their_size_and_take_the_page_s_font(font):
    svg = (
        f'<?xml?><svg viewBox="0 0 1 2" width="9"><text id="a" style="{font}text-anchor: end">x</text></svg>'
    )
    assert inline_svg(svg, "n", "l") == (
        '<svg viewBox="0 0 1 2" role="img" aria-label="l">'
        '<text id="n-a" style="font-size: 11px; text-anchor: end">x</text></svg>'
    )


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_lines_and_words_stand_out_from_their_ground(whole):
    # WCAG 2.2: 3 : 1 for what is drawn, 4.5 : 1 for words.
    for rules in whole[whole.index("<style>") : whole.index("body {")].split("@media"):
        found = {
            name: "#" + "".join(digit * (2 if len(value) == 3 else 1) for digit in value)
            for name, value in re.findall(r"--([\w]+): #([0-9a-f]+)", rules)
        }
        ground = luminance(found["ground"])
        for name, colour in found.items():
            light, dark = sorted([luminance(colour), ground], reverse=True)
            contrast = (light + 0.05) / (dark + 0.05)
            if name.startswith("colour"):
                assert contrast >= 3, name
            elif name in ("ink", "soft", "link"):
                assert contrast >= 4.5, name


def test_words_on_the_page_are_escaped():
    rows = (FigureRow(HOSTILE, 1.0, 2.0, 3.0, HOSTILE), FigureRow("b", 2.0, 2.0, 3.0))
    text = page({"figure7": Figure(HOSTILE, HOSTILE, HOSTILE, HOSTILE, rows, (HOSTILE,))})
    parsed = Page(text)
    assert not parsed.all("script")
    assert parsed.text["h2"] == parsed.text["li"] == HOSTILE
    assert HOSTILE in parsed.text["td"] and HOSTILE in parsed.text["svg"]
    assert [each["aria-label"].count(HOSTILE) for each in parsed.all("svg") + parsed.all("div")] == [1, 0, 1]


def test_the_same_figures_give_the_same_bytes(whole):
    one = {"figure7": derived("figure7")}
    assert page(one) == page(one)
    assert page(one).count("<section") == 1
