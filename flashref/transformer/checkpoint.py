"""A Hugging Face directory: config.json and safetensors, checked before anything is computed.

Every mistake in one is a FlashrefError whose text says what is wrong and what to do. Weights are read when
they are asked for, one tensor at a time, so that a checkpoint larger than memory can be opened.
"""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashref.storage.container import Container, read_container, require_finite, tensor_array
from flashref.transformer import config_values
from flashref.transformer.families import FAMILIES
from flashref.transformer.family import Config, Tensor, fill, leaves
from flashref.types import FFN, STORED_DTYPES, Array, DomainError, FlashrefError, ImageError, ShapeError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONVERSION = (  # what to type before the old directory and the new one
    "python -c 'import sys; from transformers import AutoModelForCausalLM as M; "
    'M.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[2])\''
)
MATRICES = ("gate", "up", "down")  # of an FFN: what is read from flash


class Checkpoint(NamedTuple):
    """An opened checkpoint: its config, and the file in which each tensor lies.

    config_text: config.json as canonical JSON, keys sorted; parse_config reads it again.
    layers: for every layer, the field of its bundles (gate if there is one, up, down) to the tensor's name.
    """

    directory: Path
    config: Config
    config_text: str
    tensors: Mapping[str, Container]
    layers: tuple[Mapping[str, str], ...]


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint in a directory, its headers checked against its config; no weight is read yet.

    Raises ImageError, DomainError (a model that is not supported), ShapeError (a tensor that does not fit).
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ImageError(f"{folder}: there is no such directory; give the one that holds config.json")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ImageError(f"{folder}: has no config.json; give the directory of a Hugging Face checkpoint")
    config_text = json.dumps(_read_object(config_file), sort_keys=True, separators=(",", ":"))
    try:
        config = parse_config(config_text)
    except FlashrefError as error:
        raise type(error)(f"{folder}: {error}") from None
    tensors = dict(_locate_tensors(folder))
    _check_tensors(folder, config, tensors)
    layers = tuple(_ffn_matrices(config, layer) for layer in range(config.layers))
    return Checkpoint(folder, config, config_text, tensors, layers)


def parse_config(text: str) -> Config:
    """The config in the text of a config.json: of a directory, or of an image's metadata.

    Raises ImageError, DomainError for a model_type or a variant that is not supported.
    """
    # A lone surrogate passes here, so that it is refused with the rest of what is not UTF-8.
    values = _parse_object(text.encode("utf-8", "surrogatepass"), "config.json")
    family = config_values.text(values, "model_type")
    if family not in FAMILIES:
        raise DomainError(
            f"config.json has model_type {family!r}, which is not supported; use one of {', '.join(FAMILIES)}"
        )
    if values.get("quantization_config") is not None:
        raise DomainError(
            "config.json has a quantization_config, and quantised weights are not read; "
            "give the checkpoint that they were made of"
        )
    return FAMILIES[family].config_from(values)


def tensor_shapes(config: Config) -> Iterator[Tensor]:
    """Name and shape of every tensor that the model needs, the FFN matrices included."""
    family = FAMILIES[config.family]
    yield from dict.fromkeys(leaves(family.ends(config)))  # a tied head is named twice
    for layer in range(config.layers):
        yield from leaves(family.block(config, layer))
        yield from leaves(family.ffn(config, layer))


def with_activation(checkpoint: Checkpoint, activation: tuple[str, float] | None) -> Checkpoint:
    """The same weights with another activation and its tau; None: with their own."""
    if activation is None:
        return checkpoint
    name, tau = activation
    return checkpoint._replace(config=checkpoint.config._replace(activation=name, tau=tau))


def load_tensor(checkpoint: Checkpoint, name: str) -> Array:
    """A tensor in its stored dtype, BF16 as uint16 bits. Raises DomainError if one value is not finite."""
    if name not in checkpoint.tensors:
        raise ImageError(
            f"{checkpoint.directory}: has no tensor {name}; ask for one that the checkpoint holds"
        )
    container = checkpoint.tensors[name]
    array = tensor_array(container, name)
    require_finite(container, name, array)
    return array


