"""What the kit calls of an implementation: its operations, and the facts that it declares (chapter 96)."""

import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flashref.types import STORED_DTYPES, FlashrefError

FFN_PARAMETERS = ("activation", "up", "down", "gate", "up_bias", "gate_bias", "down_bias", "tau")
LAYOUT_PARAMETERS = ("n", "d", "dtype", "fields", "block")

# Operation → its parameters, in the order of a positional call.
OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "predict_active": ("x", "a", "b", "bias", "threshold"),
    "dense_ffn": ("x", *FFN_PARAMETERS),
    "sparse_ffn": ("x", *FFN_PARAMETERS, "active"),
    "bundle_layout": (*LAYOUT_PARAMETERS, "start", "order", "ids"),
    "pack_bundles": (*LAYOUT_PARAMETERS, "order", "matrices"),
    "unpack_bundles": (*LAYOUT_PARAMETERS, "order", "packed"),
    "read_plan": ("extents", "block", "max_gap"),
    "gather_rows": ("image", *LAYOUT_PARAMETERS, "start", "order", "ids", "max_gap"),
    "run_window": ("n", "k", "capacities", "actives"),
    "run_slots": ("capacity", "placement", "deltas", "rows"),
    "run_decode": (
        "layers", "xs", "k", "capacities", "semantics", "placement", "block", "max_gap", "bypass_rows",
    ),
    "logits": ("model_dir", "token_ids", "predictor"),
}  # fmt: skip
COUNTERS = ("loaded", "bypassed", "evicted", "requests", "useful_bytes", "read_bytes", "moved_rows")
PLACEMENTS = ("swap_with_last", "fill_holes")
SEMANTICS = ("resident", "predicted")


class AdapterError(FlashrefError):
    """An adapter that cannot be found, loaded or understood."""


class Unsupported(Exception):
    """Raised by an adapter for a case that its implementation does not claim to run; its text says why."""


class Facts(NamedTuple):
    """What an adapter declares about its implementation (chapter 96).

    Attributes:
        name, version: texts for the report.
        operations: the operations that it provides.
        unsupported: each other operation → the reason why it is missing.
        dtypes: the stored dtypes that it takes; no other weights are sent.
        accumulate: F32 or F64, the precision of its sums, whose roundoff the bounds use.
        flushes_subnormals: True if it is to be judged on data without subnormal numbers.
        max_elements: the largest number of weights (n · d) of a matrix; None: any.
    """

    name: str
    version: str
    operations: frozenset[str]
    unsupported: Mapping[str, str]
    dtypes: frozenset[str] = frozenset(STORED_DTYPES)
    accumulate: str = "F32"
    flushes_subnormals: bool = False
    max_elements: int | None = None


def how_to_skip(operation: str, arguments: Sequence[Any]) -> str:
    """Say what an adapter does for an activation that its engine lacks; empty if the call has no activation.

    Args:
        operation: one of OPERATIONS.
        arguments: of a valid call that was refused.

    Returns:
        The end of a sentence, or an empty text.
    """
    named = dict(zip(OPERATIONS[operation], arguments, strict=True))
    names = {layer[0].activation for layer in named["layers"]} if "layers" in named else set()
    names |= {named["activation"]} if "activation" in named else set()
    if not names:
        return ""
    return f"; if your engine has no {' or no '.join(sorted(names))}, raise Unsupported (chapter 96)"


def load_adapter(name: str) -> object:
    """Import a Python adapter; the working directory is searched first.

    Args:
        name: `module` or `module:attribute`. An attribute that is a class is called without arguments.

    Returns:
        The module, or the object.

    Raises:
        AdapterError: there is no such module or attribute, or importing the module fails.
    """
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        advice = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise AdapterError(f"{name!r} is a path, and an adapter is named as a module: try {advice!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        adapter: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a foreign module raises is the user's to read
        text = f"the adapter's module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError):
            text += f"; put it into this folder ({os.getcwd()}), or install it"
        raise AdapterError(text) from error
    for part in attribute.split(".") if attribute else ():
        if not hasattr(adapter, part):
            raise AdapterError(
                f"the module {module_name!r} has no {attribute!r}; an adapter is named module:attribute"
            )
        adapter = getattr(adapter, part)
    if not isinstance(adapter, type):
        return adapter
    try:
        return adapter()
    except Exception as error:
        raise AdapterError(
            f"the adapter {name!r} cannot be created: {type(error).__name__}: {error}"
        ) from error


def declared_facts(adapter: object) -> Facts:
    """Read the facts of a Python adapter from its attributes, and which operations it has.

    Args:
        adapter: a module or an object.

    Raises:
        AdapterError: a fact is missing, has no meaning, or contradicts another (IOP-1).
    """
    unsupported, dtypes = getattr(adapter, "unsupported", {}), getattr(adapter, "dtypes", STORED_DTYPES)
    if not isinstance(unsupported, Mapping):
        raise AdapterError(f"unsupported must map each operation to a reason, not {unsupported!r}")
    if isinstance(dtypes, str) or not isinstance(dtypes, Iterable):
        raise AdapterError(f"dtypes must be a set or list of {', '.join(STORED_DTYPES)}, not {dtypes!r}")
    provided = frozenset(operation for operation in OPERATIONS if callable(getattr(adapter, operation, None)))
    optional = {
        field: getattr(adapter, field)
        for field in ("accumulate", "flushes_subnormals", "max_elements")
        if hasattr(adapter, field)
    }
    return checked_facts(
        Facts(
            name=str(getattr(adapter, "name", getattr(adapter, "__name__", type(adapter).__name__))),
            version=str(getattr(adapter, "version", "unknown")),
            operations=provided,
            unsupported=dict(unsupported),
            dtypes=frozenset(dtypes),
            **optional,
        )
    )


def checked_facts(facts: Facts) -> Facts:
    """Check what an adapter declares: every operation is provided, or has a reason why not (IOP-1).

    Returns:
        The facts themselves.

    Raises:
        AdapterError: a fact is missing, has no meaning, or contradicts another.
    """
    operations, unsupported = facts.operations, set(facts.unsupported)
    if unknown := sorted((operations | unsupported) - set(OPERATIONS)):
        words = ", ".join(map(str, unknown))
        raise AdapterError(f"the adapter names unknown operations: {words}; they are {', '.join(OPERATIONS)}")
    if both := sorted(operations & unsupported):
        raise AdapterError(f"the adapter provides {', '.join(both)} and calls it unsupported; remove one")
    if silent := sorted(set(OPERATIONS) - operations - unsupported):
        raise AdapterError(
            f"the adapter neither provides nor gives a reason for {', '.join(silent)}; add what is missing "
            "to its `unsupported`, as operation → reason"
        )
    if not facts.dtypes or facts.dtypes - set(STORED_DTYPES):
        given = ", ".join(sorted(map(str, facts.dtypes))) or "none"
        raise AdapterError(f"dtypes must be some of {', '.join(STORED_DTYPES)}, not {given}")
    if facts.accumulate not in ("F32", "F64"):
        raise AdapterError(f"accumulate must be F32 or F64, not {facts.accumulate!r}")
    if type(facts.flushes_subnormals) is not bool:
        raise AdapterError("flushes_subnormals must be True or False")
    if facts.max_elements is not None and (type(facts.max_elements) is not int or facts.max_elements < 1):
        raise AdapterError(f"max_elements must be a positive integer or None, not {facts.max_elements!r}")
    return facts
