"""One transformer block, and the two bodies of arXiv 2502.17206 made of it: a causal language
model and a ViT.

Shapes: B batch, N tokens, W width, V vocabulary, C classes. The mechanism of each layer is the
only thing that differs between the arms of a comparison; with one seed, all other parameters
start at the same values in all arms.
"""

import torch
from torch import Tensor, nn

from attnlab.config.mechanisms import DotProduct, Mechanism
from attnlab.config.schema import Body
from attnlab.errors import BadInput
from attnlab.models.attention import build_attention
from attnlab.models.positions import Alibi, Positions, Rotary
from attnlab.runtime.seeding import derive_seed

FFN_ACTIVATION = {"relu": nn.ReLU, "gelu": nn.GELU}


class TextbookEmbedding(nn.Embedding):
    """Token embedding that starts with variance 1/W, so that sqrt(W) times it has variance 1."""

    def reset_parameters(self) -> None:
        """The values of nn.Embedding, N(0, 1), divided by sqrt(W)."""
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)


DOT_PRODUCT = DotProduct(name="dot_product", mechanism="dot_product")
EMBEDDING = {"normal": nn.Embedding, "textbook": TextbookEmbedding}


class KeyValueCache:
    """Keys and values (B, H, M, D) of the tokens that one layer has seen; none at first."""

    def __init__(self):
        self.tokens: int = 0
        self.keys_values: tuple[Tensor, Tensor] | None = None

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, with these behind the others; kept for the next call."""
        if self.keys_values is not None:
            k, v = (torch.cat(x, dim=-2) for x in zip(self.keys_values, (k, v), strict=True))
        self.tokens, self.keys_values = k.shape[-2], (k, v)
        return k, v


class SelfAttention(nn.Module):
    """Projections to queries, keys, values (no bias), the mechanism, and the projection back.

    tokens: the longest sequence, which rotary positions need to know.
    """

    def __init__(self, arch: Body, mechanism: nn.Module, causal: bool, tokens: int):
        super().__init__()
        self.heads, self.causal = arch.heads, causal
        self.qkv = nn.Linear(arch.width, 3 * arch.width, bias=False)
        self.mechanism = mechanism
        self.out = nn.Linear(arch.width, arch.width, bias=False)
        rotary = arch.positions == "rotary"
        self.rotary = Rotary(tokens, arch.head_width) if rotary else None
        self.alibi = Alibi(arch.heads) if arch.positions == "alibi" else None

    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, W) -> queries, keys and values, each (B, H, N, D); start: the position of the
        first token.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return (
            (q, k, v) if self.rotary is None else (self.rotary(q, start), self.rotary(k, start), v)
        )

    def bias(self, queries: int, keys: int) -> Tensor | None:
        """(H, N, M): what positions add to the scores of the last N of M tokens, if anything."""
        return self.alibi(queries, keys) if self.alibi else None

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B, N, W) -> (B, N, W). With a cache x holds the tokens behind those in it."""
        q, k, v = self.split(x, cache.tokens if cache else 0)
        if cache:
            k, v = cache.extended(k, v)
        bias = self.bias(q.shape[-2], k.shape[-2])
        mixed = self.mechanism(q, k, v, causal=self.causal, bias=bias)
        return self.out(mixed.transpose(1, 2).flatten(2))


class ExtraUnits(nn.Sequential):
    """More hidden units for an FFN, with 2W + 1 parameters each. They are a module of their own,
    so that the weights of the FFN are those of every other arm, and start as they would inside
    it. They have no dropout, so that the random numbers of the other units do not change either.
    """

    def __init__(self, arch: Body, units: int):
        into, out = nn.Linear(arch.width, units), ExtraColumns(units, arch.width, arch.ffn_width)
        super().__init__(into, FFN_ACTIVATION[arch.activation](), out)


class ExtraColumns(nn.Linear):
    """`units` more columns for a linear layer of so many `inputs`; the bias is that layer's."""

    def __init__(self, units: int, outputs: int, inputs: int):
        self.bound = (units + inputs) ** -0.5
        super().__init__(units, outputs, bias=False)

    def reset_parameters(self) -> None:
        """As nn.Linear for all inputs together."""
        nn.init.uniform_(self.weight, -self.bound, self.bound)


