# 00 conventions
from .types import (
    FFN as FFN,
    IO as IO,
    DomainError as DomainError,
    Extent as Extent,
    FlashrefError as FlashrefError,
    IdsError as IdsError,
    ImageError as ImageError,
    LayoutError as LayoutError,
    Predictor as Predictor,
    Read as Read,
    Reader as Reader,
    ReadError as ReadError,
    ShapeError as ShapeError,
    same as same,
)

# 05 arithmetic
from .arithmetic import (
    activate as activate,
    ascending_sum as ascending_sum,
)

# 10 the feed-forward network
from .ffn import (
    active_neurons as active_neurons,
    add_neurons as add_neurons,
    dense_ffn as dense_ffn,
    sparse_ffn as sparse_ffn,
    take_neurons as take_neurons,
)

# 20 the predictor
from .predictor import (
    Band as Band,
    active_band as active_band,
    logit_threshold as logit_threshold,
    predict_active as predict_active,
)

# 30 the sliding window
from .window import (
    Delta as Delta,
    Window as Window,
    empty_window as empty_window,
    resident_neurons as resident_neurons,
    window_update as window_update,
)

# 40 row-column bundling
from .bundle import (
    Layout as Layout,
    bundle_crc32 as bundle_crc32,
    bundle_extents as bundle_extents,
    bundle_layout as bundle_layout,
    pack_bundles as pack_bundles,
    unpack_bundles as unpack_bundles,
)

# 50 devices, 52 the read plan, 54 the image, 56 readers
from .storage.device import (
    PRESETS as PRESETS,
    Device as Device,
    read_time as read_time,
)
from .storage.plan import (
    plan_bytes as plan_bytes,
    plan_io as plan_io,
    read_plan as read_plan,
)
from .storage.image import (
    open_image as open_image,
    pack_image as pack_image,
)
from .storage.readers import (
    DirectReader as DirectReader,
    memory_reader as memory_reader,
    recording_reader as recording_reader,
)

# 60 gathering rows
from .gather import (
    Gathered as Gathered,
    gather_rows as gather_rows,
)

# 70 slots
from .slots import (
    Moves as Moves,
    Slots as Slots,
    apply_moves as apply_moves,
    empty_slots as empty_slots,
    fill_holes as fill_holes,
    swap_with_last as swap_with_last,
)

# 80 one token through one layer
from .decode import (
    LayerState as LayerState,
    ResidentFFN as ResidentFFN,
    Step as Step,
    decode_layer as decode_layer,
    empty_layer as empty_layer,
    read_batches as read_batches,
    sum_predicted as sum_predicted,
    sum_resident as sum_resident,
)

# 90 accuracy
from .bounds import (
    exact_on_dyadic as exact_on_dyadic,
    ffn_bound as ffn_bound,
    gamma as gamma,
    predictor_bound as predictor_bound,
    unit_roundoff as unit_roundoff,
)

__version__: str
SPEC_VERSION: str
