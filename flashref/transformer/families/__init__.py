"""The five families of the paper, by the model_type of config.json.

A module each: what it reads of a config.json, the tensors that it needs, and its block, the one place of
its arithmetic, for NumPy and JAX alike. What several share is in flashref.transformer.parts and rotary.
"""

from flashref.transformer.families.falcon import FALCON
from flashref.transformer.families.llama import LLAMA
from flashref.transformer.families.opt import OPT
from flashref.transformer.families.persimmon import PERSIMMON
from flashref.transformer.families.phi import PHI
from flashref.transformer.family import Family

FAMILIES: dict[str, Family] = {
    "opt": OPT,
    "falcon": FALCON,
    "persimmon": PERSIMMON,
    "phi": PHI,
    "llama": LLAMA,
}
