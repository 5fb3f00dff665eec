"""The feed-forward network, dense and over chosen neurons. Chapter: specs/10-ffn.md.

Satisfies: FFN-1 to FFN-12.
"""

import numpy as np
import numpy.typing as npt

from flashref.arithmetic import ACTIVATIONS, activate, fast_ascending_sum
from flashref.types import (
    FFN,
    Array,
    DomainError,
    Ids,
    ShapeError,
    Vector,
    ascending_ids,
    stored_dtype,
    widen,
)

SPARSE_ACTIVATIONS = ("relu", "squared_relu", "fatrelu")  # with others every neuron is active (decision 7)


def dense_ffn(x: Vector, ffn: FFN) -> Vector:
    """The FFN over all its neurons (paper §3.1, Fig. 3b).

    Args:
        x: (d,) float32.
        ffn: the network.

    Returns:
        (d,) float32.

    Raises:
        ShapeError: an array has the wrong shape or dtype.
        DomainError: the activation is unknown, or tau is not in its domain.

    Requirements: FFN-1 to FFN-3, FFN-9.
    """
    _check(x, ffn)
    y = add_neurons(np.zeros(len(x), np.float32), x, ffn)
    return y if ffn.down_bias is None else y + widen(ffn.down_bias)


def sparse_ffn(x: Vector, ffn: FFN, active: npt.ArrayLike) -> Vector:
    """The FFN over these neurons and no others; the down bias is added whatever the set.

    Args:
        x: (d,) float32.
        ffn: the whole network.
        active: (m,) strictly ascending ids of any set, whether its neurons fire or not.

    Returns:
        (d,) float32.

    Raises:
        IdsError: the ids are out of range or not strictly ascending.
        ShapeError, DomainError: as for `dense_ffn`.

    Requirements: FFN-4 to FFN-8.
    """
    _check(x, ffn)  # the whole network: a row that does not fit is refused though no id asks for it
    return dense_ffn(x, take_neurons(ffn, active))


def active_neurons(x: Vector, ffn: FFN) -> Ids:
    """The neurons that truly fire, by the reference's own rounded pre-activations (paper §3.1).

    Args, Raises: as for `dense_ffn`.

    Returns:
        The ids with z > 0 for ReLU and squared ReLU, with z > τ for FATReLU, and all for SiLU and GELU.

    Decision 7: the rule looks at z, not at the activation, which may round to zero. Requirement: FFN-10.
    """
    _check(x, ffn)
    z = _gate_pre_activation(x, ffn)
    if ffn.activation in ("relu", "squared_relu"):
        return np.flatnonzero(z > 0)
    if ffn.activation == "fatrelu":
        return np.flatnonzero(z > np.float32(ffn.tau))
    return np.arange(len(z), dtype=np.int64)


def take_neurons(ffn: FFN, ids: npt.ArrayLike) -> FFN:
    """The FFN that has only these neurons: their rows and biases; the down bias stays.

    Args:
        ffn: the whole network.
        ids: (m,) strictly ascending, the neurons that are taken.

    Raises:
        IdsError: the ids are out of range or not strictly ascending.

    Decision 14: biases travel with their neurons. Requirement: FFN-11.
    """
    checked = ascending_ids(ids, len(ffn.up))

    def rows(of: Array | None) -> Array | None:
        return None if of is None else of[checked]

    return ffn._replace(
        up=ffn.up[checked],
        down=ffn.down[checked],
        gate=rows(ffn.gate),
        up_bias=rows(ffn.up_bias),
        gate_bias=rows(ffn.gate_bias),
    )


def add_neurons(y: Vector, x: Vector, ffn: FFN) -> Vector:
    """y plus every neuron's contribution in ascending order, without the down bias.

    A sum that is made in several parts, in ascending id, has the bits of the sum made in one.

    Args:
        y: (d,) float32; it is not changed.
        x: (d,) float32.
        ffn: the neurons that are added.

    Returns:
        (d,) float32, a new array.

    Raises:
        ShapeError, DomainError: as for `dense_ffn`.

    Requirement: FFN-12.
    """
    _check(x, ffn)
    if y.shape != x.shape:
        raise ShapeError(f"y must have the shape {x.shape} of x, not {y.shape}")
    h = activate(ffn.activation, _gate_pre_activation(x, ffn), ffn.tau)
    if ffn.gate is not None:
        h = h * _pre_activation(x, ffn.up, ffn.up_bias)
    return fast_ascending_sum(h, widen(ffn.down), start=y)


def _gate_pre_activation(x: Vector, ffn: FFN) -> Vector:
    """What the activation is applied to: the gate's pre-activation or, without a gate, that of up."""
    if ffn.gate is not None:
        return _pre_activation(x, ffn.gate, ffn.gate_bias)
    return _pre_activation(x, ffn.up, ffn.up_bias)


def _pre_activation(x: Vector, matrix: Array, bias: Array | None) -> Vector:
    z = fast_ascending_sum(x, widen(matrix).T)
    return z if bias is None else z + widen(bias)


def _check(x: Vector, ffn: FFN) -> None:
    if ffn.activation not in ACTIVATIONS:
        raise DomainError(f"activation {ffn.activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
    if not 0 <= ffn.tau <= float(np.finfo(np.float32).max):
        raise DomainError(f"FATReLU's tau must be at least 0 and finite in float32, not {ffn.tau}")
    if ffn.up.ndim != 2:
        raise ShapeError(f"up must be (n, d), not {ffn.up.shape}")
    n, d = ffn.up.shape
    expected = {"down": (n, d), "gate": (n, d), "up_bias": (n,), "gate_bias": (n,), "down_bias": (d,)}
    for name, shape in expected.items():
        array = getattr(ffn, name)
        if array is not None and (array.shape != shape or stored_dtype(array) != stored_dtype(ffn.up)):
            raise ShapeError(
                f"{name} must be {stored_dtype(ffn.up)} of shape {shape} as up is, "
                f"not {array.dtype} of shape {array.shape}; row i belongs to neuron i"
            )
    if ffn.gate is None and ffn.gate_bias is not None:
        raise ShapeError("gate_bias needs a gate")
    if x.dtype != np.float32 or x.shape != (d,):
        raise ShapeError(f"x must be float32 of shape ({d},), not {x.dtype} of shape {x.shape}")
