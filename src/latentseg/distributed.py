"""Several processes, on one machine or more, that train as one would.

lightning.fabric starts them or finds out who did (torchrun, Slurm), and connects them; it is
imported only where there are several. Each computes its part of the batch of a step, and the
gradients of the parts add up to those of the whole batch.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latentseg.devices import pick_device
from latentseg.errors import InputError, LatentsegError, NotFinishedError

LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
PER_NODE = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
TIMEOUT = timedelta(hours=1)  # the others wait while rank zero writes its reports

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and how many there are, from the connection if there is one, or
    else from torchrun's or Slurm's variables; (0, 1) for a process alone.
    """
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    for rank, world in LAUNCHERS:
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


@dataclass(frozen=True)
class Team:
    """The processes that do one job, seen by one of them. All of them call the same operations.

    In a team of one, operations do nothing and give back what they were given.

    Attributes:
        device: Where this process computes.
        rank: Its number. Rank zero does what must be done once: it writes the files.
        world: How many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The own ones of `n` things: contiguous, at most one more than any other process has.

        Raises:
            InputError: there are more processes than things.
        """
        if n < self.world:
            raise InputError(
                f"`devices`: {self.world} processes for a batch of {n}; expected at most {n}."
            )
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank zero, which alone does it; its error is raised on all ranks."""
        if self.world == 1:
            return work()
        result, failure = None, None
        if self.is_rank_zero:
            try:
                result = work()
            except (LatentsegError, OSError) as error:
                failure = error
        told = [(result, failure)]
        with self._in_contact():
            torch.distributed.broadcast_object_list(told)
        result, failure = told[0]
        if failure is not None:
            raise failure
        return result  # pyright: ignore[reportReturnType]

    def rank_zero_first(self, work: Callable[[], T]) -> T:
        """What `work` gives in each process, one after the other, rank zero first: what it has made
        on disk the others find there.
        """
        if self.world == 1:
            return work()
        results: list[T] = []
        self.on_rank_zero(lambda: results.append(work()))
        for rank in range(1, self.world):
            if rank == self.rank:
                results.append(work())
            self.on_rank_zero(lambda: None)
        return results[0]

    @contextlib.contextmanager
    def rank_zero_context(self, context: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
        """Enters `context` on rank zero, on behalf of all."""
        with contextlib.ExitStack() as stack:
            self.on_rank_zero(lambda: stack.enter_context(context))
            yield

    def sum(self, x: Tensor) -> Tensor:
        """The sum of the x of all processes, the same bits in each; without a gradient."""
        if self.world == 1:
            return x
        total = x.detach().clone(memory_format=torch.contiguous_format)
        with self._in_contact():
            torch.distributed.all_reduce(total)
        return total

    def stacked(self, x: Tensor) -> Tensor:
        """The x of all processes, (world, *shape); differentiable."""
        rows = [x if rank == self.rank else torch.zeros_like(x) for rank in range(self.world)]
        return _Sum.apply(torch.stack(rows), self)

    def whole(self, own: Tensor, n: int) -> Tensor:
        """The batch (n, ...) of which each process has its `part(n)`; without a gradient."""
        if self.world == 1:
            return own
        rows = torch.zeros(n, *own.shape[1:], dtype=own.dtype, device=own.device)
        rows[self.part(n)] = own
        return self.sum(rows)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives every process the sum of the gradients of all, in one message."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = total.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def agreed(self, signal: int | None) -> int | None:
        """The signal to stop at, if any process got one: so all of them stop at the same step."""
        if self.world == 1:
            return signal
        number = torch.tensor(signal or 0)
        with self._in_contact():
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number) or None

    @contextlib.contextmanager
    def _in_contact(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise NotFinishedError(
                f"process {self.rank} of {self.world} lost the others: one of them has ended, and "
                "its own message, if it had time for one, says why. The same command again "
                f"continues from the last checkpoint. ({str(error).splitlines()[0]})"
            ) from error


class _Sum(torch.autograd.Function):
    """The sum over the processes, whose gradient is the sum of what each of them wants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return team.sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.team.sum(gradients[0]), None


