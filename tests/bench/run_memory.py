"""The memory of `flashref run --no-proof` beside what it may take: Llamas of several shapes in F16.

    PYTHONPATH=. python tests/bench/run_memory.py [--tokens 12] [--folder DIR] [SHAPE ...]

The gate is resident and predicts; the weights are random, so half of the neurons are active: far more than
rows hold. A row for each shape and budget: the peak of the process beyond what Python had, as the command
measures it, beside the sum that it is held to, part by part, all in MB. The peak less that sum, but for its
constant for the interpreter, is what nobody derived.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from checkpoints import flashref, write_checkpoint

from flashref.models.memory import INTERPRETER

USUAL = {
    "model_type": "llama",
    "num_hidden_layers": 5,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
    "hidden_act": "relu",
}
SHAPES = {
    "usual": USUAL,
    "wide": USUAL
    | {"num_hidden_layers": 2, "hidden_size": 2048, "intermediate_size": 11008, "vocab_size": 1000},
    "one layer": USUAL | {"num_hidden_layers": 1, "intermediate_size": 30000, "vocab_size": 1000},
    "deep": USUAL
    | {"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 64000},
}
BUDGETS = ("0.65", "0.7", "0.85", "1")
PARTS = ("budget", "kv_cache", "id_tables", "workspace")


def main() -> None:
    parser = argparse.ArgumentParser(description="the memory of a run without a proof")
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)} (default all)")
    parser.add_argument("--tokens", type=int, default=12, help="(default 12)")
    parser.add_argument("--folder", default="/var/tmp", help="where models are written (default /var/tmp)")
    options = parser.parse_args()
    print(f"{'shape':<10}{'memory':>7}{'peak':>8}{'allowed':>9}{'underived':>11}", *PARTS)
    for shape in options.shapes or SHAPES:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="flashref-bench-") as folder:
            model, image = Path(folder) / "model", Path(folder) / "image"
            write_checkpoint(model, SHAPES[shape], np.random.default_rng(0))
            flashref("pack", model, "--gate", "resident", "--image", image)
            words = ["run", "--model", model, "--image", image, "--reader", "direct", "--no-proof"]
            words += ["--predictor", "gate", "--prompt-ids", "1,2,3", "--tokens", options.tokens]
            for budget in BUDGETS:
                try:
                    told, _ = flashref(*words, "--memory", budget)
                except SystemExit:
                    continue  # less than what is always resident: said by the command
                memory = {name: value / 1e6 for name, value in told["memory"].items() if name != "held"}
                beyond = memory["peak"] - memory["allowed"] + INTERPRETER / 1e6
                print(
                    f"{shape:<10}{budget:>7}{memory['peak']:>8.1f}{memory['allowed']:>9.1f}{beyond:>11.1f}",
                    end="",
                )
                print(
                    "",
                    *(f"{memory[part]:.1f}" for part in PARTS),
                    "" if told["memory"]["held"] else "MORE",
                    flush=True,
                )


if __name__ == "__main__":
    main()
