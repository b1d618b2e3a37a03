"""The encoder-decoder transformer (Vaswani et al., arXiv 1706.03762), of the blocks of the other
bodies.

Shapes: B sentence pairs, S source tokens, T target tokens, H heads, D head width, W width, V
vocabulary. The mechanism may stand in the encoder's self-attention, in the decoder's, and in the
cross-attention of the decoder to the source (arch.attentions); elsewhere is the dot product.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.config.mechanisms import Mechanism
from attnlab.config.schema import Seq2SeqBody
from attnlab.models.attention import build_attention
from attnlab.models.blocks import (
    DOT_PRODUCT,
    EMBEDDING,
    Block,
    KeyValueCache,
    build_mechanism,
)
from attnlab.models.positions import Positions


@dataclass
class Source:
    """An encoded source: keys and values (B, H, S, D) for each layer of the decoder, and the mask
    (B, 1, 1, S) that hides padding.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    mask: Tensor

    def keep(self, rows: Tensor) -> "Source":
        """These rows of the batch, which may occur more than once."""
        return Source([(k[rows], v[rows]) for k, v in self.keys_values], self.mask[rows])


class CrossAttention(nn.Module):
    """Queries from the target, keys and values from the source (no biases), the mechanism, and the
    projection back. There are no rotary positions: a distance between two sentences has no
    meaning.
    """

    causal = False

    def __init__(self, arch: Seq2SeqBody, mechanism: nn.Module):
        super().__init__()
        self.heads = arch.heads
        self.q = nn.Linear(arch.width, arch.width, bias=False)
        self.kv = nn.Linear(arch.width, 2 * arch.width, bias=False)
        self.mechanism = mechanism
        self.out = nn.Linear(arch.width, arch.width, bias=False)

    def bias(self, queries: int, keys: int) -> None:
        """None: see `SelfAttention.bias`."""

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, W) -> keys and values, each (B, H, S, D)."""
        return self.kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W); mask (B, 1, 1, S): True where there is no padding."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = self.mechanism(q, k, v, causal=False, mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class DecoderBlock(Block):
    """A block with cross-attention between self-attention and feed-forward network."""

    def __init__(
        self,
        arch: Seq2SeqBody,
        mechanism: nn.Module,
        cross: nn.Module,
        tokens: int,
        ffn_extra: int,
    ):
        super().__init__(arch, mechanism, True, tokens, ffn_extra)
        self.cross = CrossAttention(arch, cross)
        self.norm_cross = nn.LayerNorm(arch.width)

    def forward(
        self, x: Tensor, source: tuple[Tensor, Tensor, Tensor], cache: KeyValueCache | None = None
    ) -> Tensor:
        """(B, T, W) -> (B, T, W); source: keys, values and mask (see `Source`); cache: see
        `SelfAttention.forward`. Padding of the target stands behind its tokens, which therefore
        do not see it: the causal mask is enough.
        """
        x = self.add(x, self.norm1, lambda y: self.dropout(self.attention(y, cache)))
        x = self.add(x, self.norm_cross, lambda y: self.dropout(self.cross(y, *source)))
        return self.add(x, self.norm2, self.feed_forward)


class Seq2Seq(nn.Module):
    """Encoder and decoder with arch.layers blocks each. With arch.tied_embeddings source, target
    and output layer share one matrix of V x W; otherwise each has its own.

    inputs, outputs: the vocabulary, joint for both languages; tokens: the longest sequence.
    """

    def __init__(
        self, arch: Seq2SeqBody, model: Mechanism, inputs: int, outputs: int, tokens: int
    ):
        super().__init__()

        def mechanism(place: str, layer: int) -> nn.Module:
            if place in arch.attentions:
                return build_mechanism(arch, model, layer)
            return build_attention(DOT_PRODUCT, arch)

        def extra(layer: int, *places: str) -> int:
            return model.ffn_extra_units(layer) * sum(place in arch.attentions for place in places)

        layers = range(arch.layers)
        self.embedding = EMBEDDING[arch.embedding_init](inputs, arch.width)
        self.encoder_positions, self.decoder_positions = (
            Positions(arch, tokens) for _ in range(2)
        )
        self.encoder = nn.ModuleList(
            Block(arch, mechanism("encoder", i), False, tokens, extra(i, "encoder"))
            for i in layers
        )
        self.decoder = nn.ModuleList(
            DecoderBlock(
                *(arch, mechanism("decoder", i), mechanism("cross", i), tokens),
                extra(i, "decoder", "cross"),
            )
            for i in layers
        )
        # a post-LN block ends with a norm of its own
        norm = nn.LayerNorm if arch.norm == "pre" else nn.Identity
        self.encoder_norm, self.decoder_norm = norm(arch.width), norm(arch.width)
        self.embedding_norm = nn.LayerNorm(arch.width) if arch.embedding_norm else nn.Identity()
        self.target_embedding = self.head = None
        if not arch.tied_embeddings:
            self.target_embedding = EMBEDDING[arch.embedding_init](outputs, arch.width)
            self.head = nn.Linear(arch.width, outputs)

    @property
    def blocks(self) -> list[Block]:
        """Of the encoder, then of the decoder."""
        return [*self.encoder, *self.decoder]

    @property
    def attentions(self) -> list[nn.Module]:
        """Self-attention of the encoder and of the decoder, then cross-attention: the order in
        which diagnostics number them.
        """
        return [b.attention for b in self.blocks] + [b.cross for b in self.decoder]

    def new_cache(self) -> list[KeyValueCache]:
        """An empty cache for every layer of the decoder, for `decode`."""
        return [KeyValueCache() for _ in self.decoder]

    def forward(self, pairs) -> Tensor:
        """Logits (B, T, V) of the next target token at each place; see
        `attnlab.data.pairs.Pairs`.
        """
        return self.decode(pairs.target, self.encode(pairs.source, pairs.source_mask))

    def encode(self, ids: Tensor, mask: Tensor) -> Source:
        """ids (B, S); mask (B, S): True where there is no padding."""
        mask = mask[:, None, None, :]
        x = self.embedding_norm(self.encoder_positions(self.embedding(ids)))
        for block in self.encoder:
            x = block(x, mask=mask)
        x = self.encoder_norm(x)
        return Source([block.cross.keys_values(x) for block in self.decoder], mask)

    def decode(
        self, ids: Tensor, source: Source, cache: list[KeyValueCache] | None = None
    ) -> Tensor:
        """ids (B, T) -> logits (B, T, V). cache: ids are the tokens behind those in it, at most
        `tokens` with them; their keys and values are added to it.
        """
        embedding = self.embedding if self.target_embedding is None else self.target_embedding
        start = cache[0].tokens if cache else 0
        x = self.embedding_norm(self.decoder_positions(embedding(ids), start))
        caches = cache or [None] * len(self.decoder)
        for block, kv, layer in zip(self.decoder, source.keys_values, caches, strict=True):
            x = block(x, (*kv, source.mask), layer)
        x = self.decoder_norm(x)
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)
