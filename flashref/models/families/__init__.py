"""The five families of the paper, by the model_type of config.json.

Each module has what its family reads from config.json, the tensors that it needs, and the arithmetic of its
block, for NumPy and JAX alike. What several families share is in flashref.models.family, parts and rotary.
"""

from flashref.models.families.falcon import FALCON
from flashref.models.families.llama import LLAMA
from flashref.models.families.opt import OPT
from flashref.models.families.persimmon import PERSIMMON
from flashref.models.families.phi import PHI
from flashref.models.family import Family

FAMILIES: dict[str, Family] = {
    "opt": OPT,
    "falcon": FALCON,
    "persimmon": PERSIMMON,
    "phi": PHI,
    "llama": LLAMA,
}
