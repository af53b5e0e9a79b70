# ruff: noqa: ARG005  (an attempt is a line: it aims at others' things, or works with one's own, or both)
"""Attempts at the founding systems' own API."""

from .belongings import API, Attempts, Fields, get, post

ATTEMPTS: Attempts = {
    ("POST", "/remove_lora"): (post("/remove_lora", lambda it, mine: {"model_id": it.founding}),),
    ("DELETE", "/adapters/{model_id}"): (get(lambda it: f"/adapters/{it.founding}"),),
    ("POST", "/fwdbwd"): (post("/fwdbwd", lambda it, mine: rows(it.founding)),),
    ("POST", "/optim_step"): (post("/optim_step", lambda it, mine: _step(it.founding)),),
    ("POST", "/retrieve_future"): (post("/retrieve_future", lambda it, mine: {"request_id": it.future}),),
    **{
        ("POST", path): (
            post(path, lambda it, mine: _text(it.founding)),
            post(path, lambda it, mine: _text(it.run)),
        )
        for path in ("/sample", "/generate", f"{API}/sample")
    },
}


def rows(model: str) -> Fields:
    return {"model_id": model, "data": [{"prompt": "a", "completion": "b"}]}


def _step(model: str) -> Fields:
    return {"model_id": model, "adam_params": {"learning_rate": 9.0}}


def _text(model: str) -> Fields:
    return {"model_id": model, "prompt": "a", "sampling_params": {"max_tokens": 1}}
