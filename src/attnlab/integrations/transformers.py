"""Neural Attention in chosen layers of a Hugging Face transformers model.

    class NeuralGPT2(NeuralAttentionMixin, GPT2LMHeadModel):
        pass

    model = NeuralGPT2(GPT2Config(attn_pdrop=0.0, neural_attention={"neural_layers": [0]}))

The entry `neural_attention` of the configuration has the keys of configs/model/neural_d2.yaml but
for name and mechanism; what it does not give is as in `NeuralAttention`. The score networks are
modules of the model, `<attention of the layer>.neural_attention`, so that optimizers, checkpoints,
save_pretrained and from_pretrained have them. All other layers have transformers' own attention by
torch's fused kernels.

Importing this module registers the attention "neural_attention" and its masks in transformers.

Shapes: B batch, H heads, N queries, M keys, D head width.
"""

import inspect
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import guard_torch_init_functions
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    prepare_padding_mask,
    sdpa_mask,
)

from attnlab.config.mechanisms import Neural
from attnlab.config.messages import checked
from attnlab.errors import BadInput
from attnlab.functional import visible_keys
from attnlab.models.attention.base import HeadLinear
from attnlab.models.attention.neural import NeuralAttention

NAME = "neural_attention"  # of the attention, of the configuration's entry, and of the modules
# What some models do to dot-product scores. Scores of Neural Attention are not those.
REFUSED = ("softcap", "position_bias", "s_aux", "score_mod")


class NeuralAttentionMixin:
    """Put it before a model class of transformers: a decoder or encoder with self-attention.

    Errors: `TypeError` if it stands behind; `BadInput` if `config.neural_attention` is missing or
    wrong, or if the model or another attn_implementation has no place for it; in training also
    if the configuration asks for dropout of attention weights.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if PreTrainedModel in order[: order.index(NeuralAttentionMixin)]:  # ours would not be run
            raise TypeError(
                f"{cls.__name__}: NeuralAttentionMixin must stand before the model class"
            )

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        if not self._supports_attention_backend:
            raise _no_interface(self)
        chosen = config._attn_implementation
        if chosen not in (None, NAME):
            raise _other_implementation(chosen)
        config._attn_implementation = NAME
        super().__init__(config, *args, **kwargs)
        if self.loss_type is None:  # transformers finds it in a class's name; here a base has it
            names = " ".join(base.__name__ for base in type(self).__mro__)
            found = re.search("|".join(LOSS_MAPPING), names)
            self.loss_type = found and found.group()
        section, options = _section(config)
        layers = _attention_modules(self)
        applies = section.applies(len(layers))
        if not applies or max(applies) >= len(layers) or len(set(applies)) < len(applies):
            raise BadInput(
                f"{NAME}.neural_layers={options['neural_layers']}: must be all, inner, or a list "
                f"of different layers from 0 to {len(layers) - 1}"
            )
        for layer in applies:
            module = layers[layer]
            heads = module.config.num_attention_heads
            width = getattr(module, "head_dim", None) or module.config.hidden_size // heads
            module.neural_attention = NeuralAttention(heads, width, **section.arguments(None))
            module.register_forward_pre_hook(_check_implementation)

    def initialize_weights(self) -> None:
        """As transformers does, and then the score networks whose values were not loaded."""
        new = [
            module
            for module in self.modules()
            if isinstance(module, HeadLinear) and not getattr(module, "_is_hf_initialized", False)
        ]
        super().initialize_weights()
        with guard_torch_init_functions():  # leaves loaded values alone
            for module in new:
                module.reset_parameters()


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: Neural Attention where `module` has it, and else
    the dot product.

    query (B, H, N, D), key and value (B, H or fewer, M, D); attention_mask: as `masks` gives it,
    or one of the user's, (B, 1, N, M). Returns (B, N, H, D). Errors: `ValueError` if a
    mask is not boolean, `BadInput` for what Neural Attention cannot serve.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and getattr(module.config, "is_causal", True)
    mask = attention_mask
    if mask is not None:
        causal = mask.dim() == 2
        mask = mask[:, None, None] if causal else mask
    mechanism = getattr(module, NAME, None)
    if mechanism is None:
        n, m = query.shape[2], key.shape[2]
        if causal and (mask is not None or 1 < n < m):
            mask = visible_keys(query, key, causal, mask).view(-1, 1, n, m)
        return sdpa_attention_forward(
            module, query, key, value, mask, dropout, scaling, is_causal=causal, **more
        )
    if dropout:
        raise BadInput(
            f"dropout of attention weights {dropout}: Neural Attention has none; set attn_pdrop, "
            "attention_dropout or attention_probs_dropout_prob of the configuration to 0"
        )
    for name in REFUSED:
        if more.get(name) is not None:
            raise BadInput(f"{name}: Neural Attention has no place for it in its scores")
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    out = mechanism(query, key, value, causal=causal, mask=mask)
    return out.transpose(1, 2).contiguous(), None


def masks(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function=causal_mask_function,
    attention_mask: Tensor | None = None,
    **more: Any,
) -> Tensor | None:
    """The mask for `attention`, boolean, True where a key may be seen.

    q_length N, kv_length M; q_offset, kv_offset: position of the first query and key;
    attention_mask (B, tokens): not 0 where there is no padding, or None.

    None if no key is padding and nothing but the layer's own causality hides one; (B, M) for
    padded keys under a causal mask, (B, 1, 1, M) without one: fused kernels serve both. Any other
    pattern, such as a sliding window, is (B, 1, N, M).
    """
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        padding = padding[:, kv_offset : kv_offset + kv_length]
        if not torch.compiler.is_compiling() and padding.all():
            padding = None
    if mask_function is bidirectional_mask_function:
        return None if padding is None else padding[:, None, None]
    if (
        mask_function is causal_mask_function
        and isinstance(q_offset, int)
        and q_offset + q_length == kv_offset + kv_length  # the last query sees the last key
    ):
        return padding
    more.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **more
    )


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, masks)


def _section(config: PreTrainedConfig) -> tuple[Neural, dict[str, Any]]:
    """The checked entry of the configuration, and all its values."""
    given = getattr(config, NAME, None)
    if not isinstance(given, dict) or "neural_layers" not in given:
        raise BadInput(
            f"{NAME}={given}: the configuration must say where Neural Attention is and how, as in "
            f'{NAME}={{"neural_layers": [0], "d_prime": 2}}'
        )
    parameters = inspect.signature(NeuralAttention).parameters.values()
    values = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | given
    return checked(Neural, {"name": NAME, "mechanism": "neural", **values}, NAME), values


def _attention_modules(model: nn.Module) -> list[nn.Module]:
    """Those of the layers, in order. Errors: `BadInput` for cross-attention, or if there are
    none that go by the attention interface.
    """
    config = model.config
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise BadInput(f"{type(model).__name__}: Neural Attention serves self-attention alone")
    layers = [m for m in model.modules() if hasattr(m, "is_causal") and hasattr(m, "config")]
    if not layers:
        raise _no_interface(model)
    return layers


def _no_interface(model: nn.Module) -> BadInput:
    return BadInput(
        f"{type(model).__name__}: has no attention that goes by transformers' AttentionInterface"
    )


def _check_implementation(module: nn.Module, args: Any) -> None:
    if module.config._attn_implementation != NAME:
        raise _other_implementation(module.config._attn_implementation)


def _other_implementation(chosen: str) -> BadInput:
    return BadInput(
        f"attn_implementation={chosen}: must be {NAME}, or the score networks would not be used; "
        "leave it out"
    )
