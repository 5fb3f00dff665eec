"""The memory of `flashref run --no-proof` beside what it may take: Llamas of several shapes in F16.

    PYTHONPATH=. python tests/bench/run_memory.py [--tokens 12] [--folder DIR] [SHAPE ...]

The gate is resident and predicts; the weights are random, so half of the neurons are active: far more than
rows hold. A row for each shape and budget, in MB: the peak of the process beyond what Python had, as the
command measures it; the budget, the KV cache and the record of what was predicted; `beside`, the peak less
these three; the allowance that it is held to; and the bundles of one layer, of which the allowance has
ALLOWED_COPIES.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from checkpoints import flashref, write_checkpoint

from flashref.models.memory import ALLOWANCE, ALLOWED_COPIES

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
PARTS = ("budget", "kv_cache", "trace")


def main() -> None:
    parser = argparse.ArgumentParser(description="the memory of a run without a proof")
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)} (default all)")
    parser.add_argument("--tokens", type=int, default=12, help="(default 12)")
    parser.add_argument("--folder", default="/var/tmp", help="where models are written (default /var/tmp)")
    options = parser.parse_args()
    headings = ("peak", *PARTS, "beside", "allowance", "one layer")
    print(f"{'shape':<10}{'memory':>7}", *(f"{heading:>9}" for heading in headings))
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
                memory = told["memory"]
                beside = memory["peak"] - sum(memory[part] for part in PARTS)
                layer = (memory["allowance"] - ALLOWANCE) // ALLOWED_COPIES
                sizes = (
                    memory["peak"],
                    *(memory[part] for part in PARTS),
                    beside,
                    memory["allowance"],
                    layer,
                )
                print(
                    f"{shape:<10}{budget:>7}",
                    *(f"{size / 1e6:9.1f}" for size in sizes),
                    "" if memory["held"] else "MORE",
                    flush=True,
                )


if __name__ == "__main__":
    main()
