"""What runs inside vLLM's own process, beside its worker, and is called by name from `vllm_engine`.

vLLM mixes `WorkerExtension` into its worker class (`worker_extension_cls`).

Legend: N = rows of the batch, V = vocabulary.
"""

import hashlib
import os
import signal
import threading
import time
from typing import Final

import torch

from .vllm_objects import SEED, ModelRunner, Weights
from .vllm_scoring import PromptScorer

_PARENT_CHECK_S: Final = 0.5


class WorkerExtension:
    model_runner: ModelRunner

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

    def sample_exactly(self) -> None:
        """Have tokens drawn by `ExactSampler` from now on."""
        sampler = self.model_runner.sampler
        sampler.topk_topp_sampler = ExactSampler(sampler.topk_topp_sampler, self.model_runner)

    def score_exactly(self) -> None:
        """Have prompts scored by `PromptScorer` from now on."""
        self.model_runner._get_prompt_logprobs_dict = PromptScorer(self.model_runner)  # noqa: SLF001  # no public place

    def end_with_parent(self) -> None:
        """Kill this process soon after its parent is gone: vLLM's own would live on for ever."""
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


class ExactSampler(torch.nn.Module):
    """vLLM's sampler of temperature-scaled logits, with two differences.

    The draw for a token depends on the job's seed and the token's position, and on nothing else. With
    vLLM's own seeds a generator's state counts: it has to be wound back when a prompt is computed in
    parts, which a CPU generator cannot do, and the engine dies ("does not use offset").

    Logprobs are taken before top_k and top_p; vLLM's are those of the distribution that is left.
    """

    def __init__(self, sampler: torch.nn.Module, runner: ModelRunner) -> None:
        super().__init__()
        self._sampler = sampler
        self._runner = runner

    def forward(
        self,
        logits_NV: torch.Tensor,
        _generators: dict[int, torch.Generator],
        k_N: torch.Tensor | None,
        p_N: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        filtered = k_N is not None or p_N is not None
        # Before the call, because filtering overwrites the logits.
        whole_NV = logits_NV.log_softmax(dim=-1, dtype=torch.float32) if filtered else None
        generators = self._generators(logits_NV.device)
        tokens_N, logprobs_NV = self._sampler(logits_NV, generators, k_N, p_N)
        return tokens_N, whole_NV if filtered else logprobs_NV

    def _generators(self, device: torch.device) -> dict[int, torch.Generator]:
        """One for each row that has a seed; fresh ones, so there is no state to keep."""
        batch = self._runner.input_batch
        generators = {}
        for row, request in enumerate(batch.req_ids):
            extra = self._runner.requests[request].sampling_params.extra_args
            if extra is not None and SEED in extra:
                drawn = draw_seed(extra[SEED], int(batch.num_tokens_no_spec[row]))
                generators[row] = torch.Generator(device=device).manual_seed(drawn)
        return generators


def draw_seed(seed: int, position: int) -> int:
    """63 bits that neighbouring seeds and positions do not share."""
    digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _parts(weights: Weights) -> int:
    if isinstance(weights.lora_a, torch.Tensor):
        return 1
    return sum(part is not None for part in weights.lora_a)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os.kill(os.getpid(), signal.SIGKILL)
