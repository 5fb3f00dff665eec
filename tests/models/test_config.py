"""A config.json of any family: what is no JSON, quantised weights, and attention that is not plain."""

import json

import pytest
from family_configs import NEEDED, config_of

from flashref.models.config import parse_config
from flashref.models.families import FAMILIES
from flashref.types import DomainError, ImageError

CONTEXT = 32


@pytest.mark.parametrize("text", ["", "{", '"\ud800"'])
def test_a_config_text_that_is_not_json(text):
    with pytest.raises(ImageError, match=r"config\.json: is not JSON in UTF-8"):
        parse_config(text)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_quantised_weights_are_refused(family):
    with pytest.raises(DomainError, match="has a quantization_config, and quantised weights are not read"):
        config_of(family, quantization_config={"bits": 4})
    null = json.dumps({"model_type": family, **NEEDED[family], "quantization_config": None})
    assert parse_config(null) == config_of(family)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("said", [False, None])
def test_attention_to_later_tokens_is_refused(family, said):
    text = json.dumps({"model_type": family, **NEEDED[family], "is_causal": said})
    with pytest.raises(DomainError, match="has is_causal false, and a token that attends to later ones"):
        parse_config(text)
    assert config_of(family, is_causal=True) == config_of(family)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("key", ["sliding_window", "attention_chunk_size"])
def test_attention_to_a_part_of_the_context_is_refused(family, key):
    context = config_of(family, max_position_embeddings=CONTEXT)
    assert config_of(family, max_position_embeddings=CONTEXT, **{key: CONTEXT}) == context
    assert parse_config(json.dumps({"model_type": family, **NEEDED[family], key: None})) == config_of(family)
    for size in (CONTEXT - 1, 0, "32", [CONTEXT], True):
        with pytest.raises(DomainError, match=f"config.json has {key} .* and a context of {CONTEXT}, and"):
            config_of(family, max_position_embeddings=CONTEXT, **{key: size})


@pytest.mark.parametrize("family", list(FAMILIES))
def test_layers_that_attend_in_other_ways_are_refused(family):
    for plain in (["full_attention"] * 2, []):
        assert config_of(family, layer_types=plain) == config_of(family)
    for kinds in (["full_attention", "sliding_attention"], "full_attention", [None], {"full_attention": 1}):
        with pytest.raises(DomainError, match="layer_types that are not full_attention"):
            config_of(family, layer_types=kinds)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_layers_that_differ_are_refused(family):
    assert config_of(family, per_layer_config={}) == config_of(family)
    with pytest.raises(DomainError, match="has a per_layer_config, which is not read; give"):
        config_of(family, per_layer_config={"0": {"sliding_window": 4}})


@pytest.mark.parametrize("key", ["parallel_attn", "multi_query", "tie_word_embeddings"])
def test_a_flag_that_is_null_and_would_be_true_is_refused(key):
    with pytest.raises(ImageError, match=f"config.json has {key} None; it must be true or false"):
        parse_config(json.dumps({"model_type": "falcon", **NEEDED["falcon"], key: None}))
