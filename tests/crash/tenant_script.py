"""What one tenant of the crash test does through the SDK, the same in every run: train, save, sample, delete.

Now and then it trains another adapter for a step and removes it, over plain HTTP: the SDK has no word for that.

What it sees (losses, log probabilities, tokens, names) is noted in order, to be compared with the same script
where nobody was killed. How many rounds there are is found out by the disturbed run.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import tinker
from loractl.tests.crash.crashed_daemon import MODEL
from tinker import types

VOCABULARY = 128  # of `make_model`
RATE = types.AdamParams(learning_rate=1e-2, weight_decay=0.01)
_SAMPLES_EVERY, _SAVES_EVERY, _REMOVES_EVERY = 5, 4, 6
_LOOK_AGAIN_S = 0.1
LAST = "end"


@dataclass
class TenantScript:
    """number: of the tenant, from which everything it sends follows. goes_on: whether another round follows
    so many. samples: false where no sampler runs. rounds: done. seen: what came back, in order."""

    number: int
    url: str
    key: str
    goes_on: Callable[[int], bool]
    samples: bool = True
    rounds: int = 0
    seen: list[str] = field(default_factory=list)
    failure: str = ""
    at: str = "starting"

    @property
    def name(self) -> str:
        return f"tenant-{self.number}"

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - a thread's boundary: the driver tells it
            self.failure = f"{type(error).__name__} in round {self.rounds} while {self.at}: {error}"

    def _run(self) -> None:
        service = tinker.ServiceClient(base_url=self.url, api_key=self.key)
        try:
            self._live(service)
        finally:
            # Its heart stops, and its session goes on: what was made there is still to be compared.
            if service._session_holder is not None:
                service._session_holder.close()

    def _live(self, service: Any) -> None:
        rest = tinker.RestClient(base_url=self.url, api_key=self.key)
        self.at = "creating the adapter"
        rank, seed = 2 + self.number % 3, 100 + self.number
        client = service.create_lora_training_client(MODEL, rank=rank, seed=seed).result()
        states: list[str] = []
        samplers: list[str] = []
        running = self._send(client, 0)
        while True:
            # The next round is sent before this one's results are read: the SDK's own way to train.
            goes_on = self.goes_on(self.rounds + 1)
            following = self._send(client, self.rounds + 1) if goes_on else None
            self._read(*running)
            if self.rounds % _SAVES_EVERY == _SAVES_EVERY - 1:
                states = self._save(client, rest, states)
            if self.samples and self.rounds % _SAMPLES_EVERY == self.number % _SAMPLES_EVERY:
                samplers = self._sample(service, client, rest, samplers)
            if self.rounds % _REMOVES_EVERY == self.number % _REMOVES_EVERY:
                self._make_and_remove(service)
            self.rounds += 1
            if following is None:
                break
            running = following
        self.at = "saving the end"
        path = client.save_state(LAST).result().path
        self._note("saved", _name(path))
        self._check_listed(rest, path, [*states, *samplers, path])

    def _send(self, client: Any, number: int) -> tuple[Any, Any]:
        self.at = "sending a pass"
        data = [self._datum(number, each) for each in range(1 + number % 3)]
        return client.forward_backward(data, "cross_entropy"), client.optim_step(RATE)

    def _read(self, passed: Any, stepped: Any) -> None:
        self.at = "waiting for a pass"
        output = passed.result()
        rows = b"".join(each["logprobs"].to_numpy().tobytes() for each in output.loss_fn_outputs)
        self._note("pass", output.metrics["loss:sum"], hashlib.sha256(rows).hexdigest()[:16])
        self.at = "waiting for a step"
        stepped.result()

    def _save(self, client: Any, rest: Any, states: list[str]) -> list[str]:
        self.at = "saving"
        path = client.save_state(f"state-{self.rounds}").result().path
        self._note("saved", _name(path))
        return self._delete_old(rest, [*states, path])

    def _sample(self, service: Any, client: Any, rest: Any, samplers: list[str]) -> list[str]:
        self.at = "publishing"
        path = ""
        if self.rounds % 2:  # one without a name
            sampler = client.save_weights_and_get_sampling_client().result()
        else:
            path = client.save_weights_for_sampler(f"version-{self.rounds}").result().path
            sampler = service.create_sampling_client(model_path=path).result()
        self.at = "sampling"
        prompt = types.ModelInput.from_ints(self._tokens(self.rounds, 99)[:5])
        params = types.SamplingParams(max_tokens=6, seed=self.rounds, temperature=1.0)
        said = sampler.sample(prompt, 1, params).result().sequences[0]
        self._note("sampled", path and _name(path), *said.tokens)
        return self._delete_old(rest, [*samplers, path]) if path else samplers

    def _make_and_remove(self, service: Any) -> None:
        self.at = "creating another adapter"
        client = service.create_lora_training_client(MODEL, rank=2, seed=self.rounds).result()
        self._read(*self._send(client, self.rounds))
        self.at = "removing it"
        while True:
            with contextlib.suppress(httpx.TransportError):
                gone = httpx.delete(f"{self.url}/adapters/{client.model_id}", headers={"X-API-Key": self.key})
                # 410: the answer to the first try was lost.
                if gone.status_code in (200, 404, 410):
                    break
                assert gone.status_code >= 500, f"{gone.status_code} {gone.text}"
            threading.Event().wait(_LOOK_AGAIN_S)
        self._note("removed")

    def _delete_old(self, rest: Any, paths: list[str]) -> list[str]:
        """Keep the two newest."""
        self.at = "deleting"
        for path in paths[:-2]:
            # Not there: the answer to the first try was lost, and the SDK tried once more.
            with contextlib.suppress(tinker.NotFoundError):
                rest.delete_checkpoint_from_tinker_path(path).result()
            self._note("deleted", _name(path))
        return paths[-2:]

    def _check_listed(self, rest: Any, path: str, kept: list[str]) -> None:
        self.at = "listing"
        run = path.removeprefix("tinker://").split("/")[0]
        listed = {each.tinker_path for each in rest.list_checkpoints(run).result().checkpoints}
        self._note("listed", *sorted(map(_name, listed)))
        assert listed == {*kept}, f"listed {sorted(listed)} instead of {sorted(kept)}"

    def _datum(self, number: int, index: int) -> Any:
        ids = self._tokens(number, index)
        return types.Datum(
            model_input=types.ModelInput.from_ints(ids[:-1]),
            loss_fn_inputs={"target_tokens": ids[1:], "weights": [1.0] * (len(ids) - 1)},
        )

    def _tokens(self, number: int, index: int) -> list[int]:
        chance = np.random.default_rng([self.number, number, index])
        drawn: list[int] = chance.integers(0, VOCABULARY, int(chance.integers(6, 24))).tolist()
        return drawn

    def _note(self, *words: object) -> None:
        self.seen.append(" ".join(map(str, words)))


def _name(path: str) -> str:
    """Without the run's id, which is another in every run."""
    return path.removeprefix("tinker://").split("/", 1)[1]


def run_all(scripts: list[TenantScript]) -> list[threading.Thread]:
    threads = [threading.Thread(target=script.run, name=script.name, daemon=True) for script in scripts]
    for thread in threads:
        thread.start()
    return threads
