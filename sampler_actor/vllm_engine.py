"""The engine around vLLM's AsyncLLM, on a CPU and on CUDA. The only file that imports vllm.

Rules it keeps, each learnt from a failure: every version has a name, a directory and a number of its
own, so no cache is ever stale; a version is added before a request names it, because a failure while
loading inside a request kills the engine for everybody; base requests name the null adapter; LoRA is
never put on lm_head; jobs are single sequences, because the outputs of n > 1 arrive in fragments.
"""

import asyncio
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from ..bus.errors import EngineFailed, NotFinite, PublishFailed
from ..bus.messages import EngineName, VersionRecord
from .engine import (
    PLAIN_WISH,
    Delta,
    EngineSettings,
    Job,
    Scores,
    ScoreWish,
    VersionKey,
    key_of,
)
from .null_adapter import write_null_adapter
from .scoring import EMPTY, empty_rows, first_row, scores_of, width
from .vllm_objects import SEED, WISH
from .vllm_outputs import delta_of, rows_of
from .vllm_scoring import packed
from .vllm_worker import WorkerExtension

_TARGETS: Final = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# A whole block of the prompt must be equal for its cache to be used: small blocks share earlier.
_BLOCK_TOKENS: Final = 32
# Nothing is lost by killing it: an engine holds no state of its own.
_SHUTDOWN_S: Final = 0.5
_NULL_NUMBER: Final = 1
# vLLM's own bound on choices per position; nothing is allocated for it. Ours are in `prompt_wishes`.
_MOST_COLUMNS: Final = 2**24


@dataclass(frozen=True, slots=True)
class _Loaded:
    request: LoRARequest
    modules: int


