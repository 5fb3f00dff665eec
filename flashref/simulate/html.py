"""Tables as HTML, for notebooks and for the page of `flashref paper --html`."""

from collections.abc import Collection, Sequence
from html import escape


def html_table(
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Collection[int] = (),
    links: Sequence[str] = (),
) -> str:
    """Write a table whose first column names the rows.

    Args:
        caption: the line above the table.
        headings: a text for each column.
        rows: for each row a text for each column.
        words: the numbers of further columns that hold words; the others hold numbers.
        links: where the first cell of each row leads; empty if none leads anywhere.

    Returns:
        The table's HTML, with all texts escaped.
    """
    heads = "".join(
        f'<th scope="col"{" class=number" * (at > 0 and at not in words)}>{escape(heading)}</th>'
        for at, heading in enumerate(headings)
    )
    body = "\n".join(
        f"<tr>{_cells(row, words, links[number] if links else '')}</tr>" for number, row in enumerate(rows)
    )
    return (
        f"<table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )


def _cells(row: Sequence[str], words: Collection[int], link: str) -> str:
    first, *others = map(escape, row)
    if link:
        first = f'<a href="{escape(link)}">{first}</a>'
    cells = [
        f'<td class="{"words" if at in words else "number"}">{text}</td>'
        for at, text in enumerate(others, start=1)
    ]
    return f'<th scope="row">{first}</th>' + "".join(cells)
