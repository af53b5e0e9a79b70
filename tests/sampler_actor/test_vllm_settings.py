"""What vLLM is told, on a CPU and on CUDA: settings each of which prevents a failure that was seen."""

import importlib.util
from pathlib import Path

import pytest
from loractl.bus.config import set_process_environment
from loractl.sampler_actor.environment import vllm_environment
from loractl.sampler_actor.vllm_worker import draw_seed
from loractl.tests.sampler_actor.tiny import engine_settings

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed", allow_module_level=True)
set_process_environment(vllm_environment("cpu"))

from loractl.sampler_actor.vllm_engine import engine_arguments  # noqa: E402  # after its environment


def test_lora_is_never_put_on_the_unembedding(tiny_model: Path) -> None:
    assert "lm_head" not in engine_arguments(engine_settings(tiny_model)).lora_target_modules


def test_vllm_never_evicts_by_itself_what_requests_may_use(tiny_model: Path) -> None:
    arguments = engine_arguments(engine_settings(tiny_model, max_loaded=8, max_concurrent=16, max_loras=2))

    assert arguments.max_loras == 3, "one for base requests"
    assert arguments.max_cpu_loras >= 8 + 16 + 1


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (4, 8), (32, 32), (33, 64)])
def test_the_rank_is_rounded_up_to_one_that_vllm_knows(tiny_model: Path, rank: int, allowed: int) -> None:
    assert engine_arguments(engine_settings(tiny_model, max_rank=rank)).max_lora_rank == allowed


def test_a_cpu_cache_holds_at_least_one_full_sequence(tiny_model: Path) -> None:
    # Two layers of keys and values, one head of 32 numbers of 4 bytes, per token.
    one_sequence = 256 * 2 * 2 * 32 * 4

    assert (
        engine_arguments(engine_settings(tiny_model, kv_cache_bytes=1)).kv_cache_memory_bytes > one_sequence
    )
    assert engine_arguments(engine_settings(tiny_model)).kv_cache_memory_bytes == 64 * 2**20


def test_memory_is_a_share_on_cuda_and_bytes_on_a_cpu(tiny_model: Path) -> None:
    cuda = engine_arguments(engine_settings(tiny_model, device="cuda", dtype="bfloat16"))

    assert (cuda.kv_cache_memory_bytes, cuda.gpu_memory_utilization, cuda.enforce_eager) == (None, 0.4, False)
    assert "TORCHDYNAMO_DISABLE" not in vllm_environment("cuda")


def test_every_seed_and_position_has_a_draw_of_its_own() -> None:
    draws = {draw_seed(seed, position) for seed in range(50) for position in range(50)}

    assert len(draws) == 2500
    assert all(0 <= draw < 2**63 for draw in draws)
