"""A stranger's engine (two lines of BLAS) and its adapter; it knows flashref by chapter 96 only."""

import numpy as np

from flashref.conformance.adapter import OPERATIONS, Unsupported

name, version, dtypes = "stranger", "0.1", {"F32"}
unsupported = {
    operation: "the stranger has the network only"
    for operation in OPERATIONS
    if operation not in ("dense_ffn", "sparse_ffn")
}


def dense_ffn(x, activation, up, *rest):
    return sparse_ffn(x, activation, up, *rest, np.arange(len(up)))


def sparse_ffn(x, activation, up, down, gate, up_bias, gate_bias, down_bias, tau, active):
    n, d = len(up), len(x)
    groups = ((n, d), (up, down, gate)), ((n,), (up_bias, gate_bias)), ((d,), (down_bias,))
    parts = [(shape, part) for shape, group in groups for part in group if part is not None]
    if x.dtype != np.float32 or any(part.shape != shape or part.dtype != x.dtype for shape, part in parts):
        raise ValueError("sizes or dtypes do not fit")
    if np.any(active < 0) or np.any(active >= len(up)) or np.any(np.diff(active) <= 0):
        raise IndexError("ids must ascend, within the layer")
    if (gate is None and gate_bias is not None) or not 0 <= tau < np.inf or activation == "relu6":
        raise ValueError("no such network")
    if activation != "relu":
        raise Unsupported(f"no {activation} yet")
    z = up[active] @ x + (0 if up_bias is None else up_bias[active])
    g = z if gate is None else gate[active] @ x + (0 if gate_bias is None else gate_bias[active])
    h = np.maximum(g, 0) if gate is None else np.maximum(g, 0) * z
    return (h @ down[active] + (0 if down_bias is None else down_bias)).astype(np.float32)