class VllmEngine:
    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._llm: AsyncLLM | None = None
        self._null: LoRARequest | None = None
        self._null_directory: Path | None = None
        self._versions: dict[VersionKey, _Loaded] = {}
        self._numbers = itertools.count(_NULL_NUMBER + 1)
        self._scores = itertools.count()
        self._jobs: set[str] = set()

    @property
    def name(self) -> EngineName:
        return "vllm"

    async def start(self) -> None:
        try:
            llm = await asyncio.to_thread(AsyncLLM.from_engine_args, engine_arguments(self._settings))
            self._llm = llm
            await llm.collective_rpc("end_with_parent")
            await llm.collective_rpc("sample_exactly")
            await llm.collective_rpc("score_exactly")
            await self._add_null_adapter()
        except (RuntimeError, ValueError, OSError, EngineDeadError) as error:
            await self.close()
            raise EngineFailed(f"vllm did not start: {_one_line(error)}") from error

    async def add(self, record: VersionRecord) -> int:
        key = key_of(record)
        if key not in self._versions:
            name = f"{record.adapter}@{record.number}"
            request = LoRARequest(lora_name=name, lora_int_id=next(self._numbers), lora_path=record.directory)
            self._versions[key] = _Loaded(request, await self._add_lora(request))
        return self._versions[key].modules

    async def remove(self, key: VersionKey) -> None:
        loaded = self._versions.pop(key, None)
        if loaded is not None:
            try:
                await self._alive().remove_lora(loaded.request.lora_int_id)
            except EngineDeadError as error:
                raise _dead() from error

    async def sample(self, job: Job) -> AsyncGenerator[Delta, None]:
        self._jobs.add(job.key)
        try:
            async with aclosing(
                self._generate(job.key, job.version, job.prompt, _parameters(job))
            ) as outputs:
                async for output in outputs:
                    yield delta_of(output, job.topk)
        finally:
            self._jobs.discard(job.key)

    async def abort(self, job_key: str) -> None:
        if job_key in self._jobs:
            await self._alive().abort(job_key)

    async def score(
        self, version: VersionKey | None, prompt: tuple[int, ...], wish: ScoreWish = PLAIN_WISH
    ) -> Scores:
        rows = len(prompt) - 1
        first = first_row(wish, rows)
        if first == rows:
            self._alive()
            return scores_of(wish, *empty_rows(wish, rows), cached=0)
        # Reading the prefix cache may skip rows that are wanted. Then little was computed, and once more
        # without the cache.
        output = await self._scored(version, prompt, wish, read_cache=first >= _BLOCK_TOKENS)
        if rows_of(output.prompt_logprobs, width(wish))[0][first, 0] == EMPTY:
            output = await self._scored(version, prompt, wish, read_cache=False)
        ids_RW, logprobs_RW = rows_of(output.prompt_logprobs, width(wish))
        if np.isnan(logprobs_RW[first:]).any():
            raise NotFinite("the prompt's logits are not finite: the adapter has diverged")
        return scores_of(wish, ids_RW, logprobs_RW, cached=output.num_cached_tokens or 0)

    async def _scored(
        self, version: VersionKey | None, prompt: tuple[int, ...], wish: ScoreWish, *, read_cache: bool
    ) -> RequestOutput:
        # Greedy, because a batch of greedy rows is sampled in the cheapest way.
        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=width(wish) - 1,
            flat_logprobs=True,
            skip_reading_prefix_cache=not read_cache,
            extra_args={WISH: packed(wish, prompt[-1])},
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        key = f"score-{next(self._scores)}"
        async with aclosing(self._generate(key, version, prompt[:-1], parameters)) as outputs:
            async for output in outputs:
                return output
        raise EngineFailed("vllm ended a scoring request without an answer")

    async def healthy(self) -> bool:
        return self._llm is not None and not self._llm.errored

    async def close(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            if not llm.errored:
                await llm.abort(list(self._jobs))
            await asyncio.to_thread(llm.shutdown, _SHUTDOWN_S)
        if self._null_directory is not None:
            shutil.rmtree(self._null_directory, ignore_errors=True)

    async def _generate(
        self, key: str, version: VersionKey | None, prompt: tuple[int, ...], parameters: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        lora = self._null if version is None else self._versions[version].request
        tokens = {"type": "token", "prompt_token_ids": list(prompt)}
        try:
            async with aclosing(
                self._alive().generate(tokens, parameters, key, lora_request=lora)
            ) as outputs:
                async for output in outputs:
                    yield output
        except (EngineDeadError, EngineGenerateError) as error:
            raise _dead() from error

    async def _add_lora(self, request: LoRARequest) -> int:
        """Load into the engine and count what it bound to, over all workers the least."""
        llm = self._alive()
        try:
            await llm.add_lora(request)
            counts = await llm.collective_rpc("count_bound_modules", args=(request.lora_int_id,))
        except EngineDeadError as error:
            raise _dead() from error
        except Exception as error:
            # vLLM raises a bare Exception for a failure inside its process, which goes on unharmed.
            raise PublishFailed(f"vllm cannot load it: {_one_line(error)}") from error
        return int(min(counts))

    async def _add_null_adapter(self) -> None:
        self._null_directory = Path(tempfile.mkdtemp(prefix="loractl-null-"))
        write_null_adapter(self._null_directory, model_path=self._settings.model_path)
        self._null = LoRARequest(
            lora_name="null", lora_int_id=_NULL_NUMBER, lora_path=str(self._null_directory)
        )
        if await self._add_lora(self._null) != 1:
            raise RuntimeError("the null adapter did not bind to the first layer's o_proj")

    def _alive(self) -> AsyncLLM:
        if self._llm is None or self._llm.errored:
            raise _dead()
        return self._llm


def engine_arguments(settings: EngineSettings) -> AsyncEngineArgs:
    """All settings of vLLM, for a CPU or for CUDA."""
    cpu = settings.device == "cpu"
    extension = f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}"
    return AsyncEngineArgs(
        model=settings.model_path,
        skip_tokenizer_init=True,
        dtype=settings.dtype,
        enforce_eager=cpu,
        max_model_len=settings.context_tokens,
        max_num_seqs=settings.max_concurrent,
        max_num_batched_tokens=max(settings.max_batched_tokens, settings.max_concurrent),
        block_size=_BLOCK_TOKENS if cpu else None,
        kv_cache_memory_bytes=_cache_bytes(settings) if cpu else None,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        enable_lora=True,
        max_loras=settings.max_loras + 1,  # one more for the null adapter
        # Versions that jobs need stay beyond max_loaded; vLLM must never evict one of them by itself.
        max_cpu_loras=settings.max_loaded + 2 * settings.max_concurrent + settings.max_loras + 1,
        max_lora_rank=next(rank for rank in _RANKS if rank >= settings.max_rank),
        lora_target_modules=_TARGETS,
        logprobs_mode="processed_logprobs",
        max_logprobs=_MOST_COLUMNS,
        worker_extension_cls=extension,
        disable_log_stats=True,
    )


def _cache_bytes(settings: EngineSettings) -> int:
    """The key-value cache on a CPU: as set, but never less than one full sequence needs."""
    model = json.loads((Path(settings.model_path) / "config.json").read_text(encoding="utf-8"))
    heads = model["num_attention_heads"]
    kv_heads = model.get("num_key_value_heads") or heads
    head_dim = model.get("head_dim") or model["hidden_size"] // heads
    item_bytes = 4 if settings.dtype == "float32" else 2
    token_bytes: int = 2 * model["num_hidden_layers"] * kv_heads * head_dim * item_bytes
    # One block more for the sequence's ragged end, and one that vLLM keeps for itself.
    tokens = settings.context_tokens + 2 * _BLOCK_TOKENS
    return max(settings.kv_cache_bytes, tokens * token_bytes)


def _parameters(job: Job) -> SamplingParams:
    return SamplingParams(
        max_tokens=job.max_tokens,
        temperature=job.temperature,
        top_k=job.top_k,
        top_p=job.top_p,
        extra_args={SEED: job.seed},
        stop_token_ids=list(job.stop_tokens),
        ignore_eos=True,
        logprobs=job.topk,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _dead() -> EngineFailed:
    return EngineFailed("the vllm engine died and is being started again: send the request once more")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
