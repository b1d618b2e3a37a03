"""The model section of the configuration: one class for each mechanism that has options."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from attnlab.fields import Count, Name, PositiveInt, Section
from attnlab.models.attention import ATTENTION

Layers = Literal["all", "inner"] | Annotated[list[Count], Field(min_length=1)]
Backend = Literal["auto", "eager", "chunked", "cpp", "triton"]


class Mechanism(Section):
    """What every mechanism has. Layers that it does not apply to have dot-product attention."""

    name: Name
    mechanism: str
    layers_key: ClassVar[str] = "layers"

    def applies(self, depth: int) -> list[int]:
        """The layers of a body of this depth that have the mechanism: `all` and `inner` (all but
        first and last) written out.
        """
        chosen = getattr(self, self.layers_key, "all")
        if isinstance(chosen, list):
            return chosen
        return list(range(depth) if chosen == "all" else range(1, depth - 1))

    def ffn_extra_units(self, layer: int) -> int:
        """Hidden units that the FFN of a layer has beyond arch.ffn_width."""
        return 0

    def contradictions(self, arch) -> Iterator[str]:
        """Every pair of keys that cannot stand together."""
        key, layers = f"model.{self.layers_key}", self.applies(arch.layers)
        if not layers:
            yield f"{key}=inner: arch.layers={arch.layers} has no inner layers"
        elif max(layers) >= arch.layers:
            yield (
                f"{key}={layers}: arch.layers={arch.layers} allows 0 to {arch.layers - 1}, "
                "all or inner"
            )
        if len(set(layers)) < len(layers):
            yield f"{key}={layers}: a layer is named twice"

    def fill(self, arch, protocol: str) -> None:
        """Put in what follows from the other keys, so that config.yaml says what was run."""
        if hasattr(self, self.layers_key):
            setattr(self, self.layers_key, self.applies(arch.layers))


class DotProduct(Mechanism):
    mechanism: Literal["dot_product"]


class DotProductWide(Mechanism):
    mechanism: Literal["dot_product_wide"]
    ffn_extra: PositiveInt

    def ffn_extra_units(self, layer: int) -> int:
        """See `Mechanism`."""
        return self.ffn_extra if layer == 0 else 0


class QKNorm(Mechanism):
    mechanism: Literal["qk_norm"]
    layers: Layers
    gain: bool


class Neural(Mechanism):
    mechanism: Literal["neural"]
    neural_layers: Layers
    d_prime: PositiveInt | None
    hidden: Annotated[list[PositiveInt], Field(min_length=1)] | None
    activation: Literal["relu", "gelu", "silu", "tanh", "leaky_relu"]
    score_scale: bool
    per_head: bool
    projection_bias: bool
    backend: Backend
    layers_key: ClassVar[str] = "neural_layers"

    def contradictions(self, arch) -> Iterator[str]:
        """See `Mechanism`."""
        if self.d_prime and self.d_prime > arch.head_width:
            yield (
                f"model.d_prime={self.d_prime}: must be at most the head width "
                f"arch.width / arch.heads = {arch.head_width}; null means no projection"
            )
        if self.projection_bias and self.d_prime is None:
            yield "model.projection_bias=true: model.d_prime=null has no projection"
        yield from super().contradictions(arch)

    def fill(self, arch, protocol: str) -> None:
        """See `Mechanism`."""
        super().fill(arch, protocol)
        if self.hidden is None:
            d_prime = self.d_prime or arch.head_width
            paper = protocol == "paper"
            self.hidden = [2 * d_prime] if paper else [d_prime, max(1, d_prime // 2)]


class Additive(Mechanism):
    mechanism: Literal["additive"]
    layers: Layers
    hidden: PositiveInt | None
    per_head: bool
    backend: Backend

    def fill(self, arch, protocol: str) -> None:
        """See `Mechanism`."""
        super().fill(arch, protocol)
        self.hidden = self.hidden or arch.head_width


class Expressive(Mechanism):
    mechanism: Literal["expressive"]
    layers: Layers
    form: Literal["rational", "softmax_square"]


class Dagpam(Mechanism):
    mechanism: Literal["dagpam"]
    layers: Layers
    lambda_plus: float
    lambda_minus: float
    trainable: bool
    per_head: bool


WithSection = DotProduct | DotProductWide | QKNorm | Neural | Additive | Expressive | Dagpam


def _named(section: type[Mechanism]) -> str:
    return get_args(section.model_fields["mechanism"].annotation)[0]


WITHOUT_SECTION = sorted(ATTENTION.keys() - set(map(_named, get_args(WithSection))))


class Plain(Mechanism):
    """Every mechanism of ATTENTION without a section of its own."""

    mechanism: Literal[*WITHOUT_SECTION]
    layers: Layers


Model = Annotated[WithSection | Plain, Field(discriminator="mechanism")]
