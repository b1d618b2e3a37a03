"""The model section of the configuration: one class for each mechanism that has options.

`implementation` is the mechanism's file and class in attnlab.models.attention. It is imported only
when a model is built: the configuration is checked before torch is there.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field

from attnlab.config.types import Count, Name, Positive, PositiveInt, Section

Layers = Literal["all", "inner"] | Annotated[list[Count], Field(min_length=1)]
Backend = Literal["auto", "eager", "chunked", "cpp", "triton"]

FUSED = "fused kernels take no bias of positions; use auto or eager"

# Mechanisms without options: a new one is its file, a line here and a YAML in configs/model. One
# with options is a section below, named in WithSection.
PLAIN = {
    "cog": "cog.CogAttention",
    "gaussian_keys": "gaussian_keys.GaussianKeysAttention",
    "uniform": "uniform.UniformAttention",
    "identity": "identity.IdentityAttention",
}
UNBIASED = ("cog", "identity")  # of them: no softmax of a score that a bias can be added to


class Mechanism(Section):
    """The options that every mechanism has. All other layers have dot-product attention."""

    name: Name
    mechanism: str
    layers_key: ClassVar[str] = "layers"
    implementation: ClassVar[str]

    @property
    def without_bias(self) -> str | None:
        """Why no bias of positions can be added to the mechanism's scores; None if it can."""
        return None

    def arguments(self, arch) -> dict[str, Any]:
        """Keyword arguments of the implementation, beside heads and head width."""
        return self.model_dump(exclude={"name", "mechanism", self.layers_key})

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

    def contradictions_with(self, arch) -> Iterator[str]:
        """One message for every combination of keys that is not allowed."""
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
        if arch.positions == "alibi" and self.without_bias:
            yield f"arch.positions=alibi: {self.without_bias}"

    def defaults(self, arch, protocol: str) -> dict[str, Any]:
        """Values of the keys that follow from other keys."""
        if hasattr(self, self.layers_key):
            return {self.layers_key: self.applies(arch.layers)}
        return {}

    def resolved(self, arch, protocol: str) -> Self:
        """The section with `defaults` filled in, so that config.yaml states what was run."""
        return self.model_copy(update=self.defaults(arch, protocol))


class DotProduct(Mechanism):
    mechanism: Literal["dot_product"]
    implementation: ClassVar[str] = "dot.DotProductAttention"

    def arguments(self, arch) -> dict[str, Any]:
        """See `Mechanism`."""
        return {"qk_norm": arch.qk_norm}


class DotProductWide(DotProduct):
    mechanism: Literal["dot_product_wide"]
    ffn_extra: PositiveInt | None
    ffn_layers: Layers
    layers_key: ClassVar[str] = "ffn_layers"

    def ffn_extra_units(self, layer: int) -> int:
        """See `Mechanism`."""
        return self.ffn_extra if layer in self.ffn_layers else 0

    def defaults(self, arch, protocol: str) -> dict[str, Any]:
        """See `Mechanism`."""
        dagpam = arch.head_width**2 + 2  # parameters of a layer: W and a pair of lambdas
        enough = math.ceil(dagpam / (2 * arch.width + 1))
        return super().defaults(arch, protocol) | {"ffn_extra": self.ffn_extra or enough}


class QKNorm(Mechanism):
    mechanism: Literal["qk_norm"]
    layers: Layers
    gain: bool
    implementation: ClassVar[str] = "dot.DotProductAttention"

    def arguments(self, arch) -> dict[str, Any]:
        """See `Mechanism`; in these layers whatever arch.qk_norm says."""
        return {"qk_norm": "rms_gain" if self.gain else "rms"}


class Fused(Mechanism):
    """What has kernels of its own (its key `backend`), which no bias of positions can enter."""

    @property
    def without_bias(self) -> str | None:
        """See `Mechanism`."""
        fused = self.backend not in ("auto", "eager")
        return f"model.backend={self.backend}: {FUSED}" if fused else None


class Neural(Fused):
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
    implementation: ClassVar[str] = "neural.NeuralAttention"

    def contradictions_with(self, arch) -> Iterator[str]:
        """See `Mechanism`."""
        if self.d_prime and self.d_prime > arch.head_width:
            yield (
                f"model.d_prime={self.d_prime}: must be at most the head width "
                f"arch.width / arch.heads = {arch.head_width}; null means no projection"
            )
        if self.projection_bias and self.d_prime is None:
            yield "model.projection_bias=true: model.d_prime=null has no projection"
        yield from super().contradictions_with(arch)

    def defaults(self, arch, protocol: str) -> dict[str, Any]:
        """See `Mechanism`."""
        d_prime = self.d_prime or arch.head_width
        released = [d_prime, max(1, d_prime // 2)]
        hidden = self.hidden or ([2 * d_prime] if protocol == "paper" else released)
        return super().defaults(arch, protocol) | {"hidden": hidden}


class Additive(Fused):
    mechanism: Literal["additive"]
    layers: Layers
    hidden: PositiveInt | None
    per_head: bool
    backend: Backend
    implementation: ClassVar[str] = "additive.AdditiveAttention"

    def defaults(self, arch, protocol: str) -> dict[str, Any]:
        """See `Mechanism`."""
        return super().defaults(arch, protocol) | {"hidden": self.hidden or arch.head_width}


class Expressive(Mechanism):
    mechanism: Literal["expressive"]
    layers: Layers
    form: Literal["rational", "softmax_square"]
    temperature: Positive
    learn_temperature: bool
    implementation: ClassVar[str] = "expressive.ExpressiveAttention"

    @property
    def without_bias(self) -> str | None:
        """See `Mechanism`."""
        if self.form == "rational":
            return "model.form=rational has no softmax whose scores take a bias of positions"
        return None


class Dagpam(Mechanism):
    mechanism: Literal["dagpam"]
    layers: Layers
    lambda_plus: float
    lambda_minus: float
    trainable: bool
    per_head: bool
    implementation: ClassVar[str] = "dagpam.DualAttention"


class Plain(Mechanism):
    """Every mechanism of PLAIN."""

    mechanism: Literal[*PLAIN]
    layers: Layers

    @property
    def implementation(self) -> str:
        """See the module."""
        return PLAIN[self.mechanism]

    @property
    def without_bias(self) -> str | None:
        """See `Mechanism`."""
        if self.mechanism in UNBIASED:
            return f"model.mechanism={self.mechanism} has no scores that take a bias of positions"
        return None


WithSection = DotProduct | DotProductWide | QKNorm | Neural | Additive | Expressive | Dagpam
Model = Annotated[WithSection | Plain, Field(discriminator="mechanism")]
MECHANISMS = {
    name
    for section in (*get_args(WithSection), Plain)
    for name in get_args(section.model_fields["mechanism"].annotation)
}
