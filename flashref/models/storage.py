"""Where a model lies on flash."""

from collections.abc import Mapping

from flashref.models.checkpoint import Checkpoint
from flashref.storage.device import Device


def bundled_layers(checkpoint: Checkpoint, resident_gate: bool) -> dict[int, Mapping[str, str]]:
    """The tensors that are read from flash: for every layer, each field of its bundles and its tensor's name.

    Args:
        checkpoint: the model.
        resident_gate: whether gate projections stay in memory, and so out of the bundles.
    """
    return {
        layer: {field: name for field, name in fields.items() if not (resident_gate and field == "gate")}
        for layer, fields in enumerate(checkpoint.layers)
    }


def block_for(device: Device) -> int:
    """The block of a new image, in bytes: the device's, and at least a page."""
    return max(4096, device.block)
