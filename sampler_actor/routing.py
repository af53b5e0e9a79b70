"""Which engine serves a version, and why, in words that a tenant reads in the receipt. Pure."""

from dataclasses import dataclass
from typing import Literal

from ..bus.errors import PublishFailed
from ..bus.messages import EngineName, LoraSpec

EngineChoice = Literal["auto", "vllm", "torch"]


@dataclass(frozen=True, slots=True)
class Route:
    engine: EngineName
    reason: str


def route_base(choice: EngineChoice, *, vllm_missing: str) -> Route:
    """Where the base model runs, and every version that nothing keeps from there.

    vllm_missing: why vLLM cannot be used here, empty when it can.
    """
    match choice:
        case "torch":
            return Route("torch", 'sampler.engine is "torch"')
        case "vllm":
            return Route("vllm", 'sampler.engine is "vllm"')
        case "auto" if vllm_missing:
            return Route("torch", vllm_missing)
        case "auto":
            return Route("vllm", "it serves every module of this adapter exactly")


def route_version(lora: LoraSpec, choice: EngineChoice, *, vllm_missing: str) -> Route:
    """Where a version runs.

    vLLM is never asked to put LoRA on the unembedding: with it, prompt logprobs kill its CPU engine
    and are silently wrong on a GPU (vllm #51594).

    Raises:
        PublishFailed: the one engine that the settings allow cannot serve this version.
    """
    base = route_base(choice, vllm_missing=vllm_missing)
    if base.engine == "torch" or not lora.train_unembed:
        return base
    if choice == "vllm":
        raise PublishFailed(
            "this adapter trains the unembedding, which vllm cannot serve exactly: "
            'set sampler.engine to "auto" or "torch"'
        )
    return Route("torch", "the adapter trains the unembedding, which vllm cannot serve exactly")