class Block(nn.Module):
    """Attention and feed-forward network, each with residual, dropout and LayerNorm (arch.norm:
    post or pre). ffn_extra: hidden units beyond arch.ffn_width.
    """

    def __init__(
        self, arch: Body, mechanism: nn.Module, causal: bool, tokens: int, ffn_extra: int = 0
    ):
        super().__init__()
        self.post = arch.norm == "post"
        self.attention = SelfAttention(arch, mechanism, causal, tokens)
        self.norm1 = nn.LayerNorm(arch.width)
        self.ffn = nn.Sequential(
            nn.Linear(arch.width, arch.ffn_width),
            FFN_ACTIVATION[arch.activation](),
            nn.Dropout(arch.dropout),
            nn.Linear(arch.ffn_width, arch.width),
            nn.Dropout(arch.dropout),
        )
        self.ffn_extra = ExtraUnits(arch, ffn_extra) if ffn_extra else None
        self.norm2 = nn.LayerNorm(arch.width)
        self.dropout = nn.Dropout(arch.dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(B, N, W) -> (B, N, W); cache: see `SelfAttention.forward`."""
        if self.post:
            x = self.norm1(x + self.dropout(self.attention(x, cache)))
            return self.norm2(x + self.feed_forward(x))
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.feed_forward(self.norm2(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, N, W) -> (B, N, W)."""
        y = self.ffn(x)
        return y if self.ffn_extra is None else y + self.ffn_extra(x)


class Transformer(nn.Module):
    """Token or patch embedding, positions, a stack of blocks, LayerNorm and an output layer of
    its own.

    inputs: vocabulary (lm) or values per patch (vit); outputs: vocabulary or classes; tokens:
    the longest sequence.
    """

    def __init__(self, arch: Body, model: Mechanism, inputs: int, outputs: int, tokens: int):
        super().__init__()
        self.vision = arch.body == "vit"
        if self.vision:
            self.patch = arch.patch_size
            self.embedding = nn.Linear(inputs, arch.width)
            self.cls = ClassToken(arch.width)
        else:
            self.embedding = EMBEDDING[arch.embedding_init](inputs, arch.width)
        self.positions = Positions(arch, tokens)
        self.embedding_norm = nn.LayerNorm(arch.width) if arch.embedding_norm else None
        self.blocks = nn.ModuleList(
            Block(
                arch,
                build_mechanism(arch, model, layer),
                not self.vision,
                tokens,
                model.ffn_extra_units(layer),
            )
            for layer in range(arch.layers)
        )
        self.norm = nn.LayerNorm(arch.width)
        self.head = nn.Linear(arch.width, outputs)

    def new_cache(self) -> list[KeyValueCache]:
        """An empty cache for every layer, for `forward`."""
        return [KeyValueCache() for _ in self.blocks]

    def forward(self, x: Tensor, cache: list[KeyValueCache] | None = None) -> Tensor:
        """lm: token ids (B, N) -> logits (B, N, V). vit: images (B, 3, S, S) -> logits (B, C).

        cache, lm only: x holds the tokens that follow those in it, at most `tokens` with them;
        their keys and values are added to it.
        """
        x = self.cls(self.embedding(self.patches(x))) if self.vision else self.embedding(x)
        x = self.positions(x, cache[0].tokens if cache else 0)
        if self.embedding_norm is not None:  # after dropout, as every norm of a post-LN block
            x = self.embedding_norm(x)
        for block, layer in zip(self.blocks, cache or [None] * len(self.blocks), strict=True):
            x = block(x, layer)
        return self.head(self.norm(x[:, 0] if self.vision else x))

    def patches(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, (S / patch)^2, 3 patch^2), rows of patches from top left."""
        p = self.patch
        cut = images.unfold(2, p, p).unfold(3, p, p)  # (B, 3, rows, columns, p, p)
        return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class ClassToken(nn.Module):
    """A learned token in front of the patches; starts at zero, as in the released code."""

    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        """Zero."""
        nn.init.zeros_(self.token)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, W) -> (B, 1 + N, W)."""
        return torch.cat((self.token.expand(len(x), 1, -1), x), dim=1)


def build_mechanism(arch: Body, model: Mechanism, layer: int) -> nn.Module:
    """The mechanism of one layer: the configured one where it applies, dot-product elsewhere."""
    own = layer in model.applies(arch.layers)
    return build_attention(model if own else DOT_PRODUCT, arch)


def try_mechanism(arch: Body, model: Mechanism, device: torch.device) -> None:
    """Send one token through the configured mechanism, which also builds the kernels it needs.

    Errors: `BadInput` if model.backend cannot serve here, or the mechanism not arch.positions,
    which the schema knows of those that are shipped.
    """
    token = torch.zeros(1, arch.heads, 1, arch.head_width, device=device)
    mechanism = build_attention(model, arch).to(device)
    if arch.positions == "alibi" and not mechanism.takes_bias:
        raise BadInput(
            f"arch.positions=alibi: model.mechanism={model.mechanism} has no scores that take a "
            "bias of positions (takes_bias)"
        )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        mechanism(token, token, token, causal=arch.body == "lm")


def build_model(
    arch: Body, model: Mechanism, seed: int, *, inputs: int, outputs: int, tokens: int
) -> Transformer:
    """The configured model with initial values that depend only on the seed and each module's
    name.

    So parameters that two arms share are equal bit for bit, whatever else the arms contain.
    """
    built = Transformer(arch, model, inputs, outputs, tokens)
    with torch.random.fork_rng(devices=[]):
        for name, module in built.named_modules():
            if list(module.parameters(recurse=False)):
                torch.manual_seed(derive_seed(seed, "init", name))
                module.reset_parameters()
    return built


def parameter_counts(model: Transformer) -> dict[str, int]:
    """`params`: all trainable values; `params_attention`: those of the mechanisms alone."""
    mechanisms = [b.attention.mechanism for b in model.blocks]
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "params_attention": sum(p.numel() for m in mechanisms for p in m.parameters()),
    }
