"""The JSON bodies of requests. Unknown fields are ignored: clients of newer versions add some weekly.

What is understood and not done is refused where it is used, by name.
"""

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from .body_fields import Body, Detail, Few, Fields, Int, Many, Metadata, Number, Texts, Title, Word


class ConfigBody(Body):
    sdk_version: str = ""


class CreateSessionBody(Body):
    tags: Few[Word] = Field(default_factory=list)
    user_metadata: Metadata | None = None
    sdk_version: Word = ""
    project_id: Word | None = None
    display_name: Title | None = None


class HeartbeatBody(Body):
    session_id: str


class FinishReason(Body):
    type: Literal["success", "errored", "interrupted"] = "success"


class FinishBody(Body):
    reason: FinishReason = FinishReason()
    detail: Detail | None = None


class LoraConfigBody(Body):
    rank: int = Field(lt=2**31)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateModelBody(Body):
    session_id: str
    model_seq_id: Number
    base_model: str
    user_metadata: Metadata | None = None
    lora_config: LoraConfigBody | None = None
    optimizer_config: Metadata | None = None


class ModelBody(Body):
    model_id: str


class AdamParamsBody(Body):
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimStepBody(Body):
    model_id: str
    seq_id: Int | None = None
    adam_params: AdamParamsBody = AdamParamsBody()
    optimizer_params: Metadata | None = None


class SaveWeightsBody(Body):
    model_id: str
    path: str | None = None
    seq_id: Int | None = None
    ttl_seconds: Int | None = None
    overwrite: bool = False
    user_metadata: Texts | None = None


class SaveForSamplerBody(Body):
    model_id: str
    path: str | None = None
    sampling_session_seq_id: Number | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    seq_id: Int | None = None
    ttl_seconds: Int | None = None
    user_metadata: Texts | None = None


class SaveExternalBody(Body):
    model_id: str
    path: str
    seq_id: Int | None = None
    ttl_seconds: Int | None = None
    age_encryption_recipients: Few[str] | None = None


class LoadWeightsBody(Body):
    """Either model_id and seq_id, for a run under way, or session_id and model_seq_id, for a new one."""

    model_id: str | None = None
    seq_id: Int | None = None
    session_id: str | None = None
    model_seq_id: Number | None = None
    base_model: str | None = None
    user_metadata: Metadata | None = None
    path: str
    optimizer: bool
    optimizer_config: Metadata | None = None
    weights_access_token: str | None = None


class CreateSamplingSessionBody(Body):
    session_id: str
    sampling_session_seq_id: Number
    base_model: str | None = None
    model_path: str | None = None


class SamplingSessionBody(Body):
    sampling_session_id: str


class SamplingParamsBody(Body):
    max_tokens: Int | None = None
    seed: Int | None = None
    stop: str | Many[str | Int] | None = None
    temperature: float = 1.0
    top_k: Int = -1
    top_p: float = 1.0


class SampleBody(Body):
    """As `wire.sample_request` reads it; here for the API's description."""

    sampling_session_id: str
    seq_id: Int
    prompt: dict[str, Any]
    sampling_params: SamplingParamsBody
    num_samples: Int = 1
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: Int = 0
    topk_sample_logprobs: Int = 0
    target_prompt_logprobs: dict[str, Any] | None = None
    prompt_alt_tokens_k: Int = 0
    prompt_logprobs_last_n: Int | None = None


class RetrieveBody(Body):
    request_id: str
    allow_metadata_only: bool = False


class FuturesTarget(Body):
    sampling_session_id: str
    cloned_sampler_id: Number = 0


class RetrieveManyBody(Body):
    target: FuturesTarget
    prev_cursor: Number = 0
    timeout: float | None = None
    retrieved_request_ids: Many[str] = Field(default_factory=list)


class CancelBody(Body):
    request_id: str


class PathBody(Body):
    tinker_path: str


class TtlBody(Body):
    """ttl_seconds: null is said, not left out, to keep a checkpoint for ever."""

    ttl_seconds: Int | None


class ProjectBody(Body):
    project_id: Word = Field(min_length=1)


class CopyBody(Body):
    source_path: str
    session_id: str | None = None
    model_seq_id: Number | None = None
    destination_project_id: Word | None = None
    ttl_seconds: Int | None = None
    weights_access_token: str | None = None


class SearchOwner(Body):
    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: Few[str] = Field(default_factory=list)


class StatusQuery(Body):
    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: Few[str] | None = None


class SearchCursor(Body):
    last_created_at: AwareDatetime
    last_session_id: str


class SearchBody(Body):
    session_id: str | None = None
    project_ids: Few[str] | None = None
    user_metadata: Fields[str] = Field(default_factory=dict)
    display_name: str | None = None
    owner: SearchOwner = SearchOwner()
    statuses: Few[StatusQuery] | None = None
    limit: int = Field(default=50, ge=1, le=200)
    cursor: SearchCursor | None = None
