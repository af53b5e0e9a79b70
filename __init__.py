"""loractl: many LoRA adapters trained and sampled at the same time on one shared base model.

The only work done at import time is the guard below, and it must be here: vLLM starts its engine
process by importing the parent's main module again, so the guard has to lie on the import path of
every entry point.
"""

import importlib.util
import sys

__version__ = "0.1.0"

# On Linux the torchvision, torchaudio and torchcodec wheels of the public index are CUDA builds.
# Beside a CPU build of torch they are found but cannot be loaded, and transformers and vllm fail
# while probing for them. loractl uses none of them, so beside a CPU torch they count as absent.
_UNUSED_CUDA_PACKAGES = ("torchvision", "torchaudio", "torchcodec")


def _torch_is_a_cpu_build() -> bool:
    """Read the build from the distribution's version: importing torch here would cost seconds."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


if _torch_is_a_cpu_build():
    for _name in _UNUSED_CUDA_PACKAGES:
        if _name not in sys.modules and importlib.util.find_spec(_name) is not None:
            sys.modules[_name] = None  # type: ignore[assignment]  # the documented way to block an import
