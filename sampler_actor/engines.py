"""Which engines this machine can run, the settings they are built from, and building them.

Heavy libraries are imported in functions here, because what they read from the environment has to be
set first, and because a sampler that never needs one engine should not pay for it.
"""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, assert_never

from ..bus.config import Config, set_process_environment
from ..bus.errors import EngineFailed
from ..bus.lasting_imports import lasting_imports
from ..bus.messages import EngineName
from .engine import Engine, EngineSettings
from .environment import vllm_environment
from .facts import ModelFacts

Device = Literal["cpu", "cuda"]


def resolve_settings(config: Config, facts: ModelFacts) -> EngineSettings:
    """Decide what "auto" means here: CUDA where there is any, and then bfloat16."""
    device = _device(config.model.device)
    dtype = config.model.dtype
    return EngineSettings(
        model_path=facts.path,
        device=device,
        dtype=("bfloat16" if device == "cuda" else "float32") if dtype == "auto" else dtype,
        context_tokens=facts.context_tokens,
        threads=config.sampler.threads,
        max_rank=config.trainer.max_rank,
        max_loras=config.sampler.max_loras,
        max_loaded=config.sampler.max_loaded,
        max_concurrent=config.sampler.max_concurrent,
        max_batched_tokens=config.sampler.max_batched_tokens,
        kv_cache_bytes=config.sampler.kv_cache_bytes,
        gpu_memory_utilization=config.sampler.gpu_memory_utilization,
    )


def why_not_vllm(device: Device) -> str:
    """Why vLLM cannot run here, in words for a receipt; empty when nothing speaks against it.

    Looks without importing, which takes seconds.
    """
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    build: Device = "cpu" if _is_cpu_build() else "cuda"
    if build != device:
        return f"the installed vllm is a {build} build, and the model runs on {device}"
    return ""


def open_engine(name: EngineName, settings: EngineSettings) -> Engine:
    """Make an engine that has not started yet.

    Raises:
        EngineFailed: its library cannot be imported.
    """
    match name:
        case "vllm":
            set_process_environment(vllm_environment(settings.device))
            try:
                with lasting_imports():
                    from .vllm_engine import VllmEngine
            except (ImportError, OSError, RuntimeError) as error:
                raise EngineFailed(f"vllm cannot be imported: {error}") from error
            return VllmEngine(settings)
        case "torch":
            with lasting_imports():
                from .torch_engine import TorchEngine

            return TorchEngine(settings)
        case _:
            assert_never(name)


def _device(wanted: Literal["auto", "cpu", "cuda"]) -> Device:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_cpu_build() -> bool:
    """The CPU build is a distribution of its own, or the official one with a local version."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return True
