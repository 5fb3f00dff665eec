"""How a model is to be run: what `open_model` is asked for, word by word checked."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TypeVar

from flashref.decode import Place, Semantics, sum_predicted, sum_resident
from flashref.models.budget import Amount
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.device import Device
from flashref.types import DomainError, Ids, Vector

T = TypeVar("T")
PredictLayer = Callable[[int, Vector], Ids]  # a layer and what its up projection receives to active neurons

TINY = Path(str(files("flashref"))) / "data" / "tiny"  # the model that is shipped
PREDICTORS = ("trained", "exact", "gate")
READERS = ("memory", "direct")
SEMANTICS: dict[str, Semantics] = {"resident": sum_resident, "predicted": sum_predicted}
PLACEMENTS: dict[str, Place] = {"swap_with_last": swap_with_last, "fill_holes": fill_holes}


class Request(NamedTuple):
    """How a model is to be run.

    memory: a share of the model's bytes, or bytes; window: k in tokens, None for the largest up to 5 whose
    mean need fits; predictor: "trained", "exact", "gate", or a function; predictors: the file of trained
    ones, None for the model's own; semantics: which rows are summed; placement: where new rows go; device:
    whose times are simulated, and whose queue depth is used; reader: "memory" or "direct"; image: the file
    that is used, or packed and kept, None for one in a temporary folder; activation: instead of the model's
    own, with its tau; proof: whether every weight is kept in memory to judge each step by.
    """

    memory: float | Amount
    window: int | None
    predictor: str | PredictLayer
    predictors: Path | None
    semantics: Semantics
    placement: Place
    device: Device
    reader: str
    image: Path | None
    activation: tuple[str, float] | None
    proof: bool


def chosen(what: str, choices: dict[str, T], choice: str | T) -> T:
    """The function of a name; a function is taken as it is. Raises DomainError for another name."""
    if not isinstance(choice, str):
        return choice
    if choice not in choices:
        raise DomainError(f"{what} {choice!r} is unknown; use one of {', '.join(choices)}")
    return choices[choice]
