"""Random small models of every family, read by transformers and by flashref from the very same folder.

    export PYTHONPATH=.:tests/support:tests/models
    python tests/tools/fuzz_families.py [--cases 200] [--seed 0] [FAMILY ...]

A case edits a config.json in any key that a family, another one or transformers' own class knows: legal
values, older spellings, null, wrong types. Its weights are those that flashref asks for. Prints a table of
what came of a family's cases. Fails if logits or tensors differ, which it shows with the fewest edits that
do it, if flashref raises anything but a sentence, or if not one case of a family is equal.
"""

import argparse
import dataclasses
import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from checkpoint_files import to_dtype, write_file
from family_configs import NEEDED, OPTIONAL, ROPE

from flashref.cli.tables import Column, print_table, say
from flashref.models.checkpoint import open_checkpoint, tensor_shapes
from flashref.models.config import parse_config
from flashref.models.config_values import ACTIVATIONS
from flashref.models.rotary import KINDS
from flashref.types import FlashrefError

try:
    import torch
    import transformers
except ImportError as error:
    sys.exit(f"{error.name} is not installed; it comes with the dev extra: pip install -e '.[dev]'")
from test_parity import AGREEMENT, our_model, their_cached_logits, their_logits

BOTH, REFUSED, FAILING = "refused by both", "refused here only", "failing there only"
EQUAL, INCONSISTENT, DIFFERENT, CRASHED = "equal", "equal to one of their two", "DIFFERENT", "CRASHED"

Verdict = tuple[str, str]  # one of these, and why
Values = dict[str, Any]  # of a config.json

HEAD_SIZES = {"opt": (1, 2, 3, 5, 8), "persimmon": (8, 16, 20), "phi": (8, 16, 20)}  # else even ones
ODD = (None,) * 7 + (0, 1, -1, 2.5, True, "gelu_fast", [], {})
LEGAL: dict[str, tuple[Any, ...]] = {  # besides the values in NEEDED and OPTIONAL, and transformers' defaults
    **dict.fromkeys(("activation", "activation_function", "hidden_act"), tuple(ACTIVATIONS)),
    **dict.fromkeys(("ffn_dim", "ffn_hidden_size", "intermediate_size"), (1, 16, 33)),
    **dict.fromkeys(("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps"), (1e-6, 1e-5, 1e-2)),
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), (40, 64, 2048)),
    **dict.fromkeys(("mscale", "mscale_all_dim", "attention_factor"), (0.5, 1.0, 1.3)),
    **dict.fromkeys(("factor", "beta_fast", "high_freq_factor"), (4, 8.0, 32)),
    **dict.fromkeys(("beta_slow", "low_freq_factor"), (1, 0.5, 2.0)),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), (0.25, 0.4, 0.75, 1)),
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), (None, 4, 4096)),
    **dict.fromkeys(("word_embed_proj_dim", "head_dim"), (4, 6, 16)),
    "num_hidden_layers": (1, 3),
    "num_ln_in_parallel_attn": (1, 2),
    "vocab_size": (53, 101),
    "hidden_act_param": (0.25,),
    "rope_theta": (10_000.0, 500, 100.0),
    "torch_dtype": ("float16", "bfloat16"),
    "is_causal": (True, False),
    "layer_types": (["full_attention"] * 2, ["sliding_attention", "full_attention"]),
    "per_layer_config": ({}, {"0": {"rms_norm_eps": 0.5, "layer_norm_eps": 0.5}}),
    "quantization_config": (None, {"quant_method": "gptq", "bits": 4}),
    "of_nobody": ([1],),
}


class Case(NamedTuple):
    """config: base, edited; head: what a tied model has as its own head; seed: of weights and text."""

    base: Values
    config: Values
    dtype: str
    head: str  # none, copy, another
    seed: int


def pick(rng: np.random.Generator, values: Any) -> Any:
    return values[rng.integers(len(values))]


