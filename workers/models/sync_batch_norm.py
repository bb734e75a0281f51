"""Batch norm over the global batch of several processes, on CPU. torch's own SyncBatchNorm runs on GPUs only.

Forward gathers count, mean and squared deviations of every process (float64, one collective) and joins them; backward
adds up the two sums that the exact gradient needs (one all-reduce). Local batches may differ in size, or be empty.
Every process must call forward and backward equally often. Gradients of weight and bias are local: DDP averages them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SyncBatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d whose training statistics are those of the batches of all processes of `group`, put together.

    Input [n, num_features]. In evaluation, or with one process, it is nn.BatchNorm1d to the last bit.
    """

    group: dist.ProcessGroup | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[n, num_features] -> the same. Raises ValueError for a global batch of one sample, as nn.BatchNorm1d."""
        if not self.training or not dist.is_initialized() or dist.get_world_size(self.group) == 1:
            return super().forward(input)
        count, mean, variance = _global_statistics(input.detach(), self.group)
        self._track(count, mean, variance)
        inverse_std = (variance + self.eps).rsqrt()
        normalized: Tensor = _Normalize.apply(  # type: ignore[no-untyped-call]
            input, mean.to(input), inverse_std.to(input), (count, self.group)
        )
        return normalized if self.weight is None else torch.addcmul(self.bias, normalized, self.weight)

    def _track(self, count: float, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), momentum)


def convert_batch_norm(module: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """`module` with each nn.BatchNorm1d inside replaced by a SyncBatchNorm that shares its parameters and buffers."""
    if isinstance(module, nn.BatchNorm1d):
        synced = SyncBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        synced.__dict__.update(module.__dict__)  # the same tensors, mode and hooks
        synced.group = group
        return synced
    for name, child in module.named_children():
        setattr(module, name, convert_batch_norm(child, group))
    return module


def _global_statistics(input: Tensor, group: dist.ProcessGroup | None) -> tuple[float, Tensor, Tensor]:
    """Count, and mean and biased variance, float64 [num_features], over all processes."""
    size, width = input.shape
    own = torch.zeros(1 + 2 * width, dtype=torch.float64)  # count, mean, sum of squared deviations from that mean
    if size:
        variance, mean = torch.var_mean(input, 0, correction=0)
        own[0], own[1 : width + 1], own[width + 1 :] = size, mean, variance * size
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    parts = torch.stack(everyone)
    counts, means, squares = parts[:, :1], parts[:, 1 : width + 1], parts[:, width + 1 :]
    count = float(counts.sum())
    if count < 2:
        raise ValueError(f"batch norm needs more than one sample in training; the global batch has {count:.0f}")
    mean = (counts * means).sum(0) / count
    # Around the global mean (Chan, Golub and LeVeque 1983): unlike E[x^2] - E[x]^2 this does not cancel.
    return count, mean, (squares + counts * (means - mean).square()).sum(0) / count


class _Normalize(torch.autograd.Function):
    """(x - mean) * inverse_std, where mean and inverse_std depend on the x of all processes."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, mean: Tensor, inverse_std: Tensor, over: tuple[float, Any]) -> Tensor:
        normalized = (input - mean).mul_(inverse_std)
        ctx.save_for_backward(normalized, inverse_std)
        ctx.count, ctx.group = over
        return normalized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Ioffe and Szegedy 2015, section 3: dx = (g - mean(g) - xhat * mean(g * xhat)) / std, means over all processes.
        normalized, inverse_std = ctx.saved_tensors
        sums = torch.stack((gradient.sum(0, dtype=torch.float64), (gradient * normalized).sum(0, dtype=torch.float64)))
        dist.all_reduce(sums, group=ctx.group)
        mean, projection = (sums / ctx.count).to(gradient.dtype)
        return (gradient - mean).sub_(normalized * projection).mul_(inverse_std), None, None, None
