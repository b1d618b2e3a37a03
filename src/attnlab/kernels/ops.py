"""The fused backends as one torch operator with a backward of its own, so that autograd, autocast
and torch.compile work around it.

Every backend is a module with `forward`, `backward` and `unsupported`, on these tensors:
a (B, H, N, h), c (B, H, M, h): what queries and keys add to the first hidden layer;
mid_weight (H, h2, h), mid_bias (H, h2): the second hidden layer, or None; out_weight (H, h or h2):
the output, with the scale of the scores in it; v (B, H, M, D). Outputs: out (B, H, N, D), and lse
(B, H, N), the logarithm of the softmax's sum.
"""

import torch
from torch import Tensor
from torch import library as torch_library
from torch.utils.flop_counter import register_flop_formula

from attnlab.kernels import chunked, cpp_backend, triton_backend
from attnlab.kernels.validation import check_gradient, check_operands

BACKENDS = {"chunked": chunked, "cpp": cpp_backend, "triton": triton_backend}

MaybeTensor = Tensor | None


@torch_library.custom_op("attnlab::neural_attention", mutates_args=())
def fused_attention(
    a: Tensor,
    c: Tensor,
    mid_weight: MaybeTensor,
    mid_bias: MaybeTensor,
    out_weight: Tensor,
    v: Tensor,
    activation: str,
    causal: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """out and lse; out is differentiable once. Shapes are in the module's text.

    Errors: `ValueError` if a tensor does not fit the others.
    """
    check_operands(a, c, mid_weight, mid_bias, out_weight, v, causal)
    return BACKENDS[backend].forward(a, c, mid_weight, mid_bias, out_weight, v, activation, causal)


@fused_attention.register_fake
def _(a, c, mid_weight, mid_bias, out_weight, v, activation, causal, backend):
    check_operands(a, c, mid_weight, mid_bias, out_weight, v, causal)
    return v.new_empty(*a.shape[:3], v.shape[3]), a.new_empty(a.shape[:3])


@torch_library.custom_op("attnlab::neural_attention_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    a: Tensor,
    c: Tensor,
    mid_weight: MaybeTensor,
    mid_bias: MaybeTensor,
    out_weight: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    activation: str,
    causal: bool,
    backend: str,
) -> list[Tensor]:
    """Gradients of a, c, mid_weight, mid_bias, out_weight, v; those of absent tensors are left
    out. Errors: as `fused_attention`.
    """
    check_operands(a, c, mid_weight, mid_bias, out_weight, v, causal)
    check_gradient(grad_out, a, v, out, lse)
    grads = BACKENDS[backend].backward(
        grad_out, a, c, mid_weight, mid_bias, out_weight, v, out, lse, activation, causal
    )
    return [grad for grad in grads if grad is not None]


@_backward.register_fake
def _(grad_out, a, c, mid_weight, mid_bias, out_weight, v, out, lse, activation, causal, backend):
    inputs = (a, c, mid_weight, mid_bias, out_weight, v)
    check_operands(*inputs, causal)
    check_gradient(grad_out, a, v, out, lse)
    return [x.new_empty(x.shape) for x in inputs if x is not None]


def _setup(ctx, inputs, output):
    *tensors, ctx.activation, ctx.causal, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx, grad_out, grad_lse):
    *inputs, out, lse = ctx.saved_tensors
    found = iter(_backward(grad_out, *inputs, out, lse, ctx.activation, ctx.causal, ctx.backend))
    return *(None if x is None else next(found) for x in inputs), None, None, None


def _refuse(ctx, *grads):
    raise RuntimeError(
        "fused Neural Attention has no second derivative; use backend=eager (model.backend=eager)"
    )


fused_attention.register_autograd(_gradients, setup_context=_setup)
_backward.register_autograd(_refuse)


@register_flop_formula(torch.ops.attnlab.neural_attention)
def _forward_flops(a, c, mid_weight, mid_bias, out_weight, v, *rest, **more) -> int:
    """Two for each multiply-add of the eager reference's products over pairs, from shapes: hidden
    layers, output and values; like torch's own formula for the dot product without regard to the
    causal mask.
    """
    (batch, heads, n, h), m = a, c[2]
    per_pair = out_weight[1] + v[3] + (0 if mid_weight is None else h * mid_weight[1])
    return 2 * batch * heads * n * m * per_pair


@register_flop_formula(torch.ops.attnlab.neural_attention_backward)
def _backward_flops(grad_out, *inputs, **more) -> int:
    """Two products for each one of the forward; what is computed again does not count."""
    return 2 * _forward_flops(*inputs)
