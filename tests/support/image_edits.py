"""Images edited where it hurts: what a careless or hostile writer may put into a header, and where.

Every choice is a call of `choose(n)`, a number from 0 to n − 1, so that Hypothesis, atheris and a generator
can all make it. `check` says what must hold of the result, whatever was chosen.
"""

import json
import re
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save

from flashref.storage.container import read_container
from flashref.storage.image import image_tensor, open_image, pack_image
from flashref.types import ImageError

BLOCK = 512
CONSTANT = 1 << 18  # bytes that opening a small file may hold beside those of the file
Choose = Callable[[int], int]

# JSON values as they stand in a header: a parser meets the bytes, not what some encoder would write.
VALUES = (
    *(str(1 << bits).encode() for bits in (0, 9, 20, 31, 32, 40, 53, 62, 63, 64, 200)),
    *(b"0", b"1", b"2", b"3", b"512", b"-1", b"-0", b"00", b"+1", b"1.0", b"1e3", b"1E400", b"9" * 4999),
    *(
        b"9223372036854775807",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"null",
        b"true",
        b"false",
        b"",
        b"[]",
        b"{}",
    ),
    *(b"[1,2]", b"[0]", b"[0,0]", b"[1,1,1]", b"[0,4611686018427387904]", b"[4611686018427387904,2]"),
    *(b"[" * 90 + b"]" * 90, b"[" * 970 + b"]" * 970, b"[" * 3000, b'{"a":' * 500, b"[" + b"1," * 70 + b"1]"),
    *(b'""', b'"F32"', b'"F16"', b'"BF16"', b'"U8"', b'"U32"', b'"I32"', b'"BOOL"', b'"F8_E4M3"', b'"F7"'),
    *(b'"C64"', b'"true"', b'"false"', b'"maybe"', b'"True"', b'"1"', b'"2"', b'"512"', b'"1024"', b'"+512"'),
    *(b'" 512"', b'"5_12"', b'"\xd9\xa5\xd9\xa1\xd9\xa2"', b'"256"', b'"{}"', b'"[]"', b'"up"', b'["up"]'),
    *(
        b'["up","down"]',
        b'["down","up"]',
        b'["up","up"]',
        b'["gate","up","down"]',
        b'["up","side"]',
        b'[["up"]]',
    ),
    *(
        b"[1,0,2]",
        b"[0,1,2]",
        b"[true,0,2]",
        b"[0,1]",
        b"[0,1,3]",
        b"[0,0,1]",
        b'"012"',
        b"[[0,1,2]]",
        b"[2.0]",
    ),
    *(
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'"\\ud83d\\ude00"',
        b'"\\u0000"',
        b'"\n"',
        b'"\\n"',
        b'"\\x"',
    ),
    *(b'"' + b"x" * 2000 + b'"', b'"\xf0\x9f\x98\x80"', b'"' + b"0" * 64 + b'"', b"// no\n1", b"{'a':1}"),
)
KEYS = (
    *(b'"__metadata__"', b'"crc32"', b'"pad.0"', b'"pad.1"', b'"layers.0.bundles"', b'"layers.1.bundles"'),
    *(b'"layers.0.bundles.crc32"', b'"layers.0.up"', b'"layers.00.bundles"', b'"dtype"', b'"shape"', b'"a"'),
    *(
        b'"data_offsets"',
        b'"format"',
        b'"version"',
        b'"bundles"',
        b'"bundled"',
        b'"order"',
        b'"layer"',
        b'""',
    ),
    *(b'"\\ud800"', b'"\xff"', b'"a\\nb"', b'"' + b"k" * 300 + b'"', b"1", b"null", b"a"),
)
STEPS = (1, -1, 2, 4, 8, -8, BLOCK, -BLOCK, 1 << 31, 1 << 32, 1 << 62)


class Seed(NamedTuple):
    """An image to start from: its bytes, its header as a tree, the text of each list of that (by its id),
    what is in the image, and where its checksums begin.
    """

    raw: bytes
    tree: "Object"
    texts: dict[int, bytes]
    content: object
    table: int


class Object(list):
    """A JSON object as a list of pairs: a header may name something twice."""


class Pair(list):
    """A key and its value."""


class Quoted(list):
    """A JSON document inside a string, as the one item of a list."""


def make_seeds(folder: Path) -> list[Seed]:
    """Two small images of one checkpoint, bundled and not; each holds all that images may hold."""
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((3, 1)).astype(np.float16), rng.standard_normal((1, 3)).astype(np.float16)
    others = {"bias": np.float32([1, 2, 3]), "ids": np.arange(2), "none": np.zeros((0, 3), np.float32)}
    (folder / "model.safetensors").write_bytes(save({"up": up, "down": down} | others))
    checkpoint = read_container(folder / "model.safetensors")
    seeds = []
    for bundled in (True, False):
        path = folder / f"{bundled}"
        tensors, layers = dict.fromkeys(checkpoint.tensors, checkpoint), {0: {"up": "up", "down": "down"}}
        orders = {0: [2, 0, 1]} if bundled else None
        pack_image(path, tensors, layers, '{"a":"\u00f6"}', BLOCK, orders, bundled)
        table = open_image(path).container.tensors["crc32"].offset
        raw = path.read_bytes()
        text = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
        tree = _tree(json.loads(text, object_pairs_hook=_Pairs), "")
        texts: dict[int, bytes] = {}
        _text(tree, texts)
        seeds.append(Seed(raw, tree, texts, content(open_image(path)), table))
    return seeds


