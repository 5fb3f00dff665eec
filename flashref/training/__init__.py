"""Fitting predictors: from what the up projection receives to which neurons will fire.

    from flashref.training import fit, judge

    print(fit("opt-125m", "corpus.txt"))
    print(judge("opt-125m", "another.txt"))

A module each: texts (the split), layers (recording), masks (which neurons), low_rank (one layer), choosing
(ranks and thresholds), fitting (all layers), judging, partial_dir (what a second start finds), evaluation and
figure (what is shown), from_disk (all of it together). Paper §3.1 (Fig. 3b), appendix B; decisions 4
(threshold), 5 (input), 6 (shape and loss), 7 (labels) and 22 (rates). d is the width, n the neurons of a
layer, r the rank of its predictor.
"""

from flashref.training.evaluation import Evaluation
from flashref.training.figure import draw
from flashref.training.from_disk import fit, judge
from flashref.training.plan import Fit, Plan

__all__ = ["Evaluation", "Fit", "Plan", "draw", "fit", "judge"]