def draw_case(family: str, rng: np.random.Generator) -> Case:
    size = pick(rng, HEAD_SIZES.get(family, (2, 4, 6, 8, 12)))
    heads = min(pick(rng, (1, 2, 3, 4, 5, 7, 9, 20)), 96 // size)
    base = {"model_type": family} | NEEDED[family]
    base |= {"hidden_size": heads * size, "num_attention_heads": heads}
    others = {key: value for optional in OPTIONAL.values() for key, value in optional.items()}
    fields = dataclasses.fields(transformers.CONFIG_MAPPING[family])
    known = others | {field.name: field.default for field in fields} | OPTIONAL[family] | base
    config, odd = dict(base), pick(rng, (0, 0, 0, 0.1, 0.3))
    for key in sorted({*known, *LEGAL, "rope_scaling"} - {"model_type"}):
        likely = key in base or key in OPTIONAL[family] or key.startswith("rope_")
        if rng.random() < (0.4 if likely else 0.04):
            config[key] = draw_value(family, key, known, odd, rng)
    if "fatrelu" in config.values():
        config.setdefault("hidden_act_param", 0.01)
    if family == "falcon" and rng.random() < 0.1:
        config["n_embed"] = config.pop("hidden_size")
    head = pick(rng, ("none", "none", "none", "copy", "another"))
    return Case(base, config, pick(rng, ("F32", "F16", "BF16")), head, int(rng.integers(1 << 32)))


def draw_value(family: str, key: str, known: Values, odd: float, rng: np.random.Generator) -> Any:
    """A value of a key; known: a legal one of each; odd: how likely it is to be any at all."""
    if rng.random() < odd:
        return pick(rng, ODD)
    if key in ("rope_parameters", "rope_scaling"):
        return draw_rope(family, odd, rng)
    values = [*LEGAL.get(key, ()), *([known[key]] if key in known else [])]
    if key in ("num_kv_heads", "num_key_value_heads"):
        heads = known["num_attention_heads"]
        values += [groups for groups in range(1, heads + 1) if heads % groups == 0]
    return pick(rng, (True, False) if isinstance(values[0], bool) else values)


def draw_rope(family: str, odd: float, rng: np.random.Generator) -> Values:
    names = pick(rng, (("rope_type",), ("rope_type",), ("type",), ("type",), ("rope_type", "type")))
    part = {name: pick(rng, KINDS) for name in names}
    for key in sorted({*ROPE, "partial_rotary_factor"} - {"rope_type"}):
        needed = key in ("factor", "low_freq_factor", "high_freq_factor")
        likely = key in ROPE or key in OPTIONAL[family]  # where a part of a head may be turned
        if rng.random() < (0.95 if needed else 0.5 if likely else 0.05):
            part[key] = draw_value(family, key, ROPE, odd, rng)
    return part


def draw_text(case: Case, rng: np.random.Generator) -> list[int]:
    """12 to 40 token ids, or as many as the context holds."""
    sizes = (case.config.get(key) for key in ("vocab_size", "max_position_embeddings"))
    vocabulary, context = (size if type(size) is int and size > 0 else 40 for size in sizes)
    return rng.integers(vocabulary, size=min(int(rng.integers(12, 41)), context)).tolist()


def draw_weights(case: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What flashref asks for, or nothing if it refuses the config: transformers makes up what it lacks."""
    try:
        shapes = dict(tensor_shapes(parse_config(json.dumps(case.config))))
    except Exception:  # our_logits meets it again
        return {}
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            values = 0.3 * values + name.endswith("weight")
        elif "embed" not in name:
            values *= np.float32(shape[1] ** -0.5)
        tensors[name] = to_dtype(values.astype(np.float32), case.dtype)
    if case.head != "none" and "lm_head.weight" not in tensors:
        tokens = next(tensors[name] for name in tensors if "embed" in name)
        tensors["lm_head.weight"] = tokens if case.head == "copy" else tokens[::-1]
    return tensors


def our_logits(folder: Path, text: list[int]) -> np.ndarray:
    """In float64, as theirs: in float32 a norm of two values, or a tau, can make much of a rounding."""
    forward_one = our_model(open_checkpoint(folder), np.float64)
    return np.stack([forward_one(token_id) for token_id in text])


def whole_rms_norm(norm: Any, x: Any) -> Any:
    """Float64 in a float64 model, where transformers' own goes by float32."""
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))


def their_answer(folder: Path, text: list[int], tau: Any) -> tuple[list[np.ndarray], set[str]]:
    """The logits without and with a cache, and the tensors that only one of the two asks for."""
    # transformers has no FATReLU, which is what torch calls Threshold.
    transformers.activations.ACT2FN["fatrelu"] = torch.nn.Threshold, {"threshold": tau, "value": 0.0}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, return_dict=True, ignore_mismatched_sizes=True, output_loading_info=True
    )
    unlike = info["missing_keys"] | info["unexpected_keys"] | {name for name, *_ in info["mismatched_keys"]}
    half = (len(text) + 1) // 2
    logits = [their_logits(model, text), their_cached_logits(model, text[:half], text[half:])]
    return logits, unlike - {"lm_head.weight"}  # which is there or not as the case has it


