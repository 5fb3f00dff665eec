"""What a token costs: reading, memory management and compute; their sum, and the bound of perfect overlap."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.costs import Sizes, batch_sums
from flashref.simulate.trace import Counts, Reads
from flashref.types import DomainError


class Host(NamedTuple):
    """What memory and processor do in a second, in bytes; 0 = no such limit.

    copy_bandwidth: rows put into the DRAM matrix, or moved in it; compute_bandwidth: weights multiplied with
    one vector (at batch 1, fetching them from DRAM is the work).
    """

    copy_bandwidth: int
    compute_bandwidth: int


# The paper's M1 Max, CPU, float32, from Table 3's OPT 6.7B alone: 26.6 GB multiplied in 986 ms (naive), and
# 0.41 GB put in and about as much moved in 58 ms (all).
M1_MAX_CPU = Host(copy_bandwidth=14_000_000_000, compute_bandwidth=27_000_000_000)


class TokenCosts(NamedTuple):
    """One entry a token, (tokens,) int64: counts, bytes and nanoseconds.

    useful_bytes: of the units asked for; read_bytes: in whole blocks; copied_bytes: put into the DRAM matrix
    and moved in it; weight_bytes: multiplied.
    """

    requests: Counts
    useful_bytes: Counts
    read_bytes: Counts
    copied_bytes: Counts
    weight_bytes: Counts
    io_ns: Counts
    memory_ns: Counts
    compute_ns: Counts

    @property
    def total_ns(self) -> Counts:
        """One after the other, as in the paper's Table 3 (decision 19)."""
        return self.io_ns + self.memory_ns + self.compute_ns

    @property
    def overlapped_ns(self) -> Counts:
        """Reading beside the processor's work, perfectly: no schedule is faster (decision 19)."""
        longer: Counts = np.maximum(self.io_ns, self.memory_ns + self.compute_ns)
        return longer


def token_costs(
    reads: Reads,
    sizes: Sizes,
    times: npt.NDArray[np.int64],
    unit_bytes: npt.NDArray[np.int64],
    summed: Counts,
    resident_bytes: int,
    host: Host,
) -> TokenCosts:
    """The costs of every token under a policy.

    sizes, times: of the batches; unit_bytes: (layers,) of a unit in each layer; summed: (tokens, layers)
    units multiplied; resident_bytes: multiplied for every token, such as attention.
    """
    of_token = np.searchsorted(reads.token, np.arange(len(summed) + 1))

    def per_token(of_batch: Counts) -> Counts:
        return np.diff(np.concatenate([[0], np.cumsum(of_batch)])[of_token])

    units = np.diff(reads.starts)
    copied = (reads.loaded + reads.moved) @ unit_bytes
    weights = summed @ unit_bytes + resident_bytes
    return TokenCosts(
        requests=per_token(np.diff(sizes.starts)),
        useful_bytes=per_token(units * unit_bytes[reads.layer]),
        read_bytes=per_token(batch_sums(sizes.blocks, sizes.starts)) * sizes.block,
        copied_bytes=copied,
        weight_bytes=weights,
        io_ns=per_token(times),
        memory_ns=transfer_ns(copied, host.copy_bandwidth),
        compute_ns=transfer_ns(weights, host.compute_bandwidth),
    )


def transfer_ns(amounts: Counts, per_second: int) -> Counts:
    """Nanoseconds to go through so many bytes, rounded up; 0 where there is no limit.

    Raises DomainError where that is more than an int64 holds.
    """
    # Python's integers: 10 GB times 10^9 is more than an int64 holds.
    times = [-(-amount * 10**9 // per_second) if per_second else 0 for amount in amounts.tolist()]
    if max(times, default=0) >= 2**63:
        raise DomainError(f"{max(amounts)} bytes at {per_second} bytes a second take longer than 292 years")
    return np.array(times, np.int64)
