"""The processes that compute one pass over one model together, each with its shard, and what they tell each
other.

Whoever starts several initialises torch.distributed first; else this process is a group of its own, and nothing
here does anything. Written for gloo and nccl alike; nccl never ran.
"""

from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from .shard import Shard


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Every call is collective: all ranks make the same ones in the same order, with tensors of one shape."""

    shard: Shard
    group: dist.ProcessGroup

    @property
    def several(self) -> bool:
        return self.shard.count > 1

    def sum(self, part: Tensor) -> None:
        """Replace it by the sum over all ranks, the same bits on each."""
        if self.several:
            dist.all_reduce(part, group=self.group)

    def sum_on_first(self, part: Tensor) -> None:
        """On other ranks it holds anything afterwards."""
        if self.several:
            dist.reduce(part, group=self.group, group_dst=0)

    def tell(self, tensor: Tensor) -> None:
        """Replace it by the first rank's."""
        if self.several:
            dist.broadcast(tensor, group=self.group, group_src=0)


def tensor_group(size: int = 1) -> TensorGroup:
    """The one that this process is in. Where megatron-core knows of none yet it is made, of `size` neighbouring
    ranks; where torch.distributed has none either, of this process, with no port and nobody to wait for."""
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in __all__
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=size)
    shard = Shard(
        parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    )
    return TensorGroup(shard, parallel_state.get_tensor_model_parallel_group())
