"""The JSON bodies of this API. What is not known is refused by name: nothing asked for is ignored."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ..bodies import AdamParamsBody
from ..body_fields import Body, Fields, FirstWrong, Int, Many

_Int32 = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
_Tokens = Annotated[list[_Int32], FirstWrong(), Field(max_length=2**24)]


class _Strict(Body):
    model_config = ConfigDict(protected_namespaces=(), extra="forbid", allow_inf_nan=False)


class AddLoraBody(_Strict):
    """base_model None is the one that is served. name: how the model_id begins. seed None draws one."""

    base_model: str | None = None
    rank: int = Field(default=16, ge=1, lt=2**31)
    alpha: float = Field(default=32.0, gt=0)
    name: str = Field(default="lora", max_length=100)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = False


class ModelIdBody(_Strict):
    model_id: str


class RowsBody(_Strict):
    """A forward-backward pass over rows, see `rows`. loss_fn_config: settings of the loss by name.
    seq_id: its number in the model's order, for who numbers operations; None runs in the order of coming."""

    model_id: str
    seq_id: Int | None = None
    data: Annotated[Many[Any], Field(min_length=1)]
    loss_fn: str = "cross_entropy"
    loss_fn_config: Fields[float] = Field(default_factory=dict)


class AdamBody(AdamParamsBody, _Strict):
    """AdamW's parameters for this one step, with Tinker's defaults. grad_clip_norm 0 leaves gradients
    unclipped."""

    model_config = _Strict.model_config


class StepBody(_Strict):
    """seq_id: as in `RowsBody`."""

    model_id: str
    seq_id: Int | None = None
    adam_params: AdamBody = AdamBody()


class ResultBody(_Strict):
    """timeout: for how many seconds the answer may wait for the result."""

    request_id: str
    timeout: float = Field(default=1.0, ge=0)


class Message(_Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str


# Text is one turn of a user; a chat is to be gone on with by the assistant; numbers are tokens.
Prompt = str | Many[Message] | _Tokens


class SamplingBody(_Strict):
    """temperature 0 is greedy. stop: strings or token ids; None stops at the model's own end tokens,
    and an empty list nowhere. Sample i of num_samples has the seed seed + i."""

    max_tokens: int = Field(default=256, ge=1, lt=2**31)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=-1, ge=-1, lt=2**31)
    seed: int | None = Field(default=None, ge=0, lt=2**62)
    stop: str | Many[str] | Many[_Int32] | None = None
    num_samples: int = Field(default=1, ge=1, le=4096)


class SampleBody(_Strict):
    """model_id None samples from the base model. raw: text stays bare instead of becoming a turn."""

    model_id: str | None = None
    base_model: str | None = None
    prompts: Annotated[Many[Prompt], Field(min_length=1)] | None = None
    prompt: Prompt | None = None
    raw: bool = False
    sampling_params: SamplingBody = SamplingBody()
