"""A Hugging Face directory: config.json and safetensors, checked before anything is computed.

Every mistake in one is a FlashrefError whose text says what is wrong and what to do. Weights are read when
they are asked for, one tensor at a time, so that a checkpoint larger than memory can be opened.
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

TINY = Path(str(files("flashref"))) / "data" / "tiny"  # the model that is shipped
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONVERSION = (  # what to type before the old folder and the new one
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
    """The checkpoint in a directory, its headers checked against its config.

    No weight is read yet, but for an output head that is tied and there all the same. Raises ImageError,
    DomainError (a model that is not supported), ShapeError (a tensor that does not fit).
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
    """Name and shape of every tensor that the model needs, the FFN matrices included."""
    family = FAMILIES[config.family]
    yield from dict.fromkeys(leaves(family.ends(config)))  # a tied head is named twice
    for layer in range(config.layers):
        yield from leaves(family.block(config, layer))
        yield from leaves(family.ffn(config, layer))


def parse_activation(word: str) -> tuple[str, float]:
    """An activation to run instead of a model's own.

    Args:
        word: "relu", or "fatrelu:T" with FATReLU's threshold T.

    Returns:
        Its name, and tau: T, or 0.

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
    """An activation as `parse_activation` takes it: "relu", or "fatrelu:0.05"."""
    return f"{activation}:{tau:g}" if activation == "fatrelu" else activation


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


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return parse_object(text, str(path))


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


def _check_tied_head(folder: Path, config: Config, tensors: Mapping[str, Container]) -> None:
    """DomainError if the files have a head of their own, though the config ties it to the embeddings."""
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
