"""The example with experts of a mixture runs, and reads what a dictionary in order of use reads."""

import runpy
from collections import OrderedDict
from pathlib import Path

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "moe_experts.py"))


def test_experts_are_simulated_as_neurons_are():
    mixture, share = EXAMPLE["MIXTRAL"], 0.5
    assert mixture.expert_bytes == 352_321_536
    row = EXAMPLE["measure"](mixture, share, tokens=128)
    without = mixture.layers * mixture.used * mixture.expert_bytes
    assert all(row["Belady"] <= read <= without for read in row.values())

    # Two experts are asked for at once: what is there is used first, then the others come.
    trace = EXAMPLE["routed"](mixture, tokens=128, warm=64, seed=1)
    order, misses = OrderedDict(), 0
    for token in range(trace.tokens):
        for layer in range(trace.layers):
            asked = [(layer, int(expert)) for expert in trace.active(token, layer)]
            new = [expert for expert in asked if expert not in order]
            misses += len(new) * (token >= trace.first_counted)
            for expert in asked:
                order[expert] = None
                order.move_to_end(expert)
            while len(order) > share * mixture.layers * mixture.experts:
                order.popitem(last=False)
    assert row["LRU"] == misses * mixture.expert_bytes / 64


def test_the_table_names_every_model_and_policy(capsys):
    EXAMPLE["main"](tokens=66)
    header, *rows = capsys.readouterr().out.splitlines()
    assert all(name in header for name in EXAMPLE["POLICIES"])
    assert [row[:8] for row in rows] == ["Mixtral ", "Qwen3-30"]
