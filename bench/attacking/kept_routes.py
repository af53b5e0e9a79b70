# ruff: noqa: ARG005  (an attempt is a line: it aims at others' things, or works with one's own, or both)
"""Attempts at what is kept: runs, their checkpoints, samplers and exports."""

from .belongings import API, Ask, Attempts, Belongings, get, post

_CHECKPOINT = f"{API}/training_runs/{{run}}/checkpoints/{{segment}}/{{name}}"
ATTEMPTS: Attempts = {
    ("GET", f"{API}/training_runs/{{run}}"): (
        get(lambda it: _of_run(it, "")),
        get(lambda it: f"{API}/training_runs/{it.founding}"),
    ),
    ("GET", f"{API}/training_runs/{{run}}/checkpoints"): (get(lambda it: _of_run(it, "/checkpoints")),),
    ("POST", f"{API}/weights_info"): (
        *(
            post(f"{API}/weights_info", lambda it, mine, name=name: {"tinker_path": getattr(it, name)})
            for name in ("state", "weights", "external")
        ),
        post(
            f"{API}/weights_info",
            lambda it, mine: {
                "tinker_path": f"tinker://{mine.run}/weights/../../{it.run}/weights/{it.saved}"
            },
        ),
    ),
    ("GET", f"{API}/samplers/{{sampler}}"): (get(lambda it: f"{API}/samplers/{it.sampler}"),),
    ("DELETE", _CHECKPOINT): (
        *(
            get(lambda it, kind=kind: _saved(it, kind))
            for kind in ("weights", "sampler_weights", "external_weights")
        ),
        lambda it, mine: Ask(
            _of_run(mine, f"/checkpoints/weights/..%2f..%2f{it.run}%2fweights%2f{it.saved}")
        ),
    ),
    ("POST", _CHECKPOINT + "/publish"): (lambda it, mine: Ask(_saved(it, rest="/publish"), {}),),
    ("DELETE", _CHECKPOINT + "/publish"): (get(lambda it: _saved(it, rest="/publish")),),
    ("PUT", _CHECKPOINT + "/ttl"): (lambda it, mine: Ask(_saved(it, rest="/ttl"), {"ttl_seconds": 1}),),
    ("GET", _CHECKPOINT + "/archive"): (get(lambda it: _saved(it, rest="/archive")),),
    ("GET", _CHECKPOINT + "/external_weights_urls"): (
        get(lambda it: _saved(it, "external_weights", "/external_weights_urls")),
    ),
    ("POST", f"{API}/copy_weights"): (
        *(
            post(f"{API}/copy_weights", lambda it, mine, name=name: {"source_path": getattr(it, name)})
            for name in ("state", "weights")
        ),
        post(
            f"{API}/copy_weights",
            lambda it, mine: {"source_path": mine.state, "session_id": it.session, "model_seq_id": 5},
        ),
    ),
    # Whoever has the address may read the file, and nobody can guess one.
    ("GET", f"{API}/exports/{{signed}}/{{name}}"): (
        get(lambda it: f"{API}/exports/{it.signed[:-2]}xx/adapter_model.safetensors"),
        get(lambda it: f"{API}/exports/{it.signed}/..%2f..%2f..%2fkeys.json"),
        get(lambda it: f"{API}/exports/..%2f..%2f/keys.json"),
    ),
}


def _of_run(it: Belongings, rest: str) -> str:
    return f"{API}/training_runs/{it.run}{rest}"


def _saved(it: Belongings, kind: str = "weights", rest: str = "") -> str:
    return _of_run(it, f"/checkpoints/{kind}/{it.saved}{rest}")
