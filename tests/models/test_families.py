"""The tensors of the five families, and every config.json that is refused."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoint_files import write_file
from family_configs import NEEDED, OPTIONAL, ROPE, config_of
from hypothesis import example, given
from hypothesis import strategies as st

from flashref.models.checkpoint import load_ffn, open_checkpoint, tensor_shapes
from flashref.models.config import parse_config
from flashref.models.families import FAMILIES
from flashref.models.family import Tensor, fill, leaves
from flashref.models.model import load_model
from flashref.models.parts import Linear
from flashref.simulate.shapes.presets import CONFIGS
from flashref.simulate.shapes.sizes import model_sizes
from flashref.types import DomainError, FlashrefError, ImageError, ShapeError

# --- Tensors

PUBLISHED = {
    **{
        name: CONFIGS[name] | {"activation_function": "relu"} for name in ("opt-350m", "opt-6.7b", "opt-175b")
    },
    "falcon-7b": CONFIGS["falcon-7b"],
    **{
        name: CONFIGS[name] | {"max_position_embeddings": 2048}
        for name in ("persimmon-8b", "phi-2", "llama-2-7b")
    },
    "falcon-40b": {
        "model_type": "falcon",
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "hidden_size": 8192,
        "vocab_size": 65_024,
        "new_decoder_architecture": True,
    },
    "falcon-rw-1b": {
        "model_type": "falcon",
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "hidden_size": 2048,
        "vocab_size": 50_304,
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
    },
}
VARIANTS = {
    f"{family}, {'all keys' if optional else 'needed keys'}": {
        "model_type": family,
        **NEEDED[family],
        **(OPTIONAL[family] if optional else {}),
    }
    for family in FAMILIES
    for optional in (False, True)
}


@pytest.mark.parametrize("name", [*PUBLISHED, *VARIANTS])
def test_tensors_have_as_many_values_as_the_shape_counts(name):
    values = (PUBLISHED | VARIANTS)[name]
    tensors = list(tensor_shapes(parse_config(json.dumps(values))))
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    sizes, note = model_sizes(values)
    assert note == ""
    assert sum(math.prod(tensor.shape) for tensor in tensors) == sizes.parameters
    published = {"falcon-40b": 41.3, "falcon-rw-1b": 1.31}  # billions, to three digits
    if name in published:
        assert float(f"{sizes.parameters / 1e9:.3g}") == published[name]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_tied_head_is_the_very_array_of_the_embeddings(family, tied):
    config = config_of(family, tie_word_embeddings=tied)
    loads = []

    def load(name):
        loads.append(name)
        return np.zeros({tensor.name: tensor.shape for tensor in tensor_shapes(config)}[name], np.float16)

    model = load_model(config, load)
    assert len(set(loads)) == len(loads)
    assert (model.ends.head.weight is model.ends.tokens) == tied
    assert ("lm_head.weight" in loads) != tied
    assert ("lm_head.bias" in loads) == (family == "phi")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_tensor_of_every_family_is_needed(family, tmp_path):
    config = {"model_type": family} | NEEDED[family] | OPTIONAL[family]
    shapes = tensor_shapes(parse_config(json.dumps(config)))
    tensors = {tensor.name: np.ones(tensor.shape, np.float16) for tensor in shapes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    write_file(file, tensors)
    checkpoint = open_checkpoint(tmp_path)
    fields = ("gate", "up", "down") if family == "llama" else ("up", "down")
    assert [tuple(layer) for layer in checkpoint.layers] == [fields] * 2
    assert load_ffn(checkpoint, 1).down.shape == (checkpoint.config.neurons, checkpoint.config.width)
    for name, array in tensors.items():
        write_file(file, {other: value for other, value in tensors.items() if other != name})
        with pytest.raises(ImageError, match=f"lacks the tensor {name},"):
            open_checkpoint(tmp_path)
        write_file(file, tensors | {name: np.ones((*array.shape, 1), np.float16)})
        with pytest.raises(ShapeError, match=f"the tensor {name} has the shape"):
            open_checkpoint(tmp_path)


def test_trees_are_filled_leaf_by_leaf():
    tree = (Linear(Tensor("a", (1,)), None), (Tensor("b", (2,)), "relu", 0.5), np.zeros(3))
    assert [leaf.name for leaf in leaves(tree)] == ["a", "b"]
    filled = fill(tree, lambda leaf: SimpleNamespace(leaf=leaf.shape))
    assert isinstance(filled[0], Linear) and filled[0].bias is None
    assert [filled[0].weight.leaf, filled[1][0].leaf, filled[2].leaf] == [(1,), (2,), (3,)]
    assert filled[1][1:] == ("relu", 0.5)


# --- What is refused


@pytest.mark.parametrize(("family", "key"), [(family, key) for family in NEEDED for key in NEEDED[family]])
def test_a_config_without_a_key_that_its_family_needs(family, key):
    with pytest.raises(ImageError, match=f"config.json lacks {key}.*; give the whole config.json"):
        config_of(family, **{key: None})


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_keys_of_every_family_open(family):
    assert config_of(family).family == family
    assert config_of(family, **OPTIONAL[family]).family == family


ACTIVATION_KEYS = {"opt": "activation_function", "falcon": "activation"}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_fatrelu_and_its_threshold_reach_the_ffn(family):
    key = ACTIVATION_KEYS.get(family, "hidden_act")
    config = config_of(family, **{key: "fatrelu", "hidden_act_param": 0.01})
    ffn = FAMILIES[family].ffn(config, 0)
    assert (ffn.activation, ffn.tau) == (config.activation, config.tau) == ("fatrelu", 0.01)
    assert config_of(family, hidden_act_param=0.01).tau == 0  # only FATReLU has one


LLAMA3 = {"type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4}


@pytest.mark.parametrize(
    ("family", "changes", "error", "text"),
    [
        ("opt", {"activation_function": "tanh"}, DomainError, "activation_function 'tanh'; use one of relu"),
        ("falcon", {"activation": "tanh"}, DomainError, "activation 'tanh'; use one of relu"),
        ("llama", {"hidden_act": "reglu"}, DomainError, "hidden_act 'reglu'; use one of relu"),
        ("llama", {"hidden_act": "fatrelu"}, ImageError, "lacks hidden_act_param"),
        ("llama", {"hidden_act": "fatrelu", "hidden_act_param": -1}, ImageError, "hidden_act_param -1;"),
        *((family, {"num_attention_heads": 5}, ImageError, "hidden_size 12, which num_attention_heads 5 does")
          for family in FAMILIES),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, ImageError, "which num_kv_heads 2"),
        ("phi", {"num_key_value_heads": 2}, ImageError, "heads 3, which num_key_value_heads 2"),
        ("llama", {"num_key_value_heads": 2}, ImageError, "heads 3, which num_key_value_heads 2"),
        *((family, {"head_dim": 6}, DomainError, "6, but a .*'s heads share the width, 4 each; remove")
          for family in ("phi", "persimmon")),
        ("llama", {"head_dim": 5}, ImageError, "turns 5 of the 5 values of a head"),
        ("llama", {"partial_rotary_factor": 0.5}, DomainError, "each head, which no Llama"),
        ("falcon", {"partial_rotary_factor": 0.5}, DomainError, "of each head, which no Falcon does"),
        ("falcon", {"rope_parameters": {"partial_rotary_factor": 0.5}}, DomainError, "which no Falcon does"),
        ("phi", {"partial_rotary_factor": 0.25}, ImageError, "turns 1 of the 4 values of a head"),
        ("phi", {"partial_rotary_factor": 0.1}, ImageError, "turns 0 of the 4 values of a head"),
        ("phi", {"partial_rotary_factor": 1.5}, ImageError, "turns 6 of the 4 values of a head"),
        ("persimmon", {"hidden_size": 6}, ImageError, "turns 1 of the 2 values of a head"),
        ("falcon", {"hidden_size": 9}, ImageError, "turns 3 of the 3 values of a head"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, DomainError, "which no Falcon has"),
        ("falcon", {"num_ln_in_parallel_attn": 3, "new_decoder_architecture": True}, DomainError, "no F"),
        ("falcon", {"parallel_attn": False, "new_decoder_architecture": True}, DomainError, "no Falcon"),
        ("llama", {"rope_scaling": {"type": "longrope"}}, DomainError, "by 'longrope'; use one of def"),
        ("llama", {"rope_parameters": {"rope_type": ""}}, DomainError, "rotary positions by ''"),
        ("llama", {"rope_parameters": [1]}, ImageError, r"rope_parameters \[1\]; it must be an object"),
        ("llama", {"rope_scaling": 2}, ImageError, "rope_scaling 2; it must be an object"),
        ("llama", {"rope_theta": 1}, ImageError, "rope_theta 1; it must be above 1"),
        ("llama", {"rope_theta": "1e4"}, ImageError, "rope_theta '1e4'; it must be a number above 0"),
        *(("llama", {"rope_scaling": {"type": kind}}, ImageError, "lacks factor")
          for kind in ("linear", "yarn")),
        ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, ImageError, "4, not below high_freq"),
        *(("llama", {"rope_scaling": LLAMA3 | {key: None}}, ImageError, f"lacks {key}")
          for key in ("factor", "low_freq_factor", "high_freq_factor")),
        ("llama", {"hidden_size": 10**18, "num_attention_heads": 1}, ImageError, "heads of 10{18} values"),
        ("llama", {"head_dim": 65_538}, ImageError, "heads of 65538 values; correct it, at most 65536"),
        ("llama", {"hidden_size": 2**63}, ImageError, "positive integer of 64 bits"),
        ("llama", {"hidden_size": 10**400}, ImageError, "positive integer of 64 bits"),
        ("llama", {"rms_norm_eps": 10**400}, ImageError, "number above 0 within float32"),
        ("llama", {"rms_norm_eps": 1e39}, ImageError, "number above 0 within float32"),
        ("llama", {"rms_norm_eps": 0}, ImageError, "number above 0 within float32"),
        ("llama", {"rms_norm_eps": float("nan")}, ImageError, "NaN is not JSON"),
        ("llama", {"num_hidden_layers": "2"}, ImageError, "num_hidden_layers '2'; it must be a pos"),
        ("llama", {"num_hidden_layers": True}, ImageError, "layers True; it must be a positive"),
        ("llama", {"attention_bias": 1}, ImageError, "attention_bias 1; it must be true or false"),
        ("llama", {"rms_norm_eps": True}, ImageError, "rms_norm_eps True; it must be a number"),
        ("llama", {"hidden_act": ["relu"]}, ImageError, r"hidden_act \['relu'\]; it must be a name"),
    ],
)  # fmt: skip
def test_what_no_model_of_the_family_has(family, changes, error, text):
    with pytest.raises(error, match=text) as caught:
        config_of(family, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["phi", "persimmon"])
def test_a_head_size_that_is_the_width_s_share_may_be_said(family):
    assert config_of(family, head_dim=4) == config_of(family)


numbers = st.integers() | st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**63, 10**400]) | st.floats()
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5) | st.sampled_from(["relu", "fatrelu", "yarn"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def damaged(draw):
    """A config.json of some family, as it should be but for one value, of rope_parameters perhaps."""
    family = draw(st.sampled_from(list(FAMILIES)))
    values = {"model_type": family} | NEEDED[family]
    if draw(st.booleans()):
        values |= OPTIONAL[family]
    changed = {"rope_parameters": ROPE | {"rope_type": draw(st.sampled_from(["yarn", "llama3", "linear"]))}}
    if draw(st.booleans()):
        rope = changed["rope_parameters"]
        rope[draw(st.sampled_from(list(rope)))] = draw(json_values)
    else:
        changed = {draw(st.sampled_from([*values, *OPTIONAL[family]])): draw(json_values)}
    return values | changed


@given(damaged())
@example({"model_type": "llama"} | NEEDED["llama"] | {"rope_theta": 1.0000000000000002, "rope_scaling": ROPE})
@example({"model_type": "llama"} | NEEDED["llama"] | {"rope_scaling": ROPE | {"beta_slow": 1e-38}})
@example({"model_type": "llama"} | NEEDED["llama"] | {"rope_scaling": ROPE | {"factor": 1e-38}})
def test_a_damaged_config_opens_or_is_refused_in_one_sentence(values):
    refusal = None
    try:
        config = parse_config(json.dumps(values))
    except FlashrefError as error:  # and no other
        refusal = str(error)
    if refusal is None:
        assert config.family == values["model_type"] and next(tensor_shapes(config)).shape
        rotary = getattr(config.family_config, "rotary", None)
        assert rotary is None or np.isfinite([*rotary.frequencies, rotary.scale]).all()
    else:
        assert refusal.startswith("config.json") and "\n" not in refusal


def test_a_persimmon_has_a_key_head_for_each_head_whatever_else_is_said():
    values = next(values for values in PUBLISHED.values() if values["model_type"] == "persimmon")
    plain = parse_config(json.dumps(values))
    assert plain.key_heads == plain.heads > 2
    assert parse_config(json.dumps(values | {"num_key_value_heads": 2})) == plain
