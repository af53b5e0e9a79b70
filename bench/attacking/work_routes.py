# ruff: noqa: ARG005  (an attempt is a line: it aims at others' things, or works with one's own, or both)
"""Attempts at the routes that work for somebody: sessions, training, sampling, futures."""

import secrets
from typing import Any

from .belongings import API, Ask, Attempts, Belongings, Fields, get, post
from .founding_routes import rows
from .scene import MODEL

IDS = [5, 6, 7, 8]
ATTEMPTS: Attempts = {
    ("POST", f"{API}/session_heartbeat"): (
        post(f"{API}/session_heartbeat", lambda it, mine: {"session_id": it.session}),
    ),
    ("POST", f"{API}/sessions/{{session}}/finish"): (
        lambda it, mine: Ask(f"{API}/sessions/{it.session}/finish", {}),
    ),
    ("GET", f"{API}/sessions/{{session}}"): (get(lambda it: f"{API}/sessions/{it.session}"),),
    ("PUT", f"{API}/sessions/{{session}}/project"): (
        lambda it, mine: Ask(f"{API}/sessions/{it.session}/project", {"project_id": "mine"}),
    ),
    ("GET", f"{API}/sessions/{{session}}/trace_export"): (
        get(lambda it: f"{API}/sessions/{it.session}/trace_export"),
    ),
    ("POST", f"{API}/create_model"): (
        post(
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
        post(
            f"{API}/load_weights",
            lambda it, mine: {
                "session_id": mine.session,
                "model_seq_id": _number(),
                "path": it.state,
                "optimizer": True,
            },
            works=True,
        ),
        post(
            f"{API}/load_weights",
            lambda it, mine: {
                "session_id": mine.session,
                "model_seq_id": _number(),
                "path": it.weights,
                "optimizer": False,
            },
            works=True,
        ),
        post(f"{API}/load_weights", lambda it, mine: _numbered(it, path=mine.state, optimizer=True)),
        post(
            f"{API}/load_weights",
            lambda it, mine: {
                "session_id": it.session,
                "model_seq_id": 1,
                "path": mine.state,
                "optimizer": True,
            },
        ),
    ),
    ("POST", f"{API}/get_info"): (post(f"{API}/get_info", lambda it, mine: {"model_id": it.run}),),
    ("POST", f"{API}/forward_backward"): (
        post(f"{API}/forward_backward", lambda it, mine: one_pass(it, "forward_backward_input")),
        post(f"{API}/forward_backward", lambda it, mine: {**rows(it.founding), "seq_id": it.next_seq}),
    ),
    ("POST", f"{API}/forward"): (post(f"{API}/forward", lambda it, mine: one_pass(it, "forward_input")),),
    ("POST", f"{API}/optim_step"): (
        post(f"{API}/optim_step", lambda it, mine: _numbered(it, adam_params={"learning_rate": 9.0})),
    ),
    ("POST", f"{API}/save_weights"): (
        post(f"{API}/save_weights", lambda it, mine: _numbered(it, path=it.saved, overwrite=True)),
    ),
    ("POST", f"{API}/save_weights_for_sampler"): (
        post(f"{API}/save_weights_for_sampler", lambda it, mine: _numbered(it, path="theirs")),
        post(
            f"{API}/save_weights_for_sampler",
            lambda it, mine: _numbered(it, sampling_session_seq_id=1),
        ),
    ),
    ("POST", f"{API}/save_weights_external"): (
        post(f"{API}/save_weights_external", lambda it, mine: _numbered(it, path="theirs")),
    ),
    ("POST", f"{API}/create_sampling_session"): (
        post(
            f"{API}/create_sampling_session",
            lambda it, mine: {"session_id": it.session, "sampling_session_seq_id": 9, "base_model": MODEL},
        ),
        post(
            f"{API}/create_sampling_session",
            lambda it, mine: {
                "session_id": mine.session,
                "sampling_session_seq_id": _number(),
                "model_path": it.weights,
            },
        ),
        post(
            f"{API}/create_sampling_session",
            lambda it, mine: {
                "session_id": mine.session,
                "sampling_session_seq_id": _number(),
                "model_path": it.state,
            },
        ),
    ),
    ("POST", f"{API}/join_sampling_session"): (
        post(f"{API}/join_sampling_session", lambda it, mine: {"sampling_session_id": it.sampler}),
    ),
    ("POST", f"{API}/asample"): (
        post(
            f"{API}/asample", lambda it, mine: {**_prompt(), "sampling_session_id": it.sampler, "seq_id": 1}
        ),
    ),
    ("POST", f"{API}/retrieve_future"): (
        post(f"{API}/retrieve_future", lambda it, mine: {"request_id": it.future}),
    ),
    ("POST", f"{API}/retrieve_futures"): (
        post(
            f"{API}/retrieve_futures",
            lambda it, mine: {"target": {"sampling_session_id": it.sampler}, "timeout": 0},
        ),
    ),
    ("POST", f"{API}/cancel_future"): (
        post(f"{API}/cancel_future", lambda it, mine: {"request_id": it.future}),
    ),
}


def _tensor(values: list[Any], dtype: str) -> Fields:
    return {"data": values, "dtype": dtype, "shape": [len(values)]}


def one_pass(it: Belongings, name: str) -> Fields:
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


def _number() -> int:
    return secrets.randbelow(10**9)
