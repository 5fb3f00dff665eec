"""Shapes against published totals, hand-counted parts, and the budget's and layouts' definitions."""

import json

import numpy as np
import pytest

from flashref.bundle import bundle_layout
from flashref.models.budget import Demand, solve_budget
from flashref.models.config import parse_config
from flashref.simulate.figures import figure_densities
from flashref.simulate.flash import unbundled_layouts
from flashref.simulate.shapes.families import COMMON
from flashref.simulate.shapes.presets import CONFIGS, preset_shape
from flashref.simulate.shapes.shape import shape_demand, shape_flash, shape_layout, shape_of_config
from flashref.simulate.shapes.sizes import model_sizes
from flashref.types import DomainError, FlashrefError, ImageError

# Billions of values, as the models' own papers and cards have them; Falcon's with the head tied.
PUBLISHED = {
    "opt-125m": 0.125,
    "opt-350m": 0.331,
    "opt-1.3b": 1.316,
    "opt-2.7b": 2.652,
    "opt-6.7b": 6.658,
    "opt-13b": 12.853,
    "opt-30b": 29.975,
    "opt-66b": 65.72,
    "opt-175b": 174.6,
    "falcon-7b": 6.922,
    "persimmon-8b": 9.40,
    "phi-2": 2.780,
    "llama-2-7b": 6.738,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_preset_has_as_many_values_as_published(name):
    published = PUBLISHED[name]
    digits = len(str(published).split(".")[1])
    assert preset_shape(name).parameters / 1e9 == pytest.approx(published, abs=0.6 * 10**-digits)


def test_the_parts_of_opt_6_7b():
    shape = preset_shape("opt-6.7b")
    d, n = 4096, 16_384
    assert (shape.layers, shape.width, shape.neurons, shape.fields) == (32, d, n, ("up", "down"))
    assert 32 * shape.ffn_bytes == 2 * 4_294_967_296  # 4.295 B
    embeddings, attention, norms = (50_272 + 2050) * d, 32 * 4 * d * d, (2 * 32 + 1) * d
    assert (embeddings, attention) == (214_310_912, 2_147_483_648)
    assert shape.resident == embeddings + attention + norms
    biases = 32 * (4 * d + n + d + 2 * d) + d
    assert shape.parameters == shape.resident + 4_294_967_296 + biases
    assert shape.total_bytes == 2 * shape.parameters and shape.resident_bytes == 2 * shape.resident
    assert preset_shape("opt-6.7b", "F32").total_bytes == 2 * shape.total_bytes


def test_the_parts_of_the_other_models_of_the_paper():
    # Falcon: 71 heads of 64, one of keys and values; attention 19.4 % and FFN 76.8 % in section C.2.
    falcon = preset_shape("falcon-7b")
    assert falcon.neurons == 18_176
    attention = 32 * (4544 * (4544 + 2 * 64) + 4544 * 4544)
    assert falcon.resident == 65_024 * 4544 + attention + 33 * 4544
    assert attention / falcon.parameters == pytest.approx(0.194, abs=0.0005)
    assert 32 * falcon.ffn_bytes / falcon.total_bytes == pytest.approx(0.768, abs=0.005)  # 76.4 % counted
    # Llama 2: gate, up and down; embedding and head apart; no bias anywhere.
    llama = preset_shape("llama-2-7b")
    assert llama.fields == ("gate", "up", "down") and llama.ffn_bytes == 2 * 3 * 4096 * 11_008
    assert llama.resident == 2 * 32_000 * 4096 + 32 * 4 * 4096**2 + 65 * 4096
    assert llama.parameters == llama.resident + 32 * 3 * 4096 * 11_008
    # Phi-2: one norm a layer, biases everywhere, the output head's too.
    phi, d, n = preset_shape("phi-2"), 2560, 10_240
    assert phi.resident == 2 * 51_200 * d + 32 * (4 * d * d + d) + d
    biases = 32 * (4 * d + n + d + d) + d + 51_200
    assert phi.parameters == phi.resident + 32 * 2 * d * n + biases
    # OPT 350m: 512 wide embeddings, a map in and out, no norm at the end.
    small = preset_shape("opt-350m")
    assert small.resident == 50_272 * 512 + 2 * 512 * 1024 + 2050 * 1024 + 24 * (4 * 1024**2 + 2 * 1024)


def test_ranks_and_densities_are_the_paper_s():
    ranks = {
        name: preset_shape(name).ranks for name in ("opt-6.7b", "falcon-7b", "persimmon-8b", "llama-2-7b")
    }
    assert ranks["opt-6.7b"] == (128,) * 28 + (1024,) * 4
    assert ranks["falcon-7b"] == (256,) * 28 + (1152,) * 4
    assert ranks["persimmon-8b"] == (256,) * 32 + (1152,) * 4
    assert ranks["llama-2-7b"] == (256,) * 14 + (1024,) * 4 + (256,) * 14
    # Phi-2 in groups of four: 160 in the first, second and seventh, none in the eighth.
    groups = (160, 160, 480, 800, 800, 480, 160, 0)
    assert preset_shape("phi-2").ranks == tuple(rank for rank in groups for _ in range(4))
    for name, figure in (("opt-6.7b", "9a_opt"), ("persimmon-8b", "9b_persimmon"), ("phi-2", "9c_phi2")):
        assert preset_shape(name).densities == figure_densities(f"fig{figure}_predictor")
    assert preset_shape("falcon-7b").densities == pytest.approx((0.1227,) * 32)
    assert preset_shape("llama-2-7b").densities == (0.1,) * 32


def test_layers_without_a_predictor_are_dense_and_resident():
    phi = preset_shape("phi-2")
    assert phi.sparse_layers == tuple(range(28))
    assert phi.sparse_densities == phi.densities[:28]
    assert phi.resident_bytes == 2 * phi.resident + 4 * 2 * 2 * 2560 * 10_240
    demand = shape_demand(phi, 4096)
    assert demand == Demand(
        total=2 * phi.parameters,
        resident=phi.resident_bytes,
        predictors=2 * (12 * 160 + 8 * 480 + 8 * 800) * (2560 + 10_240),
        layers=28,
        neurons=10_240,
        stride=12_288,  # 10 KiB in blocks of 4
    )
    flash = shape_flash(phi, 4096)
    assert len(flash.bundled) == len(flash.unbundled) == 28
    # All 32 layers lie on flash as bundles; the image ends on a block.
    image = demand.total + 32 * 10_240 * (12_288 - 10_240)
    assert flash.image_bytes == -(-image // 4096) * 4096 and flash.tensor_bytes == demand.total


@pytest.mark.parametrize(("dtype", "itemsize"), [("F16", 2), ("BF16", 2), ("F32", 4)])
@pytest.mark.parametrize("name", ["opt-125m", "falcon-7b", "llama-2-7b"])
@pytest.mark.parametrize("block", [4096, 16_384])
def test_layouts_and_demand_at_a_dtype_and_a_block(name, dtype, itemsize, block):
    shape = preset_shape(name, dtype)
    layout = bundle_layout(shape.neurons, shape.width, dtype, shape.fields, block)
    assert shape.itemsize == itemsize
    assert shape_layout(shape, block) == layout
    flash = shape_flash(shape, block)
    assert flash.bundled == (layout,) * shape.layers
    assert flash.unbundled == (unbundled_layouts(layout),) * shape.layers
    assert len(flash.unbundled[0]) == len(shape.fields)
    demand = shape_demand(shape, block)
    assert (demand.total, demand.resident) == (itemsize * shape.parameters, itemsize * shape.resident)
    assert demand.predictors == itemsize * sum(shape.ranks) * (shape.width + shape.neurons)
    assert (demand.layers, demand.neurons, demand.stride) == (shape.layers, shape.neurons, layout.stride)
    padding = shape.neurons * layout.stride - shape.ffn_bytes
    assert 0 <= flash.image_bytes - demand.total - shape.layers * padding < block


@pytest.mark.parametrize("name", CONFIGS)
def test_half_or_two_thirds_of_every_preset_can_be_a_budget(name):
    demand = shape_demand(preset_shape(name), 4096)
    fraction = 0.75 if name in ("opt-125m", "phi-2", "llama-2-7b", "persimmon-8b") else 0.55
    assert solve_budget(demand, fraction, 4, None, None).dram_bytes <= fraction * demand.total


def test_an_unknown_preset_is_refused():
    with pytest.raises(
        DomainError, match=r"no preset is called 'gpt-5'; use one of opt-125m, .*llama-2-7b, or a config"
    ):
        preset_shape("gpt-5")


# --- any config.json ------------------------------------------------------------------------------

UNKNOWN = {
    "model_type": "mellum",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def test_an_unknown_family_is_counted_as_llama_and_says_so():
    shape = shape_of_config(UNKNOWN)
    attention = 64 * (64 + 2 * 16) + 64 * 64
    assert shape.resident == 2 * 1000 * 64 + 10 * (attention + 2 * 64) + 64
    assert shape.parameters == shape.resident + 10 * 3 * 64 * 96
    assert (shape.name, shape.dtype, shape.fields) == ("mellum", "F16", ("gate", "up", "down"))
    assert "'mellum' is unknown" in shape.note and "silu is assumed to be replaced by ReLU" in shape.note
    assert "like Llama 2 7B's" in shape.note and shape.densities == (0.1,) * 10
    # An eighth of the layers, rounded up, in the middle: d/4; the others d/16.
    assert shape.ranks == (4,) * 4 + (16,) * 2 + (4,) * 4
    wide_heads = shape_of_config({**UNKNOWN, "head_dim": 16})
    assert wide_heads.resident == 2 * 1000 * 64 + 10 * (64 * (128 + 2 * 32) + 128 * 64 + 2 * 64) + 64
    uneven = shape_of_config({**UNKNOWN, "num_attention_heads": 7, "head_dim": 16})
    assert uneven.resident == 2 * 1000 * 64 + 10 * (64 * (112 + 2 * 32) + 112 * 64 + 2 * 64) + 64
    tied = shape_of_config({**UNKNOWN, "tie_word_embeddings": True})
    assert shape.resident - tied.resident == 1000 * 64


def test_a_family_that_is_no_name_is_an_unknown_one():
    assert "['llama'] is unknown" in shape_of_config({**UNKNOWN, "model_type": ["llama"]}).note


def test_an_unknown_family_without_a_gate():
    for activation in ("relu", "relu2"):
        shape = shape_of_config({**UNKNOWN, "hidden_act": activation})
        assert shape.fields == ("up", "down") and "replaced" not in shape.note
        assert shape.parameters == shape.resident + 10 * 2 * 64 * 96
        assert shape.ranks == (2,) * 8 + (16,) * 2 and "like OPT 6.7B's" in shape.note


def test_a_gate_with_a_sparse_activation_has_nothing_replaced():
    shape = shape_of_config({**UNKNOWN, "hidden_act": "fatrelu"})
    assert shape.fields == ("gate", "up", "down") and "replaced" not in shape.note


@pytest.mark.parametrize("key", COMMON)
def test_an_unknown_family_without_a_common_key_is_refused(key):
    values = {name: value for name, value in UNKNOWN.items() if name != key}
    with pytest.raises(ImageError, match=rf"unknown model_type 'mellum' and lacks {key}; give one with"):
        shape_of_config(values)
    with pytest.raises(ImageError, match="unknown model_type None"):
        shape_of_config({})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_known_family_without_a_size_is_refused(name):
    for key in CONFIGS[name]:
        if key in ("model_type", "activation", "hidden_act", "do_layer_norm_before", "word_embed_proj_dim"):
            continue
        with pytest.raises(ImageError, match=f"config.json lacks .*{key}"):
            shape_of_config({k: value for k, value in CONFIGS[name].items() if k != key})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden_size": 0}, ImageError, "hidden_size 0; it must be a positive integer"),
        ({"num_hidden_layers": True}, ImageError, "num_hidden_layers True"),
        ({"vocab_size": 1.5}, ImageError, "vocab_size 1.5"),
        ({"vocab_size": None}, ImageError, "lacks vocab_size"),
        ({"num_attention_heads": 7}, ImageError, "64, which 7 attention heads do not divide"),
        ({"num_attention_heads": 128}, ImageError, "128 attention heads do not divide"),
        ({"tie_word_embeddings": 1}, ImageError, "tie_word_embeddings 1; it must be true or false"),
        ({"hidden_act": 3}, ImageError, "hidden_act 3; it must be a name"),
        (
            {"model_type": "opt", "ffn_dim": 8, "max_position_embeddings": 8, "activation_function": 1},
            ImageError,
            "name",
        ),
        (
            {"num_local_experts": 8},
            DomainError,
            "has num_local_experts, so its layers are mixtures of experts",
        ),
        ({"n_routed_experts": 64}, DomainError, "n_routed_experts"),
        ({"dtype": "float8_e4m3fn"}, DomainError, "dtype 'float8_e4m3fn'; use float32, float16, bfloat16"),
        ({"dtype": ["float16"]}, DomainError, "dtype"),
    ],
)
def test_an_impossible_config_is_refused_in_one_sentence(change, error, message):
    with pytest.raises(error, match=message) as refusal:
        shape_of_config({**UNKNOWN, **change})
    assert "\n" not in str(refusal.value)


def test_one_expert_is_an_ffn():
    assert shape_of_config({**UNKNOWN, "num_experts": 1, "num_experts_per_tok": None}).layers == 10


def test_the_dtype_is_the_config_s_unless_told_another():
    assert shape_of_config({**UNKNOWN, "torch_dtype": "bfloat16"}).dtype == "BF16"
    assert shape_of_config({**UNKNOWN, "dtype": "float32", "torch_dtype": "bfloat16"}).dtype == "F32"
    assert shape_of_config({**UNKNOWN, "dtype": "float32"}, dtype="BF16").dtype == "BF16"
    assert shape_of_config(UNKNOWN, "mine").name == "mine"
    with pytest.raises(DomainError, match="dtype 'F8' is unknown"):
        shape_of_config(UNKNOWN, dtype="F8")


def test_densities_of_another_depth_keep_the_ends_of_the_curve():
    curve = figure_densities("fig9a_opt_predictor")
    for layers in (2, 12, 24, 63, 96):
        shape = shape_of_config({**CONFIGS["opt-125m"], "num_hidden_layers": layers})
        assert len(shape.densities) == len(shape.ranks) == layers
        assert (shape.densities[0], shape.densities[-1]) == (curve[0], curve[-1])
        for layer, density in enumerate(shape.densities):  # linear between the two nearest of the 32
            depth = layer * 31 / (layers - 1)
            low = min(int(depth), 30)
            weight = depth - low
            assert density == pytest.approx((1 - weight) * curve[low] + weight * curve[low + 1])
    assert shape_of_config({**CONFIGS["opt-125m"], "num_hidden_layers": 1}).densities == curve[:1]


def test_a_known_family_has_no_note_of_its_own():
    sizes, note = model_sizes({**UNKNOWN, "model_type": "llama"})
    assert note == "" and sizes.parameters == shape_of_config(UNKNOWN).parameters
    assert all(isinstance(value, int) for value in (sizes.parameters, sizes.resident))


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama-2-7b", {"quantization_config": {"bits": 4}}),
        ("llama-2-7b", {"sliding_window": 64, "layer_types": ["sliding_attention"]}),
        ("llama-2-7b", {"rope_scaling": {"rope_type": "longrope"}, "rope_theta": 0, "rms_norm_eps": "small"}),
        ("phi-2", {"hidden_act": "quick_gelu", "partial_rotary_factor": 0.3, "layer_norm_eps": 0}),
        ("persimmon-8b", {"is_causal": False, "hidden_act": None}),
        ("falcon-7b", {"rope_parameters": 3, "layer_norm_epsilon": -1, "activation": "softplus"}),
        ("opt-6.7b", {"activation_function": "swiglu"}),
    ],
)
def test_what_cannot_be_run_is_costed_all_the_same(family, change):
    values = {**CONFIGS[family], **change}
    with pytest.raises(FlashrefError):
        parse_config(json.dumps({"max_position_embeddings": 2048, **values}))
    shape, usual = shape_of_config(values, "mine", "F16"), preset_shape(family)
    assert shape[1:8] == usual[1:8]


def test_scaled_uses_the_shape():
    from flashref.simulate import scaled

    assert preset_shape("opt-6.7b") == scaled.SHAPE
    assert np.isclose(scaled.FFN_BYTES, 8.59e9, rtol=1e-3)
