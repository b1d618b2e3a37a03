"""The two bodies of arXiv 2502.17206, a causal language model and a ViT, and what builds any body.

Shapes: B batch, N tokens, W width, V vocabulary, C classes. The mechanism of each layer is the
only thing that differs between the arms of a comparison; with one seed, all other parameters
start at the same values in all arms.
"""

import math

import torch
from torch import Tensor, nn

from attnlab.config.mechanisms import Mechanism
from attnlab.config.schema import Body
from attnlab.errors import BadInput
from attnlab.models.attention import build_attention
from attnlab.models.blocks import EMBEDDING, Block, KeyValueCache, build_mechanism
from attnlab.models.positions import Positions
from attnlab.models.seq2seq import Seq2Seq
from attnlab.runtime.seeding import derive_seed

SOME_TOKENS = 16


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
            self.side = self.patch * math.isqrt(tokens - 1)
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

    @property
    def attentions(self) -> list[nn.Module]:
        """What has a mechanism, in the order in which diagnostics number it."""
        return [block.attention for block in self.blocks]

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
        """(B, 3, S, S) -> (B, (S / patch)^2, 3 patch^2), rows of patches from top left. Errors:
        `ValueError` for images of another size, whose patches would get wrong positions.
        """
        p, shape = self.patch, (3, self.side, self.side)
        if images.shape[1:] != shape:
            raise ValueError(
                f"images must be (B, {', '.join(map(str, shape))}); got {tuple(images.shape)}"
            )
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


def try_mechanism(arch: Body, model: Mechanism, device: torch.device) -> None:
    """Send a few tokens through the configured mechanism. On a CPU this also builds the kernels
    that it needs; on a GPU others are compiled when training begins.

    Errors: `BadInput` if model.backend cannot serve here, or the mechanism not arch.positions,
    which the schema knows of those that are shipped.
    """
    tokens = torch.zeros(1, arch.heads, SOME_TOKENS, arch.head_width, device=device)
    padded = arch.body == "seq2seq"
    mask = torch.ones(1, 1, 1, SOME_TOKENS, dtype=torch.bool, device=device) if padded else None
    mechanism = build_attention(model, arch).to(device)
    if arch.positions == "alibi" and not mechanism.takes_bias:
        raise BadInput(
            f"arch.positions=alibi: model.mechanism={model.mechanism} has no scores that take a "
            "bias of positions (takes_bias)"
        )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        mechanism(tokens, tokens, tokens, causal=arch.body == "lm", mask=mask)


def bare_model(arch: Body, model: Mechanism, inputs: int, outputs: int, tokens: int) -> nn.Module:
    """The configured body, with whatever initial values."""
    body = Seq2Seq if arch.body == "seq2seq" else Transformer
    return body(arch, model, inputs, outputs, tokens)


def build_model(
    arch: Body, model: Mechanism, seed: int, *, inputs: int, outputs: int, tokens: int
) -> nn.Module:
    """The configured model with initial values that depend only on the seed and each module's
    name.

    So parameters that two arms share are equal bit for bit, whatever else the arms contain.
    """
    built = bare_model(arch, model, inputs, outputs, tokens)
    with torch.random.fork_rng(devices=[]):
        for name, module in built.named_modules():
            if list(module.parameters(recurse=False)):
                if not hasattr(module, "reset_parameters"):
                    raise TypeError(
                        f"{type(module).__name__} ({name}) has parameters of its own and no "
                        "reset_parameters: see docs/your-mechanism.md"
                    )
                # of the CPU alone: torch.manual_seed would reseed a user's GPUs too
                torch.default_generator.manual_seed(derive_seed(seed, "init", name))
                module.reset_parameters()
    return built


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """`params`: all trainable values; `params_attention`: those of the mechanisms alone."""
    mechanisms = nn.ModuleList(attention.mechanism for attention in model.attentions)

    def trainable(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    return {"params": trainable(model), "params_attention": trainable(mechanisms)}
