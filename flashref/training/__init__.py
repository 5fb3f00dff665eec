"""Fitting predictors: from what the up projection receives to which neurons will fire.

Paper §3.1 (Fig. 3b), appendix B; decisions 4 (threshold), 5 (input), 6 (shape and loss), 7 (labels) and
22 (rates). A module each: texts (the split), layers (recording), sets (which neurons), fitting, choosing,
judging, work (what a second start finds), session (all of it together).
d is the width, n the neurons of a layer, r the rank of its predictor.
"""
