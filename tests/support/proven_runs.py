"""Short runs of a small packed model with their proof, which keeps every step that it saw."""

from flashref.models.decoding import decode_flash
from flashref.models.proof import Proof
from flashref.models.text import TextRequest

PROMPT = list(b"In the beginning")
COUNT = 10


class Recorder(Proof):
    """A proof that keeps every step that it saw, pass by pass."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.passes = []

    def observer(self):
        check = super().observer()

        def observe(layer, x, y, step):
            check(layer, x, y, step)
            if layer == 0:
                self.passes.append([])
            self.passes[-1].append((x, step))

        return observe


def finished(stream):
    """What a generator returns."""
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def decode(opened, decoder=None, exact=False, semantics=None, cold=False, layouts=None):
    """A run and its proof; the decoder may be made to lie, the proof is told the truth."""
    decoder = decoder or opened.decoder
    proof = Recorder(opened.ffns, opened.budget, semantics or opened.decoder.semantics, exact)
    read = proof.checking_reader(decoder.read, layouts or opened.layouts, opened.ffns)
    request, seen = TextRequest(tuple(PROMPT), COUNT, cold=cold), []
    decoding = decode_flash(decoder._replace(read=read), request, proof, True, lambda *a: seen.append(a))
    decoded = finished(decoding)
    assert seen == [("decoding from flash", i + 1, len(PROMPT) - 1 + COUNT) for i in range(len(seen))]
    assert len(seen) == len(PROMPT) - 1 + COUNT
    return decoded, proof
