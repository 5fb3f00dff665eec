"""Every family's values, counted by Hugging Face transformers on the meta device: no weight is allocated."""

import pytest

from flashref.simulate.shapes.families import DECODERS
from flashref.simulate.shapes.presets import CONFIGS, preset_shape
from flashref.simulate.shapes.sizes import ACTIVATION, model_sizes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
no_init_weights = pytest.importorskip("transformers.initialization").no_init_weights

# Sizes that no two parts share.
COMMON = {"vocab_size": 101, "num_hidden_layers": 3}
SIZES = {**COMMON, "hidden_size": 48, "intermediate_size": 72, "num_attention_heads": 6}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT = {"vocab_size": 101, "n_layer": 3, "n_embd": 48, "n_head": 6, "n_positions": 31}
OPT = {**COMMON, "hidden_size": 48, "ffn_dim": 72, "num_attention_heads": 6, "max_position_embeddings": 31}
FALCON = {**COMMON, "hidden_size": 48, "num_attention_heads": 6}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
CASES = [
    ("opt", OPT),
    ("opt", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    ("opt", {**OPT, "enable_bias": False, **UNTIED}),
    ("opt", {**OPT, "layer_norm_elementwise_affine": False, "_remove_final_layer_norm": True}),
    ("opt", {**OPT, "_remove_final_layer_norm": True}),
    ("falcon", FALCON),
    ("falcon", {**FALCON, "bias": True, "parallel_attn": False, "multi_query": False, **UNTIED}),
    ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 72}),
    ("falcon", {**FALCON, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
    ("persimmon", SIZES),
    ("persimmon", {**SIZES, "qk_layernorm": False, **TIED}),
    ("phi", SIZES),
    ("phi", {**GROUPED, "qk_layernorm": True}),
    ("llama", GROUPED),
    ("llama", {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 10, **TIED}),
    ("mistral", GROUPED),
    ("mistral", {**GROUPED, "head_dim": 10, **TIED}),
    ("qwen2", GROUPED),
    ("qwen2", {**GROUPED, **TIED}),
    ("qwen3", GROUPED),
    ("qwen3", {**GROUPED, "head_dim": 10, "attention_bias": True, **TIED}),
    ("gemma", GROUPED),
    ("gemma", {**GROUPED, "head_dim": 10, "attention_bias": True, **UNTIED}),
    ("gemma2", GROUPED),
    ("gemma2", {**GROUPED, "head_dim": 10, "attention_bias": True}),
    ("gpt2", GPT),
    ("gpt2", {**GPT, "n_inner": 72, **UNTIED}),
    ("gpt_neox", SIZES),
    ("gpt_neox", {**SIZES, "attention_bias": False, **TIED}),
    ("gptj", {**GPT, "rotary_dim": 4}),
    ("gptj", {**GPT, "rotary_dim": 4, "n_inner": 72}),
    ("bloom", {"vocab_size": 101, "n_layer": 3, "hidden_size": 48, "n_head": 6}),
    ("mpt", {"vocab_size": 101, "n_layers": 3, "d_model": 48, "n_heads": 6}),
    ("phi3", {**GROUPED, "pad_token_id": 0}),
    ("phi3", {**GROUPED, "pad_token_id": 0, **TIED}),
    ("stablelm", GROUPED),
    ("stablelm", {**GROUPED, "use_qkv_bias": True, "use_parallel_residual": True, **TIED}),
    ("stablelm", {**GROUPED, "qk_layernorm": True}),
    ("starcoder2", GROUPED),
    ("starcoder2", {**GROUPED, "use_bias": False, **UNTIED}),
]
FFN = ("fc1.", "fc2.", ".mlp.", ".ffn.")


def count(values):
    """(all values, those that are neither biases nor of the FFN)."""
    config = transformers.AutoConfig.for_model(**values)
    with torch.device("meta"), no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # which initialising, had it not been left out for its time, would do
    parameters = dict(model.named_parameters())
    resident = [
        value
        for name, value in parameters.items()
        if not name.endswith(".bias") and not any(f in name for f in FFN)
    ]
    return tuple(sum(value.numel() for value in values) for values in (parameters.values(), resident))


@pytest.mark.parametrize(
    ("family", "values"), CASES, ids=[f"{family}-{i}" for i, (family, _) in enumerate(CASES)]
)
def test_values_are_counted_as_transformers_does(family, values):
    values = {"model_type": family, **values}
    sizes, note = model_sizes(values)
    assert note == "" and (sizes.parameters, sizes.resident) == count(values)
    # And from what transformers itself would write: every default spelled out, as in a config.json.
    written = transformers.AutoConfig.for_model(**values).to_dict()
    assert model_sizes(written)[0] == sizes


def test_every_family_is_counted():
    assert {family for family, _ in CASES} == {*DECODERS, *ACTIVATION}
    assert not DECODERS.keys() & ACTIVATION.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_presets_are_counted_as_transformers_does(name):
    shape = preset_shape(name)
    assert (shape.parameters, shape.resident) == count(CONFIGS[name])
