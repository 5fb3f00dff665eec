"""What surrounds the FFN: checkpoints, the blocks of each family, and the generation of text.

`checkpoint` opens a Hugging Face directory; `families` says which tensors each family must have and computes
its block; `model` passes one token at a time through any of them, with the FFN passed in as a function;
`generate` turns logits into text and into perplexity.
"""
