"""Scores prompts inside vLLM's worker, in the place of vLLM's own computation of prompt logprobs.

vLLM's knows top-k only, computes the logits of a whole step at once (gigabytes for a large vocabulary)
and always the whole prompt. Here: what `engine.ScoreWish` names, in parts, and only the rows in which
something is wanted, so that the tokens before them may come from the prefix cache.

A prompt comes without its last token, from which nothing is predicted; it is in the wish. So a prompt
that fills the context still leaves room for the one token that vLLM must sample for every request.

The answer travels as vLLM's prompt logprobs: ids and logprobs by row, columns as in `scoring`.

Legend: N = rows computed at once, R = rows (prompt tokens that were sent), T = packed tokens,
H = hidden size, V = vocabulary, W = columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from .engine import ScoreWish
from .scoring import empty_rows, first_row
from .scoring_columns import columns
from .vllm_objects import WISH, ModelRunner, PackedWish, Request, Rows

_LOGITS_BYTES: Final = 128 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """prompt: all of it, the last token too. rows: filled as far as the prompt has been computed."""

    wish: ScoreWish
    prompt: tuple[int, ...]
    rows: Rows


class PromptScorer:
    """Called by the model runner after every step."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def __call__(self, hidden_TH: Tensor, scheduled: Mapping[str, int]) -> dict[str, Rows]:
        """Returns the rows of the prompts that have now been computed to their ends."""
        runner, finished = self._runner, {}
        for name in list(runner.num_prompt_logprobs):
            # One that was preempted comes again later.
            if count := scheduled.get(name):
                request = runner.requests[name]
                progress = _progress(request)
                first = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[name]])
                self._fill(progress, request.num_computed_tokens, hidden_TH[first : first + count])
                if request.num_computed_tokens + count >= len(request.prompt_token_ids):
                    finished[name] = progress.rows
                    request.in_progress_prompt_logprobs_cpu = None
                    del runner.num_prompt_logprobs[name]
        return finished

    def _fill(self, progress: _Progress, start: int, hidden_CH: Tensor) -> None:
        """hidden_CH: of positions from `start` on."""
        end = min(start + len(hidden_CH), len(progress.prompt) - 1)
        begin = max(start, first_row(progress.wish, len(progress.prompt) - 1))
        size = max(1, _LOGITS_BYTES // (4 * self._runner.input_batch.vocab_size))
        for row in range(begin, end, size):
            after = min(row + size, end)
            logits_NV = self._runner.model.compute_logits(hidden_CH[row - start : after - start])
            following = progress.prompt[row + 1 : after + 1]
            ids_NW, logprobs_NW = columns(logits_NV, following, progress.wish, row)
            progress.rows.logprob_token_ids[row:after] = ids_NW.to("cpu", torch.int32)
            progress.rows.logprobs[row:after] = logprobs_NW.cpu()


def packed(wish: ScoreWish, last_token: int) -> PackedWish:
    return PackedWish(
        last_token=last_token,
        last=-1 if wish.last is None else wish.last,
        topk=wish.topk,
        targets=wish.targets.astype("<i4").tobytes(),
        target_columns=wish.targets.shape[1],
        alternatives=wish.alternatives,
        temperature=wish.temperature,
        seed=wish.seed,
    )


def _unpacked(wish: PackedWish) -> ScoreWish:
    targets = np.frombuffer(wish["targets"], "<i4").astype(np.int64)
    rows = len(targets) // wish["target_columns"] if targets.size else 0
    return ScoreWish(
        last=None if wish["last"] < 0 else wish["last"],
        topk=wish["topk"],
        targets=targets.reshape(rows, wish["target_columns"]),
        alternatives=wish["alternatives"],
        temperature=wish["temperature"],
        seed=wish["seed"],
    )


def _progress(request: Request) -> _Progress:
    """As far as the prompt has come; begun when it is first run."""
    if not isinstance(request.in_progress_prompt_logprobs_cpu, _Progress):
        assert request.sampling_params.extra_args, "every request for prompt logprobs is ours"
        packed_wish = request.sampling_params.extra_args[WISH]
        wish = _unpacked(packed_wish)
        ids_RW, logprobs_RW = empty_rows(wish, len(request.prompt_token_ids))
        request.in_progress_prompt_logprobs_cpu = _Progress(
            wish=wish,
            prompt=(*request.prompt_token_ids, packed_wish["last_token"]),
            rows=Rows(
                logprob_token_ids=torch.from_numpy(ids_RW).int(),
                logprobs=torch.from_numpy(logprobs_RW),
                selected_token_ranks=torch.zeros(len(ids_RW), dtype=torch.int32),
            ),
        )
    return request.in_progress_prompt_logprobs_cpu
