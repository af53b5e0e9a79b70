# ruff: noqa: ARG005  (an attempt is a line: it aims at others' things, or works with one's own, or both)
"""Every route over HTTP, tried with what belongs to somebody else.

`ATTEMPTS` has an entry for each route of the application. An attempt is made twice, with another's ids and
with ids that nobody has, and the two answers have to be the same. `OPEN` are routes that name nothing of
anybody's; `LISTS` are those whose answers must hold nothing of the owner's.
"""

import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .scene import MODEL

API = "/api/v1"
Fields = dict[str, Any]
IDS = [5, 6, 7, 8]


@dataclass(frozen=True)
class Belongings:
    """What a tenant has over HTTP, or ids of what nobody has. signed: of an export's address."""

    session: str
    run: str
    future: str
    sampler: str
    founding: str
    saved: str
    project: str
    signed: str
    next_seq: int = 1

    @property
    def state(self) -> str:
        return f"tinker://{self.run}/weights/{self.saved}"

    @property
    def weights(self) -> str:
        return f"tinker://{self.run}/sampler_weights/{self.saved}"

    @property
    def external(self) -> str:
        return f"tinker://{self.run}/external_weights/{self.saved}"

    def words(self) -> tuple[str, ...]:
        return (self.session, self.future, self.founding, self.saved, self.project, self.signed)


def nobodys() -> Belongings:
    session = str(uuid.uuid4())
    return Belongings(
        session=session,
        run=f"{session}:train:0",
        future=secrets.token_hex(24) + "0",
        sampler=f"{session}:sample:0",
        founding=f"{secrets.token_hex(4)}-{secrets.token_hex(8)}",
        saved=f"saved-{secrets.token_hex(4)}",
        project=f"project-{secrets.token_hex(4)}",
        signed=secrets.token_urlsafe(48),
    )


class Ask(NamedTuple):
    """A request: its path behind the host, its JSON body or None, its query. works: answered by a future."""

    path: str
    body: Fields | None = None
    query: Fields = {}  # noqa: RUF012  (read only)
    works: bool = False


Try = Callable[[Belongings, Belongings], Ask]


def _tensor(values: list[Any], dtype: str) -> Fields:
    return {"data": values, "dtype": dtype, "shape": [len(values)]}


def _pass(it: Belongings, name: str) -> Fields:
    datum = {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": IDS[:-1]}]},
        "loss_fn_inputs": {
            "target_tokens": _tensor(IDS[1:], "int64"),
            "weights": _tensor([1.0] * 3, "float32"),
        },
    }
    return {"model_id": it.run, "seq_id": it.next_seq, name: {"data": [datum], "loss_fn": "cross_entropy"}}


def _numbered(it: Belongings, **more: Any) -> Fields:
    return {"model_id": it.run, "seq_id": it.next_seq, **more}


def _prompt() -> Fields:
    return {
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": IDS}]},
        "num_samples": 1,
        "sampling_params": {"max_tokens": 1},
    }


def _rows(model: str) -> Fields:
    return {"model_id": model, "data": [{"prompt": "a", "completion": "b"}]}


def _step(model: str) -> Fields:
    return {"model_id": model, "adam_params": {"learning_rate": 9.0}}


def _text(model: str) -> Fields:
    return {"model_id": model, "prompt": "a", "sampling_params": {"max_tokens": 1}}


def _number() -> int:
    return secrets.randbelow(10**9)


def _of_run(it: Belongings, rest: str = "") -> str:
    return f"{API}/training_runs/{it.run}{rest}"


def _saved(it: Belongings, kind: str = "weights", rest: str = "") -> str:
    return _of_run(it, f"/checkpoints/{kind}/{it.saved}{rest}")


def _post(path: str, made: Callable[[Belongings, Belongings], Fields], *, works: bool = False) -> Try:
    return lambda it, mine: Ask(path, made(it, mine), works=works)


def _get(made: Callable[[Belongings], str]) -> Try:
    return lambda it, mine: Ask(made(it))


CHECKPOINT = f"{API}/training_runs/{{run}}/checkpoints/{{segment}}/{{name}}"

