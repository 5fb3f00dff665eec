"""`flashref simulate` in this process, on a small model and a few tokens."""

import json

from command_line import called, sentence_of

CONFIG = {
    "model_type": "opt",
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "ffn_dim": 96,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 32,
    "torch_dtype": "float32",
}
FFN_BYTES = 3 * 2 * 96 * 32 * 4  # layers, fields, neurons, width, bytes of a value


def small_model(folder):
    """The path of a new config.json with the small model."""
    path = folder / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def simulated(capsys, model, *words, tokens=True):
    """What the command gives for a model, 0.8 of it in memory; with `tokens` on a short synthetic trace."""
    short = ["--tokens", 6, "--warm", 3] if tokens else []
    return called(capsys, "simulate", "--model", model, "--memory", 0.8, *short, *words)


def outcomes_of(outcome):
    """The configurations of a run with --json."""
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)["outcomes"]


def refused(outcome, *parts):
    """Whether a mistake got one sentence with these parts."""
    text = sentence_of("simulate", outcome)
    for part in parts:
        assert str(part) in text, text
    return True
