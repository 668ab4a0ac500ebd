"""A convolution of a function of its input, in the memory of a convolution of the input itself.

Autograd would save what the function computes. Here the input is saved, which the layer before keeps anyway, and
backward computes the function again. torch.compile is told to do so by PyTorch's checkpointing. Left to itself it keeps
what the function computes and, beside a ReLU, its signs, which Inductor is slow to write on a CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

Before = Callable[[Tensor, Tensor | None], Tensor]  # of features and of a parameter, or None
Conv = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parameter: Tensor | None,
        before: Before,
        conv: Conv,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, parameter)
        ctx.args = before, conv
        return F.conv2d(before(x, parameter), weight, bias, *conv)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, parameter = ctx.saved_tensors
        before, (stride, padding, dilation, groups) = ctx.args
        need_x, need_weight, need_bias, need_parameter, *_ = ctx.needs_input_grad
        again = torch.is_grad_enabled()  # the caller will differentiate the gradients: keep their graph
        with torch.enable_grad():
            if not again:
                x = x.detach().requires_grad_()
                parameter = None if parameter is None else parameter.detach().requires_grad_()
            y = before(x, parameter)
        # Under autocast the gradient has the convolution's dtype. Autograd casts the results to the inputs' dtypes.
        needed = [need_x or need_parameter, need_weight, need_bias]
        options = (stride, padding, dilation, False, [0, 0], groups, needed)
        inputs = y.to(grad.dtype), weight.to(grad.dtype)
        grad_y, grad_weight, grad_bias = torch.ops.aten.convolution_backward(grad, *inputs, [len(weight)], *options)
        grad_x = grad_parameter = None
        wanted = [tensor for tensor, need in ((x, need_x), (parameter, need_parameter)) if need]
        if wanted:
            found = list(torch.autograd.grad(y, wanted, grad_y.to(y.dtype), create_graph=again))
            grad_x = found.pop(0) if need_x else None
            grad_parameter = found.pop() if need_parameter else None
        return grad_x, grad_weight, grad_bias, grad_parameter, None, None


def is_transformed() -> bool:
    """Whether a transform of torch.func is active."""
    return torch._C._are_functorch_transforms_active()  # no public function says it


def is_watched(*tensors: Tensor | None) -> bool:
    """Whether a tracer, a compiler, torch.func or forward-mode differentiation must see plain operators."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return True
    if is_transformed():
        return True
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _is_compiled_with_gradients() -> bool:
    """Neither torch.export nor a transform of torch.func takes checkpointing.

    The flag is read, as `torch.compiler.is_exporting()` was always true in what torch.compile traces, up to PyTorch
    2.11 at least: https://github.com/pytorch/pytorch/issues/176347
    """
    if not torch.is_grad_enabled() or not torch.compiler.is_compiling():
        return False
    return not torch.compiler._is_exporting_flag and not is_transformed()


def recomputed_conv(
    before: Before, x: Tensor, parameter: Tensor | None, weight: Tensor, bias: Tensor | None, conv: Conv
) -> Tensor:
    """conv2d(before(x, parameter), weight, bias, *conv), with the memory of the convolution alone.

    Args:
        before: The function of the features and of a parameter. It is differentiable and has no state.
        x: Features (N, C, H, W).
        parameter: The parameter, or None.
        weight, bias, conv: The convolution, and its stride, padding, dilation and groups.
    """
    if torch.is_grad_enabled() and not is_watched(x, weight, bias, parameter):
        return _Recomputed.apply(x, weight, bias, parameter, before, conv)
    if _is_compiled_with_gradients():
        y = checkpoint(before, x, parameter, use_reentrant=False, preserve_rng_state=False)
    else:
        y = before(x, parameter)
    return F.conv2d(y, weight, bias, *conv)
