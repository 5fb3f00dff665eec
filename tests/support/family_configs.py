"""A config.json of every family: the keys that it needs, those that it reads besides, and changed ones."""

import json

from flashref.models.config import parse_config
from flashref.models.family import Config

# Every key that a family needs, and no other.
NEEDED = {
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 12,
        "ffn_dim": 5,
        "num_attention_heads": 3,
        "max_position_embeddings": 32,
        "vocab_size": 7,
        "activation_function": "relu",
    },
    "falcon": {"num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 3, "vocab_size": 7},
} | {
    family: {
        "num_hidden_layers": 2,
        "hidden_size": 12,
        "intermediate_size": 5,
        "num_attention_heads": 3,
        "max_position_embeddings": 32,
        "vocab_size": 7,
        "hidden_act": "relu",
    }
    for family in ("persimmon", "phi", "llama")
}
ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 2.0, "original_max_position_embeddings": 16}
ROPE |= {"beta_fast": 8, "beta_slow": 0.5, "attention_factor": None, "mscale": 0.7, "mscale_all_dim": 1.3}
ROPE |= {"truncate": False, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# What a family reads besides, each key with a value that opens.
OPTIONAL = {
    "opt": {
        "word_embed_proj_dim": 3,
        "do_layer_norm_before": False,
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "_remove_final_layer_norm": True,
        "tie_word_embeddings": False,
    },
    "falcon": {
        "ffn_hidden_size": 5,
        "max_position_embeddings": 32,
        "activation": "relu",
        "new_decoder_architecture": True,
        "parallel_attn": True,
        "multi_query": False,
        "num_kv_heads": 1,
        "num_ln_in_parallel_attn": 1,
        "alibi": False,
        "bias": True,
        "layer_norm_epsilon": 1e-3,
        "tie_word_embeddings": False,
        "rope_parameters": ROPE,
    },
    "persimmon": {
        "qk_layernorm": False,
        "layer_norm_eps": 1e-3,
        "tie_word_embeddings": True,
        "rope_theta": 500,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "phi": {
        "num_key_value_heads": 1,
        "qk_layernorm": True,
        "layer_norm_eps": 1e-3,
        "tie_word_embeddings": True,
        "partial_rotary_factor": 1.0,
        "rope_parameters": ROPE,
    },
    "llama": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "hidden_act": "fatrelu",
        "hidden_act_param": 0.01,
        "attention_bias": True,
        "mlp_bias": True,
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": True,
        "rope_parameters": ROPE | {"rope_type": "llama3"},
        "original_max_position_embeddings": 8,
    },
}


def config_of(family, **changes) -> Config:
    """The config of a family's needed keys with these changes; None leaves a key out."""
    values = {"model_type": family} | NEEDED[family] | changes
    return parse_config(json.dumps({key: value for key, value in values.items() if value is not None}))