def join(device: str = "auto", *, devices: int = 1, nodes: int = 1) -> Team:
    """The team that this process belongs to.

    Started by torchrun or Slurm, the processes are those that it started. Otherwise this process
    starts `devices` - 1 more, each of which is given this program's own command line.

    Args:
        device: As `pick_device` takes it; of several processes each takes another GPU.
        devices: Processes on each machine.
        nodes: Machines.

    Raises:
        InputError: the processes that were started are not those asked for, a device is missing,
            or lightning-fabric is not installed.
    """
    _, world = rank_and_world()
    if devices < 1 or nodes < 1:
        raise InputError(f"`devices` {devices}, `nodes` {nodes}: expected at least 1 of each.")
    if world > 1 and devices * nodes not in (1, world):
        raise InputError(
            f"`devices` {devices}, `nodes` {nodes}: {world} processes were started. Leave both out."
        )
    chosen = pick_device(device)
    if world == devices * nodes == 1:
        return Team(chosen)
    if chosen.type not in BACKENDS:
        raise InputError(
            f"`device`: several processes need {' or '.join(BACKENDS)}, found {chosen.type}."
        )
    if devices * nodes == 1:
        devices = next((int(os.environ[name]) for name in PER_NODE if name in os.environ), world)
        nodes = world // devices
    return _connect(chosen.type, devices, nodes)


@functools.cache
def _connect(kind: str, devices: int, nodes: int) -> Team:
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.lightning import LightningEnvironment
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy
        from lightning_fabric.utilities.exceptions import MisconfigurationException
    except ModuleNotFoundError as error:
        raise InputError(
            f"Several processes need the module {error.name}. Run: pip install lightning-fabric"
        ) from error
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    if "RANK" in os.environ:
        environment = TorchElasticEnvironment()
    elif rank_and_world()[1] > 1:
        environment = SLURMEnvironment(auto_requeue=False)
    else:
        environment = LightningEnvironment()
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=devices,
            num_nodes=nodes,
            strategy=DDPStrategy(process_group_backend=BACKENDS[kind], timeout=TIMEOUT),
            plugins=[environment],
        )
        fabric.launch()
    except (MisconfigurationException, RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{devices} processes on {nodes} machine(s) cannot be connected: {error}"
        ) from error
    if kind == "cuda":
        torch.cuda.set_device(fabric.device)
    return Team(fabric.device, fabric.global_rank, fabric.world_size)


class OwnDraws(TorchFunctionMode):
    """Inside, random tensors of `len(rows)` rows are the `rows` of those drawn for the whole batch.

    So every process uses the numbers that one alone would have used.

    Args:
        rows: The own rows (n,) int64 of the batch.
        batch: Rows of the whole batch.
    """

    def __init__(self, rows: Tensor, batch: int) -> None:
        super().__init__()
        self.rows, self.batch = rows, batch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch in place of each of its functions."""
        kwargs = kwargs or {}
        if func not in (torch.rand, torch.randn, torch.randint):
            return func(*args, **kwargs)
        *limits, size = args if isinstance(args[-1], Sequence) else (args,)
        drawn = func(*limits, (self.batch, *size[1:]), **kwargs)
        return drawn[self.rows.to(drawn.device)]


def normalise_over_all(network: nn.Module, team: Team) -> None:
    """Lets the batch normalisation of `network` use the statistics of all parts of the batch.

    nn.SyncBatchNorm does so on GPUs only.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            forward = functools.partial(_normalise, module, team)
            module.forward = forward  # pyright: ignore[reportAttributeAccessIssue]


def _normalise(norm: nn.modules.batchnorm._BatchNorm, team: Team, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    over = [0, *range(2, x.ndim)]
    variance, mean = torch.var_mean(values, dim=over, correction=0)
    n = torch.full_like(mean, x.numel() / x.shape[1])
    # Each part's deviation from its own mean, then that of the means: no digits are lost.
    counts, means, variances = team.stacked(torch.stack([n, mean, variance])).unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    _update(norm, mean.detach(), (variance * total / (total - 1)).detach())
    shape = [1, -1, *[1] * (x.ndim - 2)]
    y = (values - mean.view(shape)) * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


@torch.no_grad()
def _update(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Moves the running statistics towards those of this batch."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
