"""What runs inside vLLM's own process, beside its worker, and is called by name from `vllm_engine`.

vLLM mixes `WorkerExtension` into its worker class (`worker_extension_cls`). Nothing here imports
vllm: the Protocols say which of its objects are touched, and how.

Legend: N = rows of the batch, V = vocabulary.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Protocol

import torch

_PARENT_CHECK_S = 0.5


class _Weights(Protocol):
    # Of a fused module such as qkv_proj: one entry per part, None for parts without LoRA.
    lora_a: torch.Tensor | list[torch.Tensor | None]


class _LoraModel(Protocol):
    def get_lora(self, module_name: str) -> _Weights | None: ...


class _LoraModules(Protocol):
    modules: Mapping[str, torch.nn.Module]

    def get_adapter(self, adapter_id: int) -> _LoraModel | None: ...


class _Model(Protocol):
    lora_manager: _LoraModules


class _Sampler(Protocol):
    topk_topp_sampler: torch.nn.Module


class _ModelRunner(Protocol):
    model: _Model
    sampler: _Sampler


class WorkerExtension:
    model_runner: _ModelRunner

    def count_bound_modules(self, lora_number: int) -> int:
        """How many linear modules of the base this LoRA changes: q, k and v count as three.

        Counted over the modules of the model, not over the file: a tensor whose name fits no module
        does not count.
        """
        manager = self.model_runner.model.lora_manager
        lora = manager.get_adapter(lora_number)
        if lora is None:
            return 0
        bound = (lora.get_lora(name) for name in manager.modules)
        return sum(_parts(weights) for weights in bound if weights is not None)

    def keep_unfiltered_logprobs(self) -> None:
        """Let processed logprobs mean log_softmax(logits / T), with or without top_k and top_p."""
        sampler = self.model_runner.sampler
        sampler.topk_topp_sampler = UnfilteredLogprobs(sampler.topk_topp_sampler)

    def end_with_parent(self) -> None:
        """Kill this process soon after its parent is gone: vLLM's own would live on for ever."""
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


class UnfilteredLogprobs(torch.nn.Module):
    """vLLM's sampler of temperature-scaled logits, except that logprobs are taken before its filters.

    As it comes, its processed logprobs are those of the distribution that top_k and top_p leave.
    """

    def __init__(self, sampler: torch.nn.Module) -> None:
        super().__init__()
        self._sampler = sampler

    def forward(
        self,
        logits_NV: torch.Tensor,
        generators: dict[int, torch.Generator],
        k_N: torch.Tensor | None,
        p_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if k_N is None and p_N is None:
            sampled: tuple[torch.Tensor, torch.Tensor | None] = self._sampler(
                logits_NV, generators, None, None
            )
            return sampled
        # Before the call, because filtering overwrites the logits.
        logprobs_NV = logits_NV.log_softmax(dim=-1, dtype=torch.float32)
        tokens_N, _ = self._sampler(logits_NV, generators, k_N, p_N)
        return tokens_N, logprobs_NV


def _parts(weights: _Weights) -> int:
    if isinstance(weights.lora_a, torch.Tensor):
        return 1
    return sum(part is not None for part in weights.lora_a)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os.kill(os.getpid(), signal.SIGKILL)
