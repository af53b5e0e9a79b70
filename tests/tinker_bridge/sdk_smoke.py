"""What any version of the SDK can do, done once: `python sdk_smoke.py BASE_MODEL`, the service in the environment.

Runs with the `tinker` that Python finds and with nothing of ours, so that another version can be put
before the installed one. Prints one JSON object: each step's name with `ok`, `absent` (this version
has no such method) or what went wrong; and numbers that every version must get alike, for seeds and
data are always the same.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tinker
from tinker import types
from tinker.lib.public_interfaces.rest_client import RestClient

RATE = types.AdamParams(learning_rate=1e-2)
# Above the SDK's datums of one chunk, so that a pass is sent in two.
MANY = 1030


# What early versions lack.
_LATER = {
    "resume": (tinker.ServiceClient, "create_training_client_from_state_with_optimizer"),
    "load": (tinker.TrainingClient, "load_state_with_optimizer"),
    "publish": (RestClient, "publish_checkpoint_from_tinker_path"),
    "time_to_live": (RestClient, "set_checkpoint_ttl_from_tinker_path"),
}


class Smoke:
    """steps: name to what became of it. numbers: name to floats. A step may use what earlier ones left."""

    def __init__(self, model: str) -> None:
        self.steps: dict[str, str] = {}
        self.numbers: dict[str, list[float]] = {}
        self._model = model
        self._service = tinker.ServiceClient()
        self._rest = self._service.create_rest_client()
        self._client: Any = None
        self._paths: dict[str, str] = {}

    def run(self) -> None:
        for step in (
            self.create,
            self.train,
            self.chunks,
            self.forward,
            self.custom,
            self.losses,
            self.failure,
            self.save,
            self.resume,
            self.resume_without_optimizer,
            self.load,
            self.sampler_checkpoint,
            self.snapshot,
            self.base_model,
            self.lists,
            self.publish,
            self.time_to_live,
            self.delete,
        ):
            name = step.__name__
            there = name not in _LATER or hasattr(*_LATER[name])
            self.steps[name] = _tried(step) if there else "absent"

    def create(self) -> None:
        assert self._model in str(self._service.get_server_capabilities())
        self._client = self._service.create_lora_training_client(self._model, rank=4, seed=1)
        self._client = _ready(self._client)
        assert self._client.get_info().model_data.model_name == self._model
        assert self._client.get_tokenizer().encode("hello")

    def train(self) -> None:
        """Three steps, sent without waiting."""
        losses = []
        for _ in range(3):
            running = self._client.forward_backward([_datum(0), _datum(1)], "cross_entropy")
            stepping = self._client.optim_step(RATE)
            losses.append(running.result().metrics["loss:sum"])
            assert stepping.result().metrics["grad_norm"] > 0
        assert losses[0] > losses[1] > losses[2]
        self.numbers["losses"] = losses

    def chunks(self) -> None:
        """One pass in two chunks has the gradient and the outputs of one."""
        datum = types.Datum(
            model_input=types.ModelInput.from_ints([5]),
            loss_fn_inputs={"target_tokens": [9], "weights": [1.0 / MANY]},
        )
        output = self._client.forward_backward([datum] * MANY, "cross_entropy").result()
        assert len(output.loss_fn_outputs) == MANY
        one = _logprobs(output.loss_fn_outputs[0])[0]
        assert abs(output.metrics["loss:sum"] + one) < 1e-4
        self._client.optim_step(RATE).result()

    def forward(self) -> None:
        """Changes nothing; sees what training did."""
        first, second = (self._client.forward([_datum(0)], "cross_entropy").result() for _ in range(2))
        self.numbers["logprobs"] = _logprobs(first.loss_fn_outputs[0])
        assert self.numbers["logprobs"] == _logprobs(second.loss_fn_outputs[0])

    def custom(self) -> None:
        """A loss of the user's own, here cross-entropy again."""

        def loss(_data: Any, logprobs: Any) -> Any:
            value = -sum(each.sum() for each in logprobs)
            return value, {"own": float(value)}

        output = self._client.forward_backward_custom([_datum(0)], loss).result()
        expected = -sum(self.numbers["logprobs"])
        assert abs(output.metrics["own"] - expected) < 1e-3
        self._client.optim_step(RATE).result()

    def losses(self) -> None:
        """The two of policy gradients that every version names."""
        old = [each - 0.1 for each in self.numbers["logprobs"]]
        datum = _datum(0, logprobs=old, advantages=[1.0, -1.0] * 4)
        for loss in ("importance_sampling", "ppo"):
            output = self._client.forward([datum], loss).result()
            self.numbers[loss] = [output.metrics["loss:sum"]]

    def failure(self) -> None:
        """It says what was wrong, and takes nothing else with it."""
        before = _logprobs(self._client.forward([_datum(0)], "cross_entropy").result().loss_fn_outputs[0])
        broken = self._client.forward_backward([_datum(0, weights=[1.0])], "cross_entropy")
        after = self._client.forward([_datum(0)], "cross_entropy")
        assert "weights" in _tried(broken.result)  # the error's class has changed over the versions
        assert _logprobs(after.result().loss_fn_outputs[0]) == before

    def save(self) -> None:
        self._paths["state"] = self._client.save_state("state").result().path
        self.numbers["after"] = self._step(self._client)

    def resume(self) -> None:
        """With the optimizer it goes on exactly as if nothing had happened."""
        client = _ready(self._service.create_training_client_from_state_with_optimizer(self._paths["state"]))
        assert self._step(client) == self.numbers["after"]

    def resume_without_optimizer(self) -> None:
        client = _ready(self._service.create_training_client_from_state(self._paths["state"]))
        before, after = self._step(client)
        assert before == self.numbers["after"][0]
        assert after != self.numbers["after"][1]

    def load(self) -> None:
        """Into a client at work."""
        self._client.load_state_with_optimizer(self._paths["state"]).result()
        assert self._step(self._client) == self.numbers["after"]

    def sampler_checkpoint(self) -> None:
        self._paths["sampler"] = self._client.save_weights_for_sampler("sampler").result().path
        client = _ready(self._service.create_sampling_client(model_path=self._paths["sampler"]))
        if hasattr(client, "get_base_model"):  # since 0.15
            assert client.get_base_model() == self._model
        self._sample(client, "sampler")
        expected = _logprobs(self._client.forward([_datum(0)], "cross_entropy").result().loss_fn_outputs[0])
        found = client.compute_logprobs(types.ModelInput.from_ints(_tokens(0))).result()
        assert found[0] is None
        assert np.abs(np.subtract(found[1:], expected)).max() < 1e-4

    def snapshot(self) -> None:
        self._sample(_ready(self._client.save_weights_and_get_sampling_client()), "snapshot")
        assert self.numbers["snapshot"] == self.numbers["sampler"]

    def base_model(self) -> None:
        self._sample(_ready(self._service.create_sampling_client(base_model=self._model)), "base")

    def lists(self) -> None:
        run = self._client.get_info().model_id
        assert run in [
            each.training_run_id for each in self._rest.list_training_runs().result().training_runs
        ]
        assert self._rest.get_training_run(run).result().lora_rank == 4
        found = self._rest.get_training_run_by_tinker_path(self._paths["state"]).result()
        assert found.training_run_id == run
        saved = {each.tinker_path for each in self._rest.list_checkpoints(run).result().checkpoints}
        assert saved == set(self._paths.values())
        everything = self._rest.list_user_checkpoints().result().checkpoints
        assert saved <= {each.tinker_path for each in everything}
        weights = self._rest.get_weights_info_by_tinker_path(self._paths["state"]).result()
        assert (weights.base_model, weights.lora_rank) == (self._model, 4)
        session = run.split(":")[0]
        assert session in self._rest.list_sessions().result().sessions
        sampler = self._rest.get_session(session).result().sampler_ids[0]
        assert self._rest.get_sampler(sampler).result().base_model == self._model

    def publish(self) -> None:
        self._rest.publish_checkpoint_from_tinker_path(self._paths["state"]).result()
        self._rest.unpublish_checkpoint_from_tinker_path(self._paths["state"]).result()

    def time_to_live(self) -> None:
        self._rest.set_checkpoint_ttl_from_tinker_path(self._paths["state"], 3600).result()

    def delete(self) -> None:
        self._rest.delete_checkpoint_from_tinker_path(self._paths["state"]).result()
        left = self._rest.list_checkpoints(self._client.get_info().model_id).result().checkpoints
        assert self._paths["state"] not in [each.tinker_path for each in left]

    def _step(self, client: Any) -> list[float]:
        """The loss before and after one step."""
        losses = []
        for _ in range(2):
            losses.append(client.forward_backward([_datum(2)], "cross_entropy").result().metrics["loss:sum"])
            client.optim_step(RATE).result()
        return losses

    def _sample(self, client: Any, name: str) -> None:
        """Drawn with a seed, so the same weights give the same tokens."""
        drawn = client.sample(
            types.ModelInput.from_ints(_tokens(3)),
            num_samples=2,
            sampling_params=types.SamplingParams(max_tokens=5, temperature=1.0, seed=3),
            include_prompt_logprobs=True,
            topk_prompt_logprobs=2,
        ).result()
        assert len(drawn.sequences) == 2
        assert all(len(each.tokens) == len(each.logprobs) for each in drawn.sequences)
        assert len(drawn.prompt_logprobs) == len(drawn.topk_prompt_logprobs) == len(_tokens(3))
        self.numbers[name] = [float(token) for each in drawn.sequences for token in each.tokens]


def _tried(step: Callable[[], Any]) -> str:
    try:
        step()
    except Exception as error:  # noqa: BLE001  # the report is of whatever goes wrong
        return f"{type(error).__name__}: {error}"[:500]
    return "ok"


def _ready(made: Any) -> Any:
    """What a creator returns: a client, or since 0.38 a future of one that also acts as the client."""
    return made.result() if hasattr(made, "result") else made


def _tokens(seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 1024, 9).tolist()


def _datum(seed: int, **given: Any) -> Any:
    """For cross_entropy with all weights 1, unless other inputs are given."""
    tokens = _tokens(seed)
    inputs = {"target_tokens": tokens[1:], **(given or {"weights": [1.0] * (len(tokens) - 1)})}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def _logprobs(output: Any) -> list[float]:
    return [float(each) for each in output["logprobs"].data]


if __name__ == "__main__":
    smoke = Smoke(sys.argv[1])
    smoke.run()
    print(json.dumps({"version": tinker.__version__, "steps": smoke.steps, "numbers": smoke.numbers}))
