"""Fits and judges predictors of active neurons: it uses the reference, and is not a part of it.

    from flashref.training import fit, judge

    print(fit("opt-125m", "corpus.txt"))
    print(judge("opt-125m", "another.txt"))

The modules, from the bottom up: `texts` splits a text, `layers` records what each layer receives, `masks`
says which neurons are active, predicted or resident, `low_rank` fits one predictor, `choosing` chooses ranks
and thresholds, `fitting` fits all layers, `judging` counts errors, `partial_dir` keeps finished layers,
`evaluation` and `figure` show the result, and `from_disk` does all of this for a model on disk.

Paper §3.1 (Fig. 3b) and appendix B; decisions 4 (threshold), 5 (input of a predictor), 6 (its shape and
loss), 7 (labels) and 22 (reported rates). In shapes, d is the model's width, n the number of neurons of a
layer and r the rank of its predictor.
"""

from flashref.training.evaluation import Evaluation
from flashref.training.figure import draw
from flashref.training.from_disk import fit, judge
from flashref.training.plan import FitPlan, FitSchedule

__all__ = ["Evaluation", "FitPlan", "FitSchedule", "draw", "fit", "judge"]
