"""A model on flash, as policies and costs see it: layouts and sizes, no weights."""

from collections.abc import Iterator
from typing import NamedTuple

from flashref.bundle import Layout, bundle_layout
from flashref.types import Extent

SEQUENTIAL_READ = 1024 * 1024  # naive and hybrid read front to back in pieces of 1 MiB (decision 20)


class Flash(NamedTuple):
    """A model on flash, layer by layer.

    bundled: a layout a layer; unbundled: one a field of each layer; image_bytes: of the whole bundled image;
    tensor_bytes: of the checkpoint, without padding.
    """

    bundled: tuple[Layout, ...]
    unbundled: tuple[tuple[Layout, ...], ...]
    image_bytes: int
    tensor_bytes: int


def unbundled_layouts(bundled: Layout) -> tuple[Layout, ...]:
    """The same rows without bundling: one layout a field, one after the other with a block between."""
    layouts: list[Layout] = []
    start = 0
    for field in bundled.fields:
        layout = bundle_layout(
            bundled.n, bundled.d, bundled.dtype, (field,), bundled.block, start, bundled.order
        )
        layouts.append(layout)
        start = blocks_end(layout) + layout.block
    return tuple(layouts)


def ffn_run(layout: Layout) -> Extent:
    """The bundles of one layer as one run of whole blocks."""
    return Extent(layout.start, blocks_end(layout) - layout.start)


def front_to_back(run: Extent) -> Iterator[Extent]:
    """A run of bytes in sequential reads of 1 MiB, the last one shorter."""
    for start in range(0, run.length, SEQUENTIAL_READ):
        yield Extent(run.offset + start, min(SEQUENTIAL_READ, run.length - start))


def blocks_end(layout: Layout) -> int:
    """Where the last block with a bundle ends."""
    return -(-(layout.start + layout.n * layout.stride) // layout.block) * layout.block
