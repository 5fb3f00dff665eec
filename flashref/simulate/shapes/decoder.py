"""A decoder-only transformer as sizes: how many values its parts have, whatever family it is of."""

from typing import NamedTuple


class Decoder(NamedTuple):
    """A decoder-only transformer by its sizes.

    query, key_value: outputs of these projections, heads × head size; embedded: width of the embedding of
    tokens if not `width`, else 0; positions: learned ones; norms: of a layer; head_norm: values of a layer's
    norms of queries and keys; final_norms: those outside of layers; *_bias: whether there is one.
    """

    layers: int
    width: int
    neurons: int
    vocabulary: int
    query: int
    key_value: int
    activation: str
    gated: bool
    tied: bool
    embedded: int = 0
    positions: int = 0
    norms: int = 2
    head_norm: int = 0
    final_norms: int = 1
    norm_bias: bool = False
    head_norm_bias: bool = False
    query_bias: bool = False  # of queries, keys and values
    out_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False  # of the output head

    @property
    def ffn_weights(self) -> int:
        """Values of one layer's FFN matrices."""
        return (3 if self.gated else 2) * self.width * self.neurons

    @property
    def resident_weights(self) -> int:
        """Values of what is always in memory: embeddings, attention, norms, output head; no biases."""
        d, embedded = self.width, self.embedded or self.width
        tokens = self.vocabulary * embedded * (1 if self.tied else 2)
        projections = 2 * embedded * d if self.embedded else 0
        attention = d * (self.query + 2 * self.key_value) + self.query * d
        layer = attention + self.norms * d + self.head_norm
        return tokens + projections + self.positions * d + self.layers * layer + self.final_norms * d

    @property
    def biases(self) -> int:
        """Values of all biases."""
        d = self.width
        layer = self.query_bias * (self.query + 2 * self.key_value) + self.out_bias * d
        layer += self.ffn_bias * ((2 if self.gated else 1) * self.neurons + d)
        layer += self.norm_bias * self.norms * d + self.head_norm_bias * self.head_norm
        return self.layers * layer + self.norm_bias * self.final_norms * d + self.head_bias * self.vocabulary

    @property
    def parameters(self) -> int:
        """Values of the whole model."""
        return self.resident_weights + self.layers * self.ffn_weights + self.biases
