"""fwdbwd: rows become one forward-backward pass of a run, and its answer becomes JSON."""

from functools import partial

import numpy as np

from ...bus.ids import TenantId
from ...bus.messages import Floats, ForwardBackward, LossName, Message, PassResult
from ..calls import Place
from ..records import RunRecord
from ..results import Result, json_result
from ..wire.loss_inputs import LossInputs, checked_loss
from .bodies import RowsBody
from .datums import datum_at, inputs_of
from .tokenizer import TokenizerThread


async def rows_call(tokenizer: TokenizerThread, tenant: TenantId, body: RowsBody) -> "RowsCall":
    """The call of a body that has rows.

    Raises:
        LoractlError: the rows or the loss cannot be used.
    """
    loss = checked_loss(body.loss_fn)
    works = [partial(datum_at, index=index, value=value) for index, value in enumerate(body.data)]
    datums = await tokenizer.each(tenant, works)
    (inputs,) = await tokenizer.each(tenant, [lambda _: inputs_of(datums, loss)])
    return RowsCall(inputs, loss, body.loss_fn_config)


class RowsCall:
    """A pass whose rows are tokens already."""

    def __init__(self, inputs: LossInputs, loss: LossName, settings: dict[str, float]) -> None:
        self._inputs = inputs
        self._loss = loss
        self._settings = settings

    @property
    def size_bytes(self) -> int:
        return self._inputs.size_bytes

    def build(self, _run: RunRecord, place: Place) -> ForwardBackward:
        inputs = self._inputs
        return ForwardBackward(
            adapter=place.adapter,
            lane=place.lane,
            seq=place.seq,
            lengths=inputs.lengths,
            tokens=inputs.tokens,
            targets=inputs.targets,
            weights=inputs.weights,
            old_logprobs=inputs.old_logprobs,
            advantages=inputs.advantages,
            ratio_mask=inputs.ratio_mask,
            loss=self._loss,
            loss_config=self._settings,
        )

    async def finish(self, answer: Message, _made_by: str) -> Result:
        """loss: the mean over trained positions, for people; the gradient is that of `loss:sum`.
        logprobs: of every row's targets."""
        assert isinstance(answer, PassResult)
        trained = int(np.count_nonzero(self._inputs.weights))
        rows = np.split(answer.logprobs, np.cumsum(self._inputs.lengths)[:-1])
        return json_result(
            {
                "type": "fwdbwd",
                "loss": answer.metrics["loss:sum"] / max(1, trained),
                "trained_tokens": trained,
                "metrics": dict(answer.metrics),
                "logprobs": [finite(row) for row in rows],
            }
        )

    def close(self) -> None:
        pass


def finite(values: Floats) -> list[float | None]:
    """JSON has no infinity and no NaN."""
    return [value if np.isfinite(value) else None for value in values.ravel().tolist()]
