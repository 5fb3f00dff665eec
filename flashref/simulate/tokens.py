"""What a token costs: reading, copying and compute; their sum, and the bound of perfect overlap."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashref.simulate.costs import Sizes, batch_sums
from flashref.simulate.trace import Counts, Reads
from flashref.types import DomainError


class Host(NamedTuple):
    """What memory and processor do in a second, in bytes; 0 means without a limit.

    copy_bandwidth: bytes of rows that are written into the DRAM matrix or moved in it.
    compute_bandwidth: bytes of weights that are multiplied with one vector; to fetch them from DRAM is most
        of the work.
    """

    copy_bandwidth: int
    compute_bandwidth: int


# The paper's M1 Max, CPU, float32, from OPT 6.7B in Table 3 alone: naive multiplies 26.6 GB in 986 ms, and
# "all" writes 0.41 GB and moves about as much in 58 ms.
M1_MAX_CPU = Host(copy_bandwidth=14_000_000_000, compute_bandwidth=27_000_000_000)


class TokenCosts(NamedTuple):
    """Counts, bytes and nanoseconds of each token, (tokens,) int64.

    requests: reads, after neighbours are joined.
    useful_bytes: bytes of the units that were asked for.
    read_bytes: bytes of whole blocks that were read.
    copied_bytes: bytes of rows that were written into the DRAM matrix or moved in it.
    weight_bytes: bytes of weights that were multiplied.
    io_ns, memory_ns, compute_ns: the time to read, to copy rows, and to multiply.
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
        """The sum of the three, as in the paper's Table 3 (decision 19: nothing overlaps there)."""
        return self.io_ns + self.memory_ns + self.compute_ns

    @property
    def overlapped_ns(self) -> Counts:
        """The bound if reading overlaps with all other work; no schedule is faster (decision 19)."""
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
    """Add up the costs of each token.

    Args:
        reads: the reads of a policy, batch by batch.
        sizes: the sizes of the reads of each batch.
        times: (batches,) nanoseconds of each batch.
        unit_bytes: (layers,) bytes of a unit of each layer.
        summed: (tokens, layers) units that are multiplied.
        resident_bytes: bytes of weights that are multiplied for every token besides, such as attention.
        host: the bandwidths of copying and of computing.

    Returns:
        The costs of each token.
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
    """Compute the time to copy or to multiply.

    Args:
        amounts: bytes, (tokens,).
        per_second: bytes a second; 0 means without a limit.

    Returns:
        Nanoseconds, rounded up; 0 without a limit.

    Raises:
        DomainError: a time is longer than an int64 holds.
    """
    # Python's integers, for 10 GB times 10^9 is more than an int64 holds.
    times = [-(-amount * 10**9 // per_second) if per_second else 0 for amount in amounts.tolist()]
    if max(times, default=0) >= 2**63:
        raise DomainError(
            f"{max(amounts)} bytes at {per_second} bytes a second take longer than 292 years; give a higher "
            "bandwidth"
        )
    return np.array(times, np.int64)
