"""The API's own description taken at its word: whatever fits it, and much that does not, is answered.

Half of the drawn requests name things that exist, so that more than the look-up of ids is met.
"""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from loractl.tests.tinker_bridge.raw import Fields, Raw
from loractl.tests.tinker_bridge.served import MODEL, Served

schemathesis = pytest.importorskip("schemathesis", reason="it draws the requests")


@schemathesis.serializer("application/x-protobuf")
def _as_it_is(_context: Any, value: Any) -> bytes:
    """Described as bytes, and drawn as such; what is not bytes is sent as something of that kind."""
    return value if isinstance(value, bytes) else repr(value).encode()


# Of each operation and each way of drawing: requests that fit the description, and others.
EXAMPLES = 6
# The key would be gone for all that follow.
LEFT_OUT = {("delete", "/api/v1/auth/apikey/me")}


@pytest.fixture(scope="module")
def user(served):
    with Raw(served, served.key_for("drawn")) as requests:
        yield requests


@pytest.fixture(scope="module")
def known(user) -> Fields:
    """Real values of the names that paths and bodies use."""
    session = user.session()
    model = user.model(session, 0)
    path = user.do("/save_weights", {"model_id": model, "seq_id": 1, "path": "kept"})["path"]
    return {
        "session_id": session,
        "session": session,
        "model_id": model,
        "run": model,
        "segment": "weights",
        "name": "kept",
        "tinker_path": path,
        "base_model": MODEL,
        "sampling_session_id": user.sampler(session, 0),
        "sampler": f"{session}:sample:0",
    }


def operations(served: Served) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    found = [each.ok() for each in schema.get_all_operations()]
    kept = [each for each in found if (each.method, each.path) not in LEFT_OUT]
    # What ends things comes last.
    return sorted(kept, key=lambda each: each.method == "delete" or each.path.endswith("/finish"))


def test_no_request_makes_the_service_fail(served, user, known):
    asked = operations(served)
    assert len(asked) > 50

    for operation in asked:
        _draw(operation, schemathesis.GenerationMode.POSITIVE, user, known)
        # Any bytes fit a body of bytes, and any text fits a path.
        if any(body.media_type == "application/json" for body in operation.body):
            _draw(operation, schemathesis.GenerationMode.NEGATIVE, user, known)

    assert user.ok("/get_info", {"model_id": known["model_id"]})


def _draw(operation: Any, way: Any, user: Raw, known: Fields) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=way), real=st.booleans())
    def ask(case: Any, real: bool) -> None:
        if real:
            _name_real_things(case, known)
        # A poll says itself how long it waits.
        headers = {"X-API-Key": user.key, "x-stainless-read-timeout": "1"}
        answer = case.call(headers=headers)
        where = (case.method, answer.request.url, answer.request.body)
        assert answer.status_code < 500, (*where, answer.text)
        if answer.status_code >= 400 and answer.status_code != 405:
            assert answer.json()["detail"], where

    ask()


def _name_real_things(case: Any, known: Fields) -> None:
    if isinstance(case.body, dict):
        case.body.update({name: known[name] for name in case.body if name in known})
    for name in case.path_parameters or {}:
        case.path_parameters[name] = known.get(name, case.path_parameters[name])
