"""Which layer comes before each batch normalization, found by running the network once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Results that say something of a tensor's form, and nothing of its values.
_FACTS = (torch.Size, torch.dtype, torch.device, torch.layout, int)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a network's arguments or outputs, also those in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


@dataclass(eq=False)
class _Output:
    """The output of one call of a layer. ``readers``: the norms that took it; ``elsewhere``: something else read it."""

    layer: nn.Module
    readers: list[nn.Module] = field(default_factory=list)
    elsewhere: bool = False


class Trace(TorchFunctionMode):
    """Records which layer's output each norm takes, and whether something else reads it too.

    An output is recognised by the tensor object that carries it. So an operator or a module in between is never
    overlooked, a sum in place included. Reshaped and transposed outputs are followed, with the axis of their channels.

    Args:
        network: The network that runs inside the ``with`` block.
        layers: The layers whose outputs are followed.
        norms: The norms.
    """

    def __init__(self, network: nn.Module, layers: Iterable[nn.Module], norms: Iterable[nn.Module]):
        super().__init__()
        self._network = network
        self._outputs: dict[nn.Module, list[_Output]] = {layer: [] for layer in layers}
        self._inputs: dict[nn.Module, list[_Output | None]] = {norm: [] for norm in norms}
        self._inside = 0
        self._handles = [layer.register_forward_hook(self._made) for layer in self._outputs]
        for module in network.modules():
            if module in self._inputs:
                self._handles.append(module.register_forward_pre_hook(self._enter_norm))
                self._handles.append(module.register_forward_hook(self._leave_norm, always_call=True))
            elif not isinstance(module, nn.Identity) and next(module.children(), None) is None:
                # A dropout returns its input itself in eval mode, without calling any function.
                self._handles.append(module.register_forward_pre_hook(self._taken, with_kwargs=True))

    def _made(self, layer: nn.Module, args: Any, output: Any) -> None:
        made = _Output(layer)
        self._outputs[layer].append(made)
        axis = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
        output._made = made, axis

    def _enter_norm(self, norm: nn.Module, args: Any) -> None:
        made, axis = getattr(args[0], '_made', (None, None)) if args else (None, None)
        if axis != 1:
            self._read(args)
            made = None
        self._inputs[norm].append(made)
        if made is not None:
            made.readers.append(norm)
        self._inside += 1

    def _leave_norm(self, norm: nn.Module, args: Any, output: Any) -> None:
        self._inside -= 1

    def _taken(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._read((args, kwargs))

    def _read(self, values: Any) -> None:
        if not self._inside:
            for tensor in tensors(values):
                if hasattr(tensor, '_made'):
                    tensor._made[0].elsewhere = True

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, _FACTS):
            return result
        axis = _axis_after(func, args, result)
        if axis is None:
            only_shape = getattr(func, '__name__', '').endswith('_as')  # reshape_as(x) and its like
            self._read((args[:1] if only_shape else args, kwargs or {}))
        else:
            result._made = args[0]._made[0], axis
        return result

    def finish(self, results: Any) -> None:
        """Take the hooks away. ``results``: what the network returned."""
        self._read(results)
        for handle in self._handles:
            handle.remove()

    def producer(self, norm: nn.Module) -> nn.Module | None:
        """The layer whose outputs ``norm`` takes, all of them and no others, if nothing else reads them; or None."""
        taken = self._inputs[norm]
        layer = taken[0].layer if taken and taken[0] is not None else None
        if layer is None or any(made is None or made.layer is not layer for made in taken):
            return None
        alone = all(not made.elsewhere and made.readers == [norm] for made in self._outputs[layer])
        return layer if alone else None

    def neighbour(self, norm: nn.Module) -> nn.Module | None:
        """For a norm that was not called: the layer before it by the structure of the network, or None.

        It is the layer before the norm in a ``Sequential``. In another class it is the layer that came before the norm
        of the same name in a module of the same class that was called.
        """
        if self._inputs[norm]:
            return None
        found = None
        for parent in self._network.modules():
            names = {child: name for name, child in parent.named_children()}
            if norm not in names:
                continue
            if found is not None:
                return None  # it stands in two places
            if type(parent) is nn.Sequential:
                children = list(names)
                found = children[max(children.index(norm) - 1, 0)]
            else:
                layers = self._pairs().get((type(parent), names[norm]), set())
                found = parent.get_submodule(*layers) if len(layers) == 1 else None
        return found if found is not None and self._outputs.get(found) == [] else None

    def _pairs(self) -> dict[tuple[type[nn.Module], str], set[str]]:
        """(class, a norm's name) -> the names of the layers before it, '' for none, in all modules of that class."""
        pairs: dict[tuple[type[nn.Module], str], set[str]] = {}
        for parent in self._network.modules():
            names: dict[nn.Module | None, str] = {child: name for name, child in parent.named_children()}
            for child, name in names.items():
                if child is not None and self._inputs.get(child):
                    pairs.setdefault((type(parent), name), set()).add(names.get(self.producer(child), ''))
        return pairs


def _axis_after(func: Callable[..., Any], args: Any, result: Any) -> int | None:
    """Axis of the channels in ``result`` if ``func`` only gave a layer's output another shape; else None."""
    name = getattr(func, '__name__', '')
    x = args[0] if args else None
    if name not in ('flatten', 'reshape', 'view', 'transpose') or not hasattr(x, '_made'):
        return None
    assert isinstance(x, Tensor) and isinstance(result, Tensor)
    axis: int = x._made[1]  # type: ignore[attr-defined]
    if name == 'transpose':
        if len(args) != 3:
            return None
        first, second = (dim % x.dim() for dim in args[1:])
        return {first: second, second: first}.get(axis, axis)
    if axis == x.dim() - 1 and result.shape[-1] == x.shape[-1]:
        return result.dim() - 1
    return axis if result.shape[: axis + 1] == x.shape[: axis + 1] else None
