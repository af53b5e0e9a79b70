"""The tenants of the demo: each has an API key and a session of the Tinker SDK, as anybody's script would.

Only how chats are rendered and the order of the rows come from loractl; `tinker_sdk.py` is the shortest
script without either. Everything here runs in one asyncio loop; errors are the SDK's.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import tinker
from loractl.bus.chat import Rendered, render_chat, render_prompt
from loractl.client.run_plan import RunPlan
from tinker.lib.retryable_exception import RetryableException
from voices import Voice

# The second: for a result that the service has no more, because its bridge was restarted.
SDK_ERRORS = (tinker.TinkerError, RetryableException)
LEARNING_RATE = 5e-3
_BATCH = 8
# The trainer never waits for a tenant: the next step is on its way before the last one is answered.
_STEPS_IN_FLIGHT = 2
_ANSWER_TOKENS = 80
_SAYS_THE_LIKELIEST = 0.0


@dataclass(frozen=True, slots=True)
class StepDone:
    """step: counted from 1. loss: mean per trained token. tokens: all positions that were run."""

    step: int
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """One finished run. tokens: all positions that were run, in seconds. apart: the largest difference
    between the logprobs of trainer and sampler on the first rows."""

    voice: Voice
    losses: Sequence[float]
    tokens: int
    seconds: float
    checkpoint: str
    sampler: tinker.SamplingClient
    apart: float


@dataclass(frozen=True, slots=True)
class _Sent:
    """A step on its way."""

    tokens: int
    passed: tinker.APIFuture[tinker.ForwardBackwardOutput]
    stepped: tinker.APIFuture[tinker.OptimStepResponse]


Told = Callable[[Voice, StepDone], None]


class Tenant:
    def __init__(
        self,
        voice: Voice,
        service: tinker.ServiceClient,
        records: tinker.RestClient,
        training: tinker.TrainingClient,
    ) -> None:
        self.voice = voice
        self._service = service
        self._records = records
        self._training = training
        # Of the model's own directory: the service names it to clients on the same machine.
        self._tokenizer: Any = training.get_tokenizer()

    @classmethod
    async def begin(cls, voice: Voice, url: str, key: str, base_model: str) -> Self:
        """Open a session and make an adapter in it."""
        service = tinker.ServiceClient(base_url=url, api_key=key, display_name=voice.name)
        training = await service.create_lora_training_client(
            base_model, rank=voice.rank, seed=0, train_unembed=False
        )
        return cls(voice, service, tinker.RestClient(base_url=url, api_key=key), training)

    @property
    def model_id(self) -> str:
        return self._training.model_id

    async def train(self, steps: int, told: Told) -> Learned:
        """Train the adapter, save it, and put what it has learned before a sampler."""
        rows = [self._rendered(line) for line in self.voice.data.read_text().splitlines()]
        plan = RunPlan(count=len(rows), batch_size=_BATCH, seed=0, total_steps=steps)
        began = time.monotonic()
        done: list[StepDone] = []
        flight: deque[_Sent] = deque()
        for step in range(steps):
            while step + len(flight) < min(steps, step + _STEPS_IN_FLIGHT):
                flight.append(self._send([rows[index] for index in plan.batch(step + len(flight))]))
            done.append(await _settled(step + 1, flight.popleft()))
            told(self.voice, done[-1])
        seconds = time.monotonic() - began
        # Two more operations of the same lane: they run in this order, whoever waits for what.
        saved = self._training.save_state("learned")
        sampler = await self._training.save_weights_and_get_sampling_client()
        return Learned(
            voice=self.voice,
            losses=[each.loss for each in done],
            tokens=sum(each.tokens for each in done),
            seconds=seconds,
            checkpoint=(await saved).path,
            sampler=sampler,
            apart=await self._apart(sampler, rows[:_BATCH]),
        )

    async def base_sampler(self) -> tinker.SamplingClient:
        return await self._service.create_sampling_client(base_model=self._training.get_info().model_name)

    async def ask(self, sampler: tinker.SamplingClient, question: str) -> str:
        """The likeliest answer."""
        prompt = render_prompt(self._tokenizer, [{"role": "user", "content": question}])
        params = tinker.SamplingParams(max_tokens=_ANSWER_TOKENS, temperature=_SAYS_THE_LIKELIEST)
        said = await sampler.sample(_input(prompt), 1, params)
        text: str = self._tokenizer.decode(said.sequences[0].tokens, skip_special_tokens=True)
        return text.strip()

    async def runs(self) -> list[str]:
        """The ids of all training runs that this tenant sees."""
        return [run.training_run_id for run in (await self._records.list_training_runs()).training_runs]

    async def reach(self, model_id: str, checkpoint: str) -> list[int]:
        """The HTTP status with which a training run answers this tenant, and a checkpoint of it."""
        asked = (
            self._records.get_training_run(model_id),
            self._records.get_weights_info_by_tinker_path(checkpoint),
        )
        return [await _status(each) for each in asked]

    async def end(self) -> None:
        """Close the session: the service frees the adapter, and keeps what was saved of it."""
        await self._service.close("success")

    def _rendered(self, line: str) -> Rendered:
        return render_chat(self._tokenizer, json.loads(line)["messages"])

    def _send(self, rows: Sequence[Rendered]) -> _Sent:
        # Losses are sums; so scaled, this one is the mean over the tokens that are trained.
        scale = 1.0 / sum(weight > 0 for row in rows for weight in row.weights[1:])
        data = [_datum(row, scale) for row in rows]
        passed = self._training.forward_backward(data, "cross_entropy")
        stepped = self._training.optim_step(tinker.AdamParams(learning_rate=LEARNING_RATE))
        return _Sent(sum(each.model_input.length for each in data), passed, stepped)

    async def _apart(self, sampler: tinker.SamplingClient, rows: Sequence[Rendered]) -> float:
        scored = self._training.forward([_datum(row) for row in rows], "cross_entropy")
        sampled = [sampler.compute_logprobs(_input(row.tokens)) for row in rows]
        trained = [each["logprobs"].tolist() for each in (await scored).loss_fn_outputs]
        differences = [
            abs(one - other)
            for here, there in zip(trained, [(await each)[1:] for each in sampled], strict=True)
            for one, other in zip(here, there, strict=True)
            if other is not None
        ]
        return max(differences)


def _datum(row: Rendered, scale: float = 1.0) -> tinker.Datum:
    """Position i has seen tokens[: i + 1], and learns to say the next one as far as it has weight."""
    return tinker.Datum(
        model_input=_input(row.tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": list(row.tokens[1:]),
            "weights": [weight * scale for weight in row.weights[1:]],
        },
    )


def _input(tokens: Sequence[int]) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints(list(tokens))


async def _settled(step: int, sent: _Sent) -> StepDone:
    loss = (await sent.passed).metrics["loss:sum"]
    await sent.stepped
    return StepDone(step, loss, sent.tokens)


async def _status(asked: tinker.APIFuture[Any]) -> int:
    try:
        await asked
    except tinker.APIStatusError as refused:
        return refused.status_code
    return 200
