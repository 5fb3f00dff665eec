"""A model on flash as policies and costs see it: layouts and sizes without weights."""

from collections.abc import Iterator
from typing import NamedTuple

from flashref.bundle import Layout, bundle_layout
from flashref.types import Extent

SEQUENTIAL_READ = 1024 * 1024  # naive and hybrid read in pieces of 1 MiB, front to back (decision 20)


class Flash(NamedTuple):
    """A model on flash, layer by layer.

    bundled: for each layer a layout of its bundles.
    unbundled: for each layer a layout of the rows of each field.
    image_bytes: bytes of the whole bundled image.
    tensor_bytes: bytes of the checkpoint's tensors, without padding.
    """

    bundled: tuple[Layout, ...]
    unbundled: tuple[tuple[Layout, ...], ...]
    image_bytes: int
    tensor_bytes: int


def unbundled_layouts(bundled: Layout) -> tuple[Layout, ...]:
    """Lay out the same rows without bundling.

    Args:
        bundled: the layout of a layer's bundles.

    Returns:
        A layout for each field, one after the other with an unused block between, so that no read joins two.
    """
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
    """The bundles of a layer as one run of whole blocks."""
    return Extent(layout.start, blocks_end(layout) - layout.start)


def front_to_back(run: Extent) -> Iterator[Extent]:
    """Divide a run of bytes into reads of 1 MiB, the last one shorter."""
    for start in range(0, run.length, SEQUENTIAL_READ):
        yield Extent(run.offset + start, min(SEQUENTIAL_READ, run.length - start))


def blocks_end(layout: Layout) -> int:
    """The offset at which the last block with a bundle ends."""
    return -(-(layout.start + layout.n * layout.stride) // layout.block) * layout.block
