"""The paper's models, and every size of OPT, as shapes.

Ranks and densities are the paper's where it has them (section 3.1, appendix C, Table 4, Figs. 4a and 9a–c):

- OPT 6.7B, Persimmon 8B, Phi-2: the shares that are predicted in each layer (Fig. 9a–c).
- Falcon 7B: 12.27 % in every layer, the share that is predicted in its layer 10 (Fig. 4a, k = 1).
- Llama 2 7B: 10 % in every layer, which a sparsity "above 90 %" leaves (appendix C). That is the share of
    truly
  active neurons, for no predicted share is published.
- OPT of another size: what `shape_of_config` assumes.
"""

from collections.abc import Mapping
from typing import Any

from flashref.models.config_values import Values
from flashref.simulate.figures import figure_densities, use_curve
from flashref.simulate.shapes.shape import LLAMA_2_ACTIVE, ModelShape, shape_of_config
from flashref.types import DomainError


def preset_shape(name: str, dtype: str = "F16") -> ModelShape:
    """Make the shape of one of the paper's models, or of an OPT of another size.

    Args:
        name: a key of CONFIGS.
        dtype: F32, F16 or BF16, how the weights are stored.

    Returns:
        The shape.

    Raises:
        DomainError: there is no such preset.
    """
    if name not in CONFIGS:
        raise DomainError(f"no preset is called {name!r}; use one of {', '.join(CONFIGS)}, or a config.json")
    shape = shape_of_config(CONFIGS[name], name, dtype)
    published = _published().get(name)
    if published is None:
        return shape
    ranks, densities, note = published
    return shape._replace(ranks=ranks, densities=densities, note=note)


_OPT_SIZES = {  # layers, heads, width; n is 4 d (Zhang et al. 2022, Table 1)
    "125m": (12, 12, 768),
    "350m": (24, 16, 1024),
    "1.3b": (24, 32, 2048),
    "2.7b": (32, 32, 2560),
    "6.7b": (32, 32, 4096),
    "13b": (40, 40, 5120),
    "30b": (48, 56, 7168),
    "66b": (64, 72, 9216),
    "175b": (96, 96, 12_288),
}


def _opt(size: str) -> dict[str, Any]:
    layers, heads, width = _OPT_SIZES[size]
    return {
        "model_type": "opt",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "ffn_dim": 4 * width,
        "vocab_size": 50_272,
        "max_position_embeddings": 2048,
        # 350m alone normalises after each part, and has an embedding that is half as wide.
        "do_layer_norm_before": size != "350m",
        "word_embed_proj_dim": 512 if size == "350m" else width,
    }


CONFIGS: Mapping[str, Values] = {
    **{f"opt-{size}": _opt(size) for size in _OPT_SIZES},
    "falcon-7b": {
        "model_type": "falcon",
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "hidden_size": 4544,
        "vocab_size": 65_024,
        "activation": "relu",  # the paper's is relufied
    },
    "persimmon-8b": {
        "model_type": "persimmon",
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "hidden_size": 4096,
        "intermediate_size": 16_384,
        "vocab_size": 262_144,
        "hidden_act": "relu2",
    },
    "phi-2": {
        "model_type": "phi",
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "vocab_size": 51_200,
        "hidden_act": "relu",  # relufied
    },
    "llama-2-7b": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "vocab_size": 32_000,
        "hidden_act": "relu",  # FATReLU (ProSparse)
    },
}


def _published() -> dict[str, tuple[tuple[int, ...], tuple[float, ...], str]]:
    """The ranks (section C, Table 4) and densities that the paper gives, and a note on what differs."""
    return {
        "opt-6.7b": (28 * (128,) + 4 * (1024,), figure_densities("fig9a_opt_predictor"), ""),
        "falcon-7b": (
            28 * (256,) + 4 * (1152,),
            32 * (dict(use_curve())[1],),
            (
                "it has 6.92 B values, 7.22 B with an output head of its own; the paper's naive row implies "
                "14.0 GB"
            ),
        ),
        "persimmon-8b": (
            32 * (256,) + 4 * (1152,),
            figure_densities("fig9b_persimmon_predictor"),
            "it has 9.40 B values with the output head; the paper's naive row implies 16.0 GB",
        ),
        "phi-2": (
            8 * (160,) + 4 * (480,) + 8 * (800,) + 4 * (480,) + 4 * (160,) + 4 * (0,),
            figure_densities("fig9c_phi2_predictor"),
            "the last four layers have no predictor and are resident",
        ),
        "llama-2-7b": (
            14 * (256,) + 4 * (1024,) + 14 * (256,),
            32 * (LLAMA_2_ACTIVE,),
            "its densities are those of truly active neurons, for no predicted share is published",
        ),
    }