def edited(seed: Seed, choose: Choose) -> tuple[bytes, bool]:
    """The image after one to three edits, and whether the checksum of its header was then put right."""
    text, data = parts(seed)
    mended, where = False, choose(16)
    if where < 12:
        header = Object(seed.tree)
        for _ in range(1 + choose(3)):
            _edit_tree(header, seed.texts, choose)
        text, mended = _text(header, seed.texts, keep=False), choose(4) > 0
    elif where < 15:
        for _ in range(1 + choose(3)):
            text = _edit_bytes(text, choose)
        mended = choose(2) > 0
    else:
        data = _edit_bytes(data, choose)
    if choose(16):
        text = padded(text)
    claimed = len(text)
    if not choose(16):
        claimed = (0, 7, len(text) // 2, len(text) + 1, 1 << 40, (1 << 64) - 1)[choose(6)]
    return joined(seed, text, data, mended, claimed), mended


def parts(seed: Seed) -> tuple[bytes, bytes]:
    """The text of an image's header, without its padding, and what comes after it."""
    end = 8 + int.from_bytes(seed.raw[:8], "little")
    return seed.raw[8:end].rstrip(), seed.raw[end:]


def padded(text: bytes) -> bytes:
    """A header's text with spaces to the end of a block, as packing writes it."""
    return text.ljust(-(-(8 + len(text)) // BLOCK) * BLOCK - 8)


def joined(seed: Seed, text: bytes, data: bytes, mended: bool = True, claimed: int | None = None) -> bytes:
    """A file of this header and this data. mended: the header's checksum is put where the seed has it."""
    start = (len(text) if claimed is None else claimed).to_bytes(8, "little") + text
    if mended:
        begin = seed.table - (len(seed.raw) - len(parts(seed)[1]))
        data = data[:begin] + zlib.crc32(start).to_bytes(4, "little") + data[begin + 4 :]
    return start + data


def check(path: Path, raw: bytes, mended: bool, seed: Seed) -> bool:
    """What must hold of a file with these bytes; gives whether it can be opened as an image."""
    path.write_bytes(raw)
    container = _or_refused(read_container, path)
    if container is None:  # and what opens an image begins with that
        return False
    # What is accepted here, the library accepts too, and sees the same.
    library = dict(safetensors.deserialize(raw))
    assert library.keys() == container.tensors.keys()
    for name, (dtype, shape, offset, length) in container.tensors.items():
        assert (library[name]["dtype"], tuple(library[name]["shape"])) == (dtype, shape)
        assert bytes(library[name]["data"]) == raw[offset : offset + length]
    with safetensors.safe_open(path, "numpy") as opened:
        assert (opened.metadata() or {}) == container.metadata
    image = _or_refused(open_image, path)
    if image is None:
        return False
    if not mended:  # only what nobody summed, the bundles, can differ
        assert content(image) == seed.content
    else:
        _check_image(image, library, container.metadata)
    return True


def opening_peak(path: Path) -> int:
    """The most bytes that opening the file, or refusing it, holds at a time."""
    tracemalloc.start()
    _or_refused(open_image, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def content(image: object) -> object:
    """All of an image but its path and its bundles, comparable."""
    arrays = [(layer, [sums.tobytes() for sums in of]) for layer, of in image.checksums.items()]
    layouts = [
        (layer, [(*layout[:-1], _listed(layout.order)) for layout in of])
        for layer, of in image.layouts.items()
    ]
    resident = [(name, image_tensor(image, name).tobytes()) for name in image.resident]
    told = (image.fingerprint, image.config, image.bundled, image.container.metadata)
    return told, list(image.container.tensors.items()), resident, layouts, arrays


def _check_image(image, library, metadata) -> None:
    """An opened image against what its header says in so many words, read by json and safetensors alone."""
    assert (metadata["format"], metadata["version"]) == ("flashref-image", "1")
    assert {"true": True, "false": False}[metadata["bundled"]] is image.bundled
    assert (image.fingerprint, image.config) == (metadata["fingerprint"], metadata["config"])
    block, records = int(metadata["block"]), json.loads(metadata["bundles"])
    assert metadata["block"] == str(block) and block in [1 << k for k in range(9, 21)]
    layouts = {(layer, layout.fields): layout for layer, of in image.layouts.items() for layout in of}
    assert len(layouts) == len(records) == sum(map(len, image.checksums.values()))
    for name, record in records.items():
        layout = layouts[record["layer"], tuple(record["fields"])]
        told = library[name]
        expected = (
            told["shape"][0],
            record["d"],
            told["dtype"],
            tuple(record["fields"]),
            block,
            record["stride"],
        )
        assert (layout.n, layout.d, layout.dtype, layout.fields, layout.block, layout.stride) == expected
        assert layout.n * layout.stride == len(told["data"]) and layout.bundle_bytes <= layout.stride
        assert _listed(layout.order) == record["order"]
        assert sorted(record["order"] or range(layout.n)) == list(range(layout.n))
        assert all(
            type(number) is int for number in (layout.n, layout.d, layout.block, layout.stride, layout.start)
        )
        sums = image.checksums[record["layer"]][image.layouts[record["layer"]].index(layout)]
        assert sums.tobytes() == bytes(library[f"{name}.crc32"]["data"]) and sums.shape == (layout.n,)
    own = {"crc32", *records, *(f"{name}.crc32" for name in records)}
    pads = {name for name in library if re.fullmatch(r"pad\.[0-9]+", name)}
    assert set(image.resident) == library.keys() - own - pads
    for name in image.resident:
        assert image_tensor(image, name).tobytes() == bytes(library[name]["data"])


def _or_refused(read: Callable, path: Path):
    """The result, or None if it is refused in one short sentence that names the file."""
    try:
        return read(path)
    except ImageError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and "; " in message
        assert "\n" not in message and len(message) < len(str(path)) + 500
        return None


def _listed(order):
    return None if order is None else order.tolist()


class _Pairs(list):
    """What json gives for an object, before it is a tree."""


def _tree(value: object, key: str) -> object:
    """Objects, lists and quoted documents as lists that can be edited; all else as the bytes of its JSON."""
    if isinstance(value, _Pairs):
        return Object(Pair([json.dumps(key).encode(), _tree(item, key)]) for key, item in value)
    if isinstance(value, list):
        return [_tree(item, "") for item in value]
    if key == "bundles" and isinstance(value, str):
        return Quoted([_tree(json.loads(value, object_pairs_hook=_Pairs), "")])
    return json.dumps(value).encode()


def _text(value: object, texts: dict[int, bytes], keep: bool = True) -> bytes:
    """The JSON of a tree; lists that are in `texts` are as they were. keep: put all of them there."""
    if isinstance(value, bytes):
        return value
    text = texts.get(id(value))
    if text is None:
        items = [_text(item, texts, keep) for item in value]
        if isinstance(value, Object):
            text = b"{" + b",".join(items) + b"}"
        elif isinstance(value, Pair):
            text = b":".join(items)
        elif isinstance(value, Quoted):
            text = b'"' + b"".join(items).replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        else:
            text = b"[" + b",".join(items) + b"]"
        if keep:
            texts[id(value)] = text
    return text


def _place(tree: list, choose: Choose) -> tuple[list, int]:
    """Some list of the tree, and an index in it; the lists on the way are copied, the tree's own stay."""
    where, i = tree, choose(len(tree))
    while isinstance(where[i], list) and where[i] and choose(8):
        where[i] = type(where[i])(where[i])
        where = where[i]
        i = choose(len(where))
    return where, i


def _edit_tree(tree: list, texts: dict[int, bytes], choose: Choose) -> None:
    """One edit: a value set, copied, stepped, dropped, doubled, swapped, or a key renamed."""
    if not tree:
        return
    where, i = _place(tree, choose)
    kind = choose(7)
    if kind == 3 and not isinstance(where, Pair | Quoted):
        del where[i]
    elif kind == 4 and not isinstance(where, Pair | Quoted):
        where.append(where[i])
    elif kind == 5:
        j = choose(len(where))
        where[i], where[j] = where[j], where[i]
    elif isinstance(where, Object):
        where[i] = Pair([KEYS[choose(len(KEYS))], where[i][1]])
    elif kind == 1:
        source, j = _place(Object(tree), choose)
        where[i] = _text(source[j], texts, keep=False)
    elif isinstance(where[i], bytes) and re.fullmatch(b'"?[0-9]{1,18}"?', where[i]) and kind == 2:
        digits = where[i].strip(b'"')
        where[i] = where[i].replace(digits, str(int(digits) + STEPS[choose(len(STEPS))]).encode())
    else:
        where[i] = VALUES[choose(len(VALUES))]


def _edit_bytes(text: bytes, choose: Choose) -> bytes:
    """One edit of the bytes themselves: cut, flipped, put in, or taken out."""
    at, kind = choose(len(text) + 1), choose(5)
    if kind == 0:
        return text[:at]
    if kind == 1 and at < len(text):
        return text[:at] + bytes([text[at] ^ 1 << choose(8)]) + text[at + 1 :]
    if kind == 2:
        return text[:at] + VALUES[choose(len(VALUES))] + text[at:]
    if kind == 3:
        return text[:at] + text[at + 1 + choose(16) :]
    return text + bytes(choose(2 * BLOCK))