# They answer without naming anything of anybody's, some of them without a key.
OPEN = frozenset(
    {
        ("GET", "/healthz"),
        ("GET", f"{API}/healthz"),
        ("GET", "/docs"),
        ("GET", "/docs/oauth2-redirect"),
        ("GET", "/redoc"),
        ("GET", "/openapi.json"),
        ("POST", f"{API}/client/config"),
        ("POST", f"{API}/client/dynamic_config"),
        ("GET", f"{API}/get_server_capabilities"),
        ("GET", f"{API}/capabilities"),
        ("GET", "/get_server_capabilities"),
        ("GET", "/loss_functions"),
        ("POST", f"{API}/telemetry"),
        ("POST", f"{API}/create_session"),
        ("POST", "/add_lora"),
        ("GET", f"{API}/auth/apikey/me"),
        # Ends the caller's own key, whatever else the request says.
        ("DELETE", f"{API}/auth/apikey/me"),
        # Answered as not supported, whatever they name.
        ("POST", f"{API}/auth/token"),
        ("POST", f"{API}/create_custom_loss"),
        ("GET", f"{API}/audit"),
        ("GET", f"{API}/billing/usage/events"),
    }
)
LISTS: Mapping[tuple[str, str], tuple[Try, ...]] = {
    ("GET", f"{API}/training_runs"): (
        lambda it, mine: Ask(f"{API}/training_runs", query={"limit": 1000, "access_scope": "accessible"}),
        lambda it, mine: Ask(f"{API}/training_runs", query={"project_id": it.project}),
    ),
    ("GET", f"{API}/checkpoints"): (lambda it, mine: Ask(f"{API}/checkpoints"),),
    ("GET", f"{API}/sessions"): (
        lambda it, mine: Ask(f"{API}/sessions", query={"access_scope": "accessible"}),
    ),
    ("POST", f"{API}/sessions/search"): (
        lambda it, mine: Ask(f"{API}/sessions/search", {"session_id": it.session}),
        lambda it, mine: Ask(f"{API}/sessions/search", {"project_ids": [it.project]}),
        lambda it, mine: Ask(f"{API}/sessions/search", {"owner": {"type": "user", "owner_urns": ["owner"]}}),
        lambda it, mine: Ask(f"{API}/sessions/search", {"owner": {"type": "accessible"}}),
    ),
    ("GET", f"{API}/billing/usage/checkpoints/current"): (
        lambda it, mine: Ask(f"{API}/billing/usage/checkpoints/current", query={"project_id": it.project}),
    ),
    ("GET", "/adapters"): (lambda it, mine: Ask("/adapters"),),
    ("GET", "/usage"): (lambda it, mine: Ask("/usage"),),
}
ATTEMPTS: Mapping[tuple[str, str], tuple[Try, ...]] = {
    ("POST", f"{API}/session_heartbeat"): (
        _post(f"{API}/session_heartbeat", lambda it, mine: {"session_id": it.session}),
    ),
    ("POST", f"{API}/sessions/{{session}}/finish"): (
        lambda it, mine: Ask(f"{API}/sessions/{it.session}/finish", {}),
    ),
    ("GET", f"{API}/sessions/{{session}}"): (_get(lambda it: f"{API}/sessions/{it.session}"),),
    ("PUT", f"{API}/sessions/{{session}}/project"): (
        lambda it, mine: Ask(f"{API}/sessions/{it.session}/project", {"project_id": "mine"}),
    ),
    ("GET", f"{API}/sessions/{{session}}/trace_export"): (
        _get(lambda it: f"{API}/sessions/{it.session}/trace_export"),
    ),
    ("POST", f"{API}/create_model"): (
        _post(
            f"{API}/create_model",
            lambda it, mine: {
                "session_id": it.session,
                "model_seq_id": 1,
                "base_model": MODEL,
                "lora_config": {"rank": 2},
            },
        ),
    ),
    ("POST", f"{API}/load_weights"): (
        _post(
            f"{API}/load_weights",
            lambda it, mine: {
                "session_id": mine.session,
                "model_seq_id": _number(),
                "path": it.state,
                "optimizer": True,
            },
            works=True,
        ),
        _post(
            f"{API}/load_weights",
            lambda it, mine: {
                "session_id": mine.session,
                "model_seq_id": _number(),
                "path": it.weights,
                "optimizer": False,
            },
            works=True,
        ),
        _post(f"{API}/load_weights", lambda it, mine: _numbered(it, path=mine.state, optimizer=True)),
        _post(
            f"{API}/load_weights",
            lambda it, mine: {
                "session_id": it.session,
                "model_seq_id": 1,
                "path": mine.state,
                "optimizer": True,
            },
        ),
    ),
    ("POST", f"{API}/get_info"): (_post(f"{API}/get_info", lambda it, mine: {"model_id": it.run}),),
    ("POST", f"{API}/forward_backward"): (
        _post(f"{API}/forward_backward", lambda it, mine: _pass(it, "forward_backward_input")),
        _post(f"{API}/forward_backward", lambda it, mine: {**_rows(it.founding), "seq_id": it.next_seq}),
    ),
    ("POST", f"{API}/forward"): (_post(f"{API}/forward", lambda it, mine: _pass(it, "forward_input")),),
    ("POST", f"{API}/optim_step"): (
        _post(f"{API}/optim_step", lambda it, mine: _numbered(it, adam_params={"learning_rate": 9.0})),
    ),
    ("POST", f"{API}/save_weights"): (
        _post(f"{API}/save_weights", lambda it, mine: _numbered(it, path=it.saved, overwrite=True)),
    ),
    ("POST", f"{API}/save_weights_for_sampler"): (
        _post(f"{API}/save_weights_for_sampler", lambda it, mine: _numbered(it, path="theirs")),
        _post(
            f"{API}/save_weights_for_sampler",
            lambda it, mine: _numbered(it, sampling_session_seq_id=1),
        ),
    ),
    ("POST", f"{API}/save_weights_external"): (
        _post(f"{API}/save_weights_external", lambda it, mine: _numbered(it, path="theirs")),
    ),
    ("POST", f"{API}/create_sampling_session"): (
        _post(
            f"{API}/create_sampling_session",
            lambda it, mine: {"session_id": it.session, "sampling_session_seq_id": 9, "base_model": MODEL},
        ),
        _post(
            f"{API}/create_sampling_session",
            lambda it, mine: {
                "session_id": mine.session,
                "sampling_session_seq_id": _number(),
                "model_path": it.weights,
            },
        ),
        _post(
            f"{API}/create_sampling_session",
            lambda it, mine: {
                "session_id": mine.session,
                "sampling_session_seq_id": _number(),
                "model_path": it.state,
            },
        ),
    ),
    ("POST", f"{API}/join_sampling_session"): (
        _post(f"{API}/join_sampling_session", lambda it, mine: {"sampling_session_id": it.sampler}),
    ),
    ("POST", f"{API}/asample"): (
        _post(
            f"{API}/asample", lambda it, mine: {**_prompt(), "sampling_session_id": it.sampler, "seq_id": 1}
        ),
    ),
    ("POST", f"{API}/retrieve_future"): (
        _post(f"{API}/retrieve_future", lambda it, mine: {"request_id": it.future}),
    ),
    ("POST", f"{API}/retrieve_futures"): (
        _post(
            f"{API}/retrieve_futures",
            lambda it, mine: {"target": {"sampling_session_id": it.sampler}, "timeout": 0},
        ),
    ),
    ("POST", f"{API}/cancel_future"): (
        _post(f"{API}/cancel_future", lambda it, mine: {"request_id": it.future}),
    ),
    ("GET", f"{API}/training_runs/{{run}}"): (
        _get(_of_run),
        _get(lambda it: f"{API}/training_runs/{it.founding}"),
    ),
    ("GET", f"{API}/training_runs/{{run}}/checkpoints"): (_get(lambda it: _of_run(it, "/checkpoints")),),
    ("POST", f"{API}/weights_info"): (
        *(
            _post(f"{API}/weights_info", lambda it, mine, name=name: {"tinker_path": getattr(it, name)})
            for name in ("state", "weights", "external")
        ),
        _post(
            f"{API}/weights_info",
            lambda it, mine: {
                "tinker_path": f"tinker://{mine.run}/weights/../../{it.run}/weights/{it.saved}"
            },
        ),
    ),
    ("GET", f"{API}/samplers/{{sampler}}"): (_get(lambda it: f"{API}/samplers/{it.sampler}"),),
    ("DELETE", CHECKPOINT): (
        *(
            _get(lambda it, kind=kind: _saved(it, kind))
            for kind in ("weights", "sampler_weights", "external_weights")
        ),
        lambda it, mine: Ask(
            _of_run(mine, f"/checkpoints/weights/..%2f..%2f{it.run}%2fweights%2f{it.saved}")
        ),
    ),
    ("POST", CHECKPOINT + "/publish"): (lambda it, mine: Ask(_saved(it, rest="/publish"), {}),),
    ("DELETE", CHECKPOINT + "/publish"): (_get(lambda it: _saved(it, rest="/publish")),),
    ("PUT", CHECKPOINT + "/ttl"): (lambda it, mine: Ask(_saved(it, rest="/ttl"), {"ttl_seconds": 1}),),
    ("GET", CHECKPOINT + "/archive"): (_get(lambda it: _saved(it, rest="/archive")),),
    ("GET", CHECKPOINT + "/external_weights_urls"): (
        _get(lambda it: _saved(it, "external_weights", "/external_weights_urls")),
    ),
    ("POST", f"{API}/copy_weights"): (
        *(
            _post(f"{API}/copy_weights", lambda it, mine, name=name: {"source_path": getattr(it, name)})
            for name in ("state", "weights")
        ),
        _post(
            f"{API}/copy_weights",
            lambda it, mine: {"source_path": mine.state, "session_id": it.session, "model_seq_id": 5},
        ),
    ),
    # Whoever has the address may read the file, and nobody can guess one.
    ("GET", f"{API}/exports/{{signed}}/{{name}}"): (
        _get(lambda it: f"{API}/exports/{it.signed[:-2]}xx/adapter_model.safetensors"),
        _get(lambda it: f"{API}/exports/{it.signed}/..%2f..%2f..%2fkeys.json"),
        _get(lambda it: f"{API}/exports/..%2f..%2f/keys.json"),
    ),
    ("POST", "/remove_lora"): (_post("/remove_lora", lambda it, mine: {"model_id": it.founding}),),
    ("DELETE", "/adapters/{model_id}"): (_get(lambda it: f"/adapters/{it.founding}"),),
    ("POST", "/fwdbwd"): (_post("/fwdbwd", lambda it, mine: _rows(it.founding)),),
    ("POST", "/optim_step"): (_post("/optim_step", lambda it, mine: _step(it.founding)),),
    ("POST", "/retrieve_future"): (_post("/retrieve_future", lambda it, mine: {"request_id": it.future}),),
    **{
        ("POST", path): (
            _post(path, lambda it, mine: _text(it.founding)),
            _post(path, lambda it, mine: _text(it.run)),
        )
        for path in ("/sample", "/generate", f"{API}/sample")
    },
}