def attempt(compute: Callable[..., Any], *given: Any) -> Any:
    """What it returns, or the exception that it raises."""
    try:
        return compute(*given)
    except Exception as error:
        return error


def judge(case: Case, folder: Path) -> Verdict:
    """What comes of a case, written into the folder and given to both."""
    rng = np.random.default_rng(case.seed)
    text, weights = draw_text(case, rng), draw_weights(case, rng)
    (folder / "config.json").write_text(json.dumps(case.config))
    write_file(folder / "model.safetensors", weights)
    ours = attempt(our_logits, folder, text)
    theirs = attempt(their_answer, folder, text, case.config.get("hidden_act_param"))
    if isinstance(ours, FlashrefError) and "\n" not in str(ours):
        sentence = re.sub(r"\d[\d.e+-]*", "#", str(ours).replace(f"{folder}: ", ""))
        return (BOTH, "") if isinstance(theirs, Exception) else (REFUSED, sentence)
    if isinstance(ours, Exception):
        return CRASHED, repr(ours)
    return (FAILING, type(theirs).__name__) if isinstance(theirs, Exception) else compare(ours, *theirs)


def compare(ours: np.ndarray, theirs: list[np.ndarray], unlike: set[str]) -> Verdict:
    if unlike:
        return DIFFERENT, f"{len(unlike)} tensors, {min(unlike)} first"
    if not np.isfinite(theirs).all():
        return FAILING, "logits that are not finite"
    errors = [float(np.abs(ours - logits).max() / (np.abs(logits).max() or 1)) for logits in theirs]
    agreeing = [error <= AGREEMENT for error in errors]  # no NaN does
    if all(agreeing):
        return EQUAL, f"within {next(bound for bound in (1e-9, 1e-7, AGREEMENT) if max(errors) <= bound)}"
    return (INCONSISTENT, "") if any(agreeing) else (DIFFERENT, f"{errors[0]:.1e} of the largest logit")


def nearer(config: Values, base: Values) -> Iterator[Values]:
    """Every config with an edit less, or with a key less in an object."""
    for key in sorted({*config, *base}):
        if config.get(key, ...) != base.get(key, ...):
            rest = {other: value for other, value in config.items() if other != key}
            yield rest | ({key: base[key]} if key in base else {})
    for key, part in config.items():
        for inner in part if isinstance(part, dict) else ():
            yield config | {key: {other: value for other, value in part.items() if other != inner}}


def minimised(case: Case, folder: Path, kind: str) -> Case:
    """A case of the same kind that no edit can be taken out of."""
    for config in nearer(case.config, case.base):
        if judge(case._replace(config=config), folder)[0] == kind:
            return minimised(case._replace(config=config), folder, kind)
    return case


def fuzz(family: str, cases: int, seed: int, folder: Path) -> bool:
    """Whether all that can be compared is equal, and that is something; prints what came of the cases."""
    counts: Counter[Verdict] = Counter()
    for number in range(cases):
        case = draw_case(family, np.random.default_rng([seed, number, *family.encode()]))
        kind, reason = judge(case, folder)
        if kind in (DIFFERENT, CRASHED):
            case = minimised(case, folder, kind)
            reason = judge(case, folder)[1]
            about = f"case {number}, {case.dtype}, head {case.head}"
            print(f"{about}: {kind}: {reason}: {json.dumps(case.config)}")
        counts[kind, reason] += 1
    say(f"{family}, {cases} cases of seed {seed}", "bold")
    columns = (Column("verdict", words=True), Column("why", words=True), Column("cases"))
    print_table(columns, [(kind, reason, str(count)) for (kind, reason), count in sorted(counts.items())])
    kinds = {kind for kind, _ in counts}
    return EQUAL in kinds and not kinds & {DIFFERENT, CRASHED}


def main() -> None:
    parser = argparse.ArgumentParser(description="Random models of every family beside transformers.")
    families = ["all", *NEEDED]
    parser.add_argument("families", nargs="*", default="all", choices=families, metavar="FAMILY")
    parser.add_argument("--cases", type=int, default=200, help="of each family (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same gives the same cases (%(default)s)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.models.llama.modeling_llama.LlamaRMSNorm.forward = whole_rms_norm
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    chosen = NEEDED if "all" in options.families else options.families
    with tempfile.TemporaryDirectory(prefix="fuzz-families-") as folder:
        well = [fuzz(family, options.cases, options.seed, Path(folder)) for family in chosen]
    sys.exit(not all(well))


if __name__ == "__main__":
    main()
