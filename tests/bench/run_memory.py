"""The memory of `flashref run --no-proof` beside what it may take: a Llama of 218 MB in F16, gate resident.

    PYTHONPATH=. python tests/bench/run_memory.py [--memory 0.7] [--tokens 32] [--folder DIR]

Prints the peak of the process beyond what Python had, as the command measures it, beside the sum that it is
held to, part by part; and the peak of the whole process, as the system counts it.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from checkpoints import flashref, write_checkpoint

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 5,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "relu",
}
PARTS = ("budget", "kv_cache", "biases", "id_tables", "workspace")


def main() -> None:
    parser = argparse.ArgumentParser(description="the memory of a run without a proof")
    parser.add_argument("--memory", default="0.7", help="the budget (default 0.7 of the model)")
    parser.add_argument("--tokens", type=int, default=32, help="(default 32)")
    parser.add_argument("--folder", default="/var/tmp", help="where the model is written (default /var/tmp)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="flashref-bench-") as folder:
        model, image = Path(folder) / "model", Path(folder) / "image"
        weights = write_checkpoint(model, CONFIG, np.random.default_rng(0))
        flashref("pack", model, "--gate", "resident", "--image", image)
        words = ["run", "--model", model, "--image", image, "--reader", "direct", "--no-proof"]
        words += ["--predictor", "gate", "--memory", options.memory, "--tokens", options.tokens]
        told, counted = flashref(*words, "--prompt-ids", "1,2,3")
    memory = told["memory"]
    sums = ", ".join(f"{part} {memory[part] / 1e6:.1f}" for part in PARTS)
    print(f"{weights.name}: a run of {options.tokens} tokens with {options.memory} of it in memory")
    print(f"peak {memory['peak'] / 1e6:.1f} MB, allowed {memory['allowed'] / 1e6:.1f} MB ({sums})")
    print(
        f"the whole process: {counted / 1e6:.1f} MB, Python before the model {memory['before'] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
