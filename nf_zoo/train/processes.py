"""The processes of one run: torchrun starts them, gloo (CPU) or nccl (GPU) connects them."""

import atexit
import os
import warnings
from types import TracebackType

import torch
from torch import distributed, nn

from ..errors import CheckFailed, UserError


class Processes:
    """The processes of the run, as this one sees them: it is ``rank`` of ``size``. One process needs no torchrun.

    While entered, an error of the connection becomes a `CheckFailed`: another process has ended.
    """

    def __init__(self, device: str = 'cpu') -> None:
        self.rank, self.size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
        self.local_rank = int(os.environ.get('LOCAL_RANK', 0))
        self.first = self.rank == 0
        self.gpu = device.startswith('cuda') or (device == 'auto' and torch.cuda.is_available())

    def __enter__(self) -> 'Processes':
        # The group is made once, because a second one would find the first one's addresses in torchrun's store:
        # https://github.com/pytorch/pytorch/issues/55967
        if self.size > 1 and not distributed.is_initialized():
            # On GPU machines too, numbers on the CPU go through gloo: asking whether to stop then waits for no kernel.
            distributed.init_process_group('cpu:gloo,cuda:nccl' if self.gpu else 'gloo')
            atexit.register(distributed.destroy_process_group)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, RuntimeError) and self.size > 1 and _of_the_connection(error):
            raise CheckFailed(
                f'process {self.rank} of {self.size}: another process of this run has ended, so this one ends too; '
                f'repeat the command with --resume to continue from the last checkpoint'
            ) from None

    def device(self, name: str) -> str:
        """``name``, or this process's own GPU of it."""
        return f'cuda:{self.local_rank}' if self.size > 1 and self.gpu and ':' not in name else name

    def sum(self, *numbers: float) -> list[float]:
        """Each of the ``numbers``, summed over all processes."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.tolist()

    def gather(self, *numbers: float) -> list[list[float]]:
        """The ``numbers`` of every process, by rank."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(found, mine)
        return [row.tolist() for row in found]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return flag if self.size == 1 else self.sum(float(flag))[0] > 0

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.any(False)

    def averaged(self, model: nn.Module, device: torch.device) -> nn.Module:
        """``model`` with its gradients averaged over the processes, from the same weights in all of them."""
        if self.size == 1:
            return model
        # Only the strides of 1x1 convolutions differ, and for these channels_last and contiguous are the same memory.
        warnings.filterwarnings('ignore', 'Grad strides do not match bucket view strides')
        ids = [device.index] if device.type == 'cuda' else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def share_out(images: int, batch: int, processes: int, even: bool) -> tuple[int, int]:
    """Share the ``images`` of an update equally: the batch size in each process, and the batches for an update.

    A batch has at most ``batch`` images, and an ``even`` number if so asked. Raises `UserError` if there is no way.
    """
    share, rest = divmod(images, processes)
    sizes = [n for n in range(min(batch, share), 0, -1) if share % n == 0 and not (even and n % 2)]
    if rest or not sizes:
        fitting = ', '.join(str(n) for n in range(1, min(images, 64) + 1) if images % n == 0)
        raise UserError(
            f'an update of this run takes {images} images, which {processes} processes cannot share; use {fitting}'
        )
    return sizes[0], share // sizes[0]


def _of_the_connection(error: RuntimeError) -> bool:
    known = ('gloo', 'nccl', 'connection closed by peer', 'connection reset by peer', 'tcpstore')
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in known)
