"""Variables that libraries read when they are imported. Pure data; set by `__main__` and `engines`."""

from typing import Literal


def thread_environment(threads: int) -> dict[str, str]:
    """Before torch is imported.

    Spinning OpenMP threads collapse by a factor of 80 as soon as another process wants the core, and
    the trainer is such a process; PASSIVE keeps them from spinning.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def vllm_environment(device: Literal["cpu", "cuda"]) -> dict[str, str]:
    """Before vllm is imported; its engine process inherits them."""
    common = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # `vllm_worker` extends the sampler of the first runner; the second has another one.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    if device == "cuda":
        return common
    return common | {
        # By default vLLM pins its worker to core 0 and leaves another core unused.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Otherwise the first logprobs compile C++ for seconds, and kill the engine where there is no g++.
        "TORCHDYNAMO_DISABLE": "1",
        # The worker runs inside the engine process: half the start-up time, a third less memory.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
