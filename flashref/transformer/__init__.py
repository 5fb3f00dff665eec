"""What surrounds the FFN: checkpoints, the blocks of each family, and the generation of text.

`checkpoint` opens a Hugging Face directory; `opt_config` says which tensors one family must have, and `opt`
computes it, one token at a time, with the FFN passed in as a function; `generate` turns logits into text
and into perplexity, for any family.
"""
