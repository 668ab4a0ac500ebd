"""What happens to an update's gradients: their norm is measured, and they are clipped."""

import math
from collections.abc import Callable, Iterable

import torch
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from timm.utils.agc import unitwise_norm
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from ..errors import UserError
from .recipe import Recipe


@torch.no_grad()
def agc_(
    parameters: Tensor | Iterable[Tensor], clip: float = 0.01, eps: float = 1e-3, exclude: Iterable[Tensor] = ()
) -> float:
    r"""Adaptive gradient clipping in place. Brock, De, Smith, Simonyan (2021), arXiv:2102.06171, equation 3.

    .. math:: G_i \leftarrow \lambda \frac{\max(|W_i|, \epsilon)}{|G_i|} G_i
              \quad\text{where}\quad |G_i| > \lambda \max(|W_i|, \epsilon)

    A unit i is a row of a weight: all that leads to one output channel. A bias, or a scalar, is one unit. The result is
    that of timm's ``adaptive_clip_grad``. The paper leaves the classifier out:
    ``agc_(model.parameters(), exclude=model.get_classifier().parameters())``.

    Args:
        parameters: Their gradients ``grad`` are clipped; those without one are skipped.
        clip: lambda, the greatest ratio of the two norms.
        eps: Norm that a unit has at least, so that zero weights can learn.
        exclude: Parameters that are left as they are.

    Returns:
        The share of clipped units, 0 to 1.

    Raises:
        UserError: ``clip`` or ``eps`` isn't positive.
    """
    if not (clip > 0 and eps > 0):
        raise UserError(f'agc_(clip={clip}, eps={eps}): both must be positive')
    skipped = {id(parameter) for parameter in exclude}
    clipped = units = 0
    for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
        grad = parameter.grad
        if grad is None or id(parameter) in skipped:
            continue
        limit = unitwise_norm(parameter).clamp_(min=eps).mul_(clip)
        norm = unitwise_norm(grad)
        large = norm > limit
        grad.mul_(torch.where(large, limit / norm, 1))
        clipped, units = clipped + large.sum(), units + large.numel()
    return float(clipped / units) if units else 0.0


class Gradients:
    """Norm and clipping, with sums over the epoch's updates.

    The threshold is ``clip_grad`` of the recipe, constant or, with ``clip_sched: log``, times 1 + ln(1 + epoch).
    Without it, a model with a rule of its own, ``model.clip_grad(epoch)``, is clipped by that, to a norm.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        rule: Callable[[int], float] | None = getattr(model, 'clip_grad', None)
        self.mode = recipe.clip_mode
        self.threshold: Callable[[int], float] | None = None
        if recipe.clip_grad is not None:
            start, rises = recipe.clip_grad, recipe.clip_sched == 'log'
            self.threshold = lambda epoch: start * (1 + math.log1p(epoch)) if rises else start
        elif callable(rule):
            self.threshold, self.mode = rule, 'norm'
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.clipped = list(model_parameters(model, exclude_head=self.mode == 'agc'))
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the norm, of the clipped share

    def clip(self, epoch: int) -> Tensor:
        """Clip the gradients in place by the rule of ``epoch``; returns their norm before that, of all together.

        The clipped share of an update is that of the parameter tensors whose gradient became smaller; with ``norm``,
        which shortens all or none, 1 or 0.
        """
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads))
        norm = torch.linalg.vector_norm(norms)
        share = norm.new_zeros(())
        if self.threshold:
            limit = self.threshold(epoch)
            if self.mode == 'norm':
                clip_grads_with_norm_(self.clipped, limit, norm)
                share = norm > limit
            else:
                dispatch_clip_grad(self.clipped, limit, mode=self.mode)
                share = (torch.stack(torch._foreach_norm(grads)) < norms).double().mean()
        self.sums += torch.stack([norm.double(), share.double()])
        return norm