def load_ffn(checkpoint: Checkpoint, layer: int) -> FFN:
    """A layer's FFN in the stored dtype, neuron-major: down is transposed into C order (decision 12)."""
    config = checkpoint.config
    ffn = fill(FAMILIES[config.family].ffn(config, layer), lambda leaf: load_tensor(checkpoint, leaf.name))
    return ffn._replace(down=np.ascontiguousarray(ffn.down.T))  # (d, n) to (n, d)


def _ffn_matrices(config: Config, layer: int) -> dict[str, str]:
    """The tensors that are read from flash: field of the FFN to name."""
    ffn: Any = FAMILIES[config.family].ffn(config, layer)
    return {field: getattr(ffn, field).name for field in MATRICES if getattr(ffn, field) is not None}


def _parse_object(text: bytes, source: str) -> dict[str, Any]:
    """A JSON object in UTF-8 without NaN or Infinity, or ImageError naming the source."""

    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        values = json.loads(text.decode(), parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{source}: is not JSON in UTF-8 ({error}); get the file again") from None
    if not isinstance(values, dict):
        raise ImageError(f"{source}: is JSON, but not an object; get the file again")
    return values


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return _parse_object(text, str(path))


def _locate_tensors(folder: Path) -> Iterator[tuple[str, Container]]:
    """Every tensor's name and file: of model.safetensors if there is one, else of the index's shards."""
    if (folder / WEIGHTS).is_file():
        container = read_container(folder / WEIGHTS)
        yield from ((name, container) for name in container.tensors)
    elif (folder / INDEX).is_file():
        yield from _locate_shards(folder)
    elif any(folder.glob("*.bin")):
        raise ImageError(
            f"{folder}: has its weights in .bin files, which are not read because loading them can run code; "
            f"convert them: {CONVERSION} {shlex.quote(str(folder))} {shlex.quote(f'{folder}-safetensors')}"
        )
    else:
        raise ImageError(f"{folder}: has neither {WEIGHTS} nor {INDEX}; get the checkpoint's weights")


def _locate_shards(folder: Path) -> Iterator[tuple[str, Container]]:
    """Every tensor that the index names, with its shard; each shard's header is read once."""
    files = _read_object(folder / INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ImageError(f"{folder / INDEX}: has no weight_map of tensors to files; get the file again")
    shards: dict[str, Container] = {}
    for name, file in files.items():
        if file not in shards:
            if Path(file).name != file:
                raise ImageError(
                    f"{folder / INDEX}: names {file!r}, not a file beside it; get the file again"
                )
            if not (folder / file).is_file():
                raise ImageError(f"{folder}: lacks {file}, which {INDEX} names; get that shard")
            shards[file] = read_container(folder / file)
        if name not in shards[file].tensors:
            raise ImageError(
                f"{folder / file}: lacks the tensor {name}, which {INDEX} puts there; get it again"
            )
        yield name, shards[file]


def _check_tensors(folder: Path, config: Config, tensors: Mapping[str, Container]) -> None:
    """Every needed tensor is there, in the shape that the config asks for, all in one stored dtype."""
    first = ""  # the tensor whose dtype the others must have: the first needed one
    for name, shape in tensor_shapes(config):  # not all at once: a config may claim a billion layers
        if name not in tensors:
            raise ImageError(
                f"{folder}: lacks the tensor {name}, which its config.json calls for; get the missing shard, "
                "or save the model again with transformers' save_pretrained"
            )
        entry = tensors[name].tensors[name]
        first = first or name
        dtype = tensors[first].tensors[first].dtype
        if entry.shape != shape:
            raise ShapeError(
                f"{folder}: the tensor {name} has the shape {entry.shape}, but config.json asks for {shape}; "
                "put the config.json and the weights of one model together"
            )
        if entry.dtype not in STORED_DTYPES or entry.dtype != dtype:
            raise ShapeError(
                f"{folder}: the tensor {name} is {entry.dtype} and {first} is {dtype}; "
                f"save the whole model in one of {', '.join(STORED_DTYPES)}"
            )
