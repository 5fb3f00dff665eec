"""A Hugging Face checkpoint: config.json and safetensors files, checked before anything is computed.

A mistake in them is a FlashrefError, whose message says what is wrong and what to do. Weights are read when
they are needed, one tensor at a time, so a checkpoint that is larger than memory can be opened.
"""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashref.models.config import parse_config, parse_object
from flashref.models.families import FAMILIES
from flashref.models.family import Config, Tensor, fill, leaves
from flashref.storage.container import Container, read_container, require_finite, tensor_array, tensor_pieces
from flashref.types import FFN, STORED_DTYPES, Array, DomainError, FlashrefError, ImageError, ShapeError

TINY = Path(str(files("flashref"))) / "data" / "tiny"  # the shipped model
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONVERSION = (  # what to type before the old folder and the new one
    "python -c 'import sys; from transformers import AutoModelForCausalLM as M; "
    'M.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[2])\''
)
MATRICES = ("gate", "up", "down")  # the fields of an FFN that are read from flash


class Checkpoint(NamedTuple):
    """An opened checkpoint.

    Attributes:
        directory: its folder.
        config: what config.json says.
        config_text: config.json as canonical JSON with sorted keys, which `parse_config` reads, too.
        tensors: from each tensor's name to the file that holds it.
        layers: for each layer, from each field of its bundles (gate if there is one, up, down) to the name of
            the tensor.
    """

    directory: Path
    config: Config
    config_text: str
    tensors: Mapping[str, Container]
    layers: tuple[Mapping[str, str], ...]


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint, and check the headers of its files against its config.

    Weights are not read, except for an output head that is in a file although it is tied.

    Args:
        directory: the folder that holds config.json.

    Raises:
        ImageError: a file is missing or damaged.
        DomainError: the model is not supported.
        ShapeError: a tensor has another shape or dtype than the config asks for.
    """
    folder = Path(directory)
    if not folder.is_dir():
        if folder.is_file():
            raise ImageError(f"{folder}: is a file; give the folder that holds config.json")
        raise ImageError(
            f"{folder}: there is no such folder; give the one that holds config.json (flashref downloads no "
            "model; `hf download NAME --local-dir DIR` does)"
        )
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ImageError(f"{folder}: has no config.json; give the folder of a Hugging Face checkpoint")
    config_text = json.dumps(_read_object(config_file), sort_keys=True, separators=(",", ":"))
    try:
        config = parse_config(config_text)
    except FlashrefError as error:
        raise type(error)(f"{folder}: {error}") from None
    tensors = dict(_locate_tensors(folder))
    _check_tensors(folder, config, tensors)
    _check_tied_head(folder, config, tensors)
    layers = tuple(_ffn_matrices(config, layer) for layer in range(config.layers))
    return Checkpoint(folder, config, config_text, tensors, layers)


def tensor_shapes(config: Config) -> Iterator[Tensor]:
    """Yield the name and the shape of every tensor that a model needs, the FFN matrices included."""
    family = FAMILIES[config.family]
    yield from dict.fromkeys(leaves(family.ends(config)))  # a tied head is named twice
    for layer in range(config.layers):
        yield from leaves(family.block(config, layer))
        yield from leaves(family.ffn(config, layer))


def parse_activation(word: str) -> tuple[str, float]:
    """Read an activation that replaces a model's own.

    Args:
        word: "relu"; or "fatrelu:T", FATReLU with tau T.

    Returns:
        The name of the activation, and its tau (0 for relu).

    Raises:
        DomainError: it is neither.
    """
    name, _, threshold = word.partition(":")
    if word == "relu":
        return "relu", 0.0
    if name != "fatrelu" or not threshold:
        raise DomainError(
            f"{word!r} cannot replace the model's activation; give relu, or fatrelu with its tau, "
            "such as fatrelu:0.05"
        )
    try:
        tau = float(threshold)
    except ValueError:
        raise DomainError(f"FATReLU's tau must be a number such as 0.05, not {threshold!r}") from None
    if not 0 <= tau < float("inf"):
        raise DomainError(f"FATReLU's tau must be finite and at least 0, not {threshold}")
    return name, tau


def shown_activation(activation: str, tau: float) -> str:
    """Write an activation as `parse_activation` takes it, such as "relu" or "fatrelu:0.05"."""
    return f"{activation}:{tau:g}" if activation == "fatrelu" else activation


def with_activation(checkpoint: Checkpoint, activation: tuple[str, float] | None) -> Checkpoint:
    """Replace the activation of a checkpoint.

    Args:
        checkpoint: the checkpoint.
        activation: the name of the new activation, and its tau; None: the model's own stays.
    """
    if activation is None:
        return checkpoint
    name, tau = activation
    return checkpoint._replace(config=checkpoint.config._replace(activation=name, tau=tau))


def load_tensor(checkpoint: Checkpoint, name: str) -> Array:
    """Read one tensor of a checkpoint.

    Args:
        checkpoint: the checkpoint.
        name: the name of the tensor.

    Returns:
        Its values in the stored dtype; BF16 as its bits, uint16.

    Raises:
        ImageError: there is no such tensor, or its file cannot be read.
        DomainError: a value is not finite.
    """
    if name not in checkpoint.tensors:
        raise ImageError(
            f"{checkpoint.directory}: has no tensor {name}; ask for a tensor that the checkpoint has"
        )
    container = checkpoint.tensors[name]
    array = tensor_array(container, name)
    require_finite(container, name, array)
    return array


def load_ffn(checkpoint: Checkpoint, layer: int) -> FFN:
    """Read the FFN of a layer.

    Args:
        checkpoint: the checkpoint.
        layer: the number of the layer.

    Returns:
        The FFN in the stored dtype, every matrix (n, d): `down` is transposed into C order (decision 12 says
        that a row is a neuron).

    Raises:
        ImageError: a file cannot be read.
        DomainError: a value is not finite.
    """
    config = checkpoint.config
    ffn = fill(FAMILIES[config.family].ffn(config, layer), lambda leaf: load_tensor(checkpoint, leaf.name))
    return ffn._replace(down=np.ascontiguousarray(ffn.down.T))  # (d, n) to (n, d)


def _ffn_matrices(config: Config, layer: int) -> dict[str, str]:
    """Name the tensors of a layer that are read from flash, by their fields in the FFN."""
    ffn: Any = FAMILIES[config.family].ffn(config, layer)
    return {field: getattr(ffn, field).name for field in MATRICES if getattr(ffn, field) is not None}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return parse_object(text, str(path))


def _locate_tensors(folder: Path) -> Iterator[tuple[str, Container]]:
    """Yield each tensor's name and file: model.safetensors if there is one, else the index's shards."""
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
    """Yield each tensor that the index names, with its shard; the header of a shard is read once."""
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


def _check_tied_head(folder: Path, config: Config, tensors: Mapping[str, Container]) -> None:
    """Raise DomainError if the config ties the head to the embeddings, but the files have another head."""
    ends: Any = FAMILIES[config.family].ends(config._replace(tied=False))
    tied, own = (tensors.get(leaf.name) for leaf in (ends.tokens, ends.head.weight))
    if not config.tied or tied is None or own is None:
        return
    first, second = tied.tensors[ends.tokens.name], own.tensors[ends.head.weight.name]
    pairs = zip(tensor_pieces(tied, ends.tokens.name), tensor_pieces(own, ends.head.weight.name), strict=True)
    if first[:2] != second[:2] or not all(np.array_equal(*pair) for pair in pairs):
        raise DomainError(
            f"{folder}: its config.json ties the output head to the embeddings, but {ends.head.weight.name} "
            f"is not {ends.tokens.name}; set tie_word_embeddings to false, or remove that tensor"
        )


def _check_tensors(folder: Path, config: Config, tensors: Mapping[str, Container]) -> None:
    """Check that each needed tensor is there, has the shape that the config asks for, and the same dtype."""
    first = ""  # the first needed tensor, whose dtype all others must have
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
