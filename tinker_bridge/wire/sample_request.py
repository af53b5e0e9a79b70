"""An asample request, from its JSON to the bus message.

Legend: P = prompt tokens, K = targets of a position.
"""

from dataclasses import dataclass

import msgspec
import numpy as np

from ...bus.errors import InvalidData, InvalidRequest
from ...bus.messages import Ints, Sample
from .json_forms import MALFORMED, Int64, ModelInput, TensorData, decoded, tensor_of, tokens_of
from .tensors import Csr, shape_text


class SampleEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """Whose an asample request is: a sampling session's, or none's, with a model named instead."""

    sampling_session_id: str | None = None
    seq_id: Int64 | None = None
    base_model: str | None = None
    model_path: str | None = None
    num_samples: Int64 = 1
    target_prompt_logprobs: msgspec.Raw = msgspec.Raw()

    @property
    def target_bytes(self) -> int:
        """What the targets take as the sampler gets them: a few listed cells may claim millions."""
        try:
            rows, columns = _shaped.decode(self.target_prompt_logprobs).shape
        except (*MALFORMED, ValueError):
            return 0  # none, or none that are taken
        return min(abs(rows * columns), _MOST_TARGETS) * np.dtype(np.int64).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCall:
    """message: its adapter and version are still to be filled in. targets [P - 1, K]: as asked, or [0, 0];
    the message leaves them out when they name no token. target_layout: where they lay in the request,
    when it was sparse; the answer has them there, too.
    """

    message: Sample
    targets: Ints
    target_layout: Csr | None


class _Params(msgspec.Struct):
    max_tokens: Int64 | None = None
    seed: Int64 | None = None
    stop: str | list[str | Int64] | None = None
    temperature: float = 1.0
    top_k: Int64 = -1
    top_p: float = 1.0


class _Request(msgspec.Struct):
    """record_stability_info is not looked at: nothing that this server trains with needs a record."""

    prompt: ModelInput
    sampling_params: _Params
    num_samples: Int64 = 1
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: Int64 = 0
    topk_sample_logprobs: Int64 = 0
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: Int64 = 0
    prompt_logprobs_last_n: Int64 | None = None


class _Shaped(msgspec.Struct):
    shape: tuple[Int64, Int64]


# As the sampler has it, of all that is told of a prompt together.
_MOST_TARGETS = 2**22
_NO_TARGETS = np.zeros((0, 0), dtype=np.int64)
_shaped = msgspec.json.Decoder(_Shaped)
_envelope = msgspec.json.Decoder(SampleEnvelope)
_request = msgspec.json.Decoder(_Request)


def peek_sample(body: bytes) -> SampleEnvelope:
    """
    Raises:
        InvalidRequest: not even this much can be read.
    """
    return decoded(body, _envelope, "the body")


def decode_sample(body: bytes, *, context_tokens: int) -> SampleCall:
    """context_tokens: what prompt and answer have together at most; used without max_tokens, and cut by the
    sampler to what the model holds.

    Raises:
        InvalidRequest: the body is not such a request, or a field is out of range.
        InvalidData: a prompt or targets that cannot be used.
        NotSupported: the prompt has images or sounds.
    """
    request = decoded(body, _request, "the body")
    params = request.sampling_params
    prompt = tokens_of(request.prompt, "the prompt")
    if not prompt.size:
        raise InvalidData("the prompt is empty: give at least one token")
    if prompt.size > context_tokens:
        raise InvalidData(f"sequence length {prompt.size} exceeds max {context_tokens}")
    _check_scoring(request, prompt.size)
    targets, layout = _targets(request.target_prompt_logprobs, prompt.size)
    stop_tokens, stop_strings = _stops(params.stop)
    message = Sample(
        adapter=None,
        version=None,
        prompt=prompt,
        max_tokens=context_tokens if params.max_tokens is None else params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        num_samples=request.num_samples,
        stop_tokens=stop_tokens,
        stop_strings=stop_strings,
        keep_end_tokens=bool(stop_tokens),
        prompt_logprobs=bool(request.prompt_logprobs),
        topk_prompt_logprobs=request.topk_prompt_logprobs,
        topk_sample_logprobs=request.topk_sample_logprobs,
        prompt_targets=targets if (targets >= 0).any() else _NO_TARGETS,
        prompt_alt_tokens=request.prompt_alt_tokens_k,
        prompt_last_n=request.prompt_logprobs_last_n,
    )
    return SampleCall(message=message, targets=targets, target_layout=layout)


def _stops(stop: str | list[str | int] | None) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Tokens and strings. None: the model's own end tokens, also beside strings; []: nothing stops."""
    if stop is None:
        return None, ()
    if isinstance(stop, str):
        return None, (stop,)
    tokens = tuple(each for each in stop if isinstance(each, int))
    strings = tuple(each for each in stop if isinstance(each, str))
    return (None if strings and not tokens else tokens), strings


def _check_scoring(request: _Request, prompt_tokens: int) -> None:
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        if getattr(request, name) < 0:
            raise InvalidRequest(f"{name} must be at least 0, which is off")
    last_n = request.prompt_logprobs_last_n
    if last_n is None:
        return
    if not request.prompt_logprobs:
        raise InvalidRequest("prompt_logprobs_last_n needs prompt_logprobs")
    if not 1 <= last_n < prompt_tokens:
        raise InvalidRequest(
            f"prompt_logprobs_last_n is {last_n}, and must lie in 1 to {prompt_tokens - 1}: the first of the "
            f"{prompt_tokens} tokens has nothing before it"
        )


def _targets(asked: TensorData | None, prompt_tokens: int) -> tuple[Ints, Csr | None]:
    """[P - 1, K], -1 where nothing is asked, and the layout of a sparse request."""
    if asked is None:
        return _NO_TARGETS, None
    tensor = tensor_of(asked, "target_prompt_logprobs")
    if not tensor.holds_ints or len(tensor.shape) != 2 or tensor.shape[0] != prompt_tokens - 1:
        raise InvalidData(
            f"target_prompt_logprobs must be int64 of the shape ({prompt_tokens - 1}, K), a row for each "
            f"position of the prompt after its first, and has {shape_text(tensor.shape)}"
        )
    if tensor.shape[0] * tensor.shape[1] > _MOST_TARGETS:
        raise InvalidData(f"target_prompt_logprobs has more than {_MOST_TARGETS} cells")
    return tensor.whole(unlisted=-1).astype(np.int64, copy=False), tensor.csr
