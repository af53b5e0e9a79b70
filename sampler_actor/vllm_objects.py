"""Which of vLLM's objects our code inside its worker touches, and how. Nothing there imports vllm.

Legend: N = rows, H = hidden size, V = vocabulary, W = columns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

# What travels in vLLM's `extra_args`: a job's seed, see `ExactSampler`, and a wish, see `PromptScorer`.
SEED: Final = "loractl_seed"
WISH: Final = "loractl_wish"


class PackedWish(TypedDict):
    """A `ScoreWish` as plain values. last -1: all. targets: int32, little-endian, row by row."""

    last_token: int
    last: int
    topk: int
    targets: bytes
    target_columns: int
    alternatives: int
    temperature: float
    seed: int


class ExtraArguments(TypedDict, total=False):
    loractl_seed: int
    loractl_wish: PackedWish


class Rows(NamedTuple):
    """Fields of vLLM's LogprobsTensors, which it encodes one by one: ids and logprobs are [R, W]."""

    logprob_token_ids: torch.Tensor
    logprobs: torch.Tensor
    selected_token_ranks: torch.Tensor
    cu_num_generated_tokens: None = None
    cu_num_generated_tokens_tensor: None = None


class Weights(Protocol):
    # Of a fused module such as qkv_proj: one entry per part, None for parts without LoRA.
    lora_a: torch.Tensor | list[torch.Tensor | None]


class LoraModel(Protocol):
    def get_lora(self, module_name: str) -> Weights | None: ...


class LoraModules(Protocol):
    modules: Mapping[str, torch.nn.Module]

    def get_adapter(self, adapter_id: int) -> LoraModel | None: ...


class Model(Protocol):
    lora_manager: LoraModules

    def compute_logits(self, hidden_NH: torch.Tensor) -> torch.Tensor: ...


class Sampler(Protocol):
    topk_topp_sampler: torch.nn.Module


class Parameters(Protocol):
    extra_args: ExtraArguments | None


class Request(Protocol):
    prompt_token_ids: Sequence[int]
    num_computed_tokens: int
    sampling_params: Parameters
    # vLLM keeps a prompt's unfinished logprobs here, and drops them with the request.
    in_progress_prompt_logprobs_cpu: object


class Batch(Protocol):
    vocab_size: int
    # By row: whose it is, and how many tokens it has, prompt and answer.
    req_ids: Sequence[str]
    num_tokens_no_spec: Sequence[int]
    req_id_to_index: Mapping[str, int]


class RowStarts(Protocol):
    np: NDArray[np.int32]


class ModelRunner(Protocol):
    model: Model
    sampler: Sampler
    input_batch: Batch
    requests: Mapping[str, Request]
    # By row: the number of its first token in the packed step.
    query_start_loc: RowStarts
    # Whose prompts are being scored; one whose prompt is done must be taken out.
    num_prompt_logprobs: dict[str, int]
    _get_prompt_logprobs_dict: Callable[[torch.Tensor, Mapping[str, int]], Mapping[str, Rows]]
