"""The walk over HTTP: all routes with another's ids, and whether the owner noticed."""

import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import httpx

from .belongings import API, Ask, Belongings, Fields, nobodys
from .kinds import Tried
from .routes import ATTEMPTS, LISTS
from .scene import ATTACKER, MODEL, OWNER, Scene
from .work_routes import one_pass

_PATIENCE_S = 60
# Ids that are drawn anew for each answer.
_DRAWN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}|[0-9a-f]{40,}")
# What is said of an address that leads nowhere repeats it, cut to a length.
_ADDRESS = re.compile(r"there is nothing at '[^']*'")


def application_routes(routes: Iterable[Any]) -> set[tuple[str, str]]:
    """(method, path) of all that an application answers. HEAD is GET without its body."""
    return {(method, route.path) for route in routes for method in route.methods - {"HEAD"}}


class Person:
    """Somebody with a key."""

    def __init__(self, scene: Scene, key: str) -> None:
        self.http = httpx.Client(base_url=scene.url, headers={"X-API-Key": key}, timeout=_PATIENCE_S)

    def send(self, method: str, ask: Ask) -> httpx.Response:
        """Send it; where it starts work, the answer is the work's result."""
        answer = self.http.request(method, ask.path, json=ask.body, params=ask.query)
        if not ask.works or answer.status_code != 200:
            return answer
        return self.result(answer.json()["request_id"])

    def post(self, path: str, body: Fields) -> Fields:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        fields: Fields = answer.json()
        return fields

    def result(self, future: str) -> httpx.Response:
        while True:
            answer = self.http.post(f"{API}/retrieve_future", json={"request_id": future})
            if answer.status_code != 200 or answer.json().get("type") != "try_again":
                return answer

    def work(self, path: str, body: Fields) -> Fields:
        fields: Fields = self.result(self.post(path, body)["request_id"]).json()
        assert "error" not in fields, (path, fields)
        return fields


def made(person: Person) -> Belongings:
    """One of everything that can be owned."""
    it = nobodys()
    session = person.post(f"{API}/create_session", {"sdk_version": "0.38.0", "project_id": it.project})[
        "session_id"
    ]
    new = {"session_id": session, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 2}}
    run = person.work(f"{API}/create_model", new)["model_id"]
    it = Belongings(session, run, "", f"{session}:sample:0", "", it.saved, it.project, "")
    future = person.post(f"{API}/forward_backward", one_pass(it, "forward_backward_input"))["request_id"]
    person.result(future)
    saves = ("save_weights", "save_weights_for_sampler", "save_weights_external")
    for seq, route in enumerate(saves, start=2):
        person.work(f"{API}/{route}", {"model_id": run, "seq_id": seq, "path": it.saved})
    sampler = {"session_id": session, "sampling_session_seq_id": 0, "base_model": MODEL}
    person.post(f"{API}/create_sampling_session", sampler)
    founding = person.post("/add_lora", {"name": f"lora-{secrets.token_hex(2)}", "rank": 2})["model_id"]
    urls = person.http.get(
        f"{API}/training_runs/{run}/checkpoints/external_weights/{it.saved}/external_weights_urls"
    )
    signed = next(iter(urls.json()["urls"].values())).split("/exports/")[1].split("/")[0]
    return Belongings(session, run, future, it.sampler, founding, it.saved, it.project, signed, next_seq=5)


def walk(scene: Scene) -> Iterator[Tried]:
    """Try everything; the last one says whether what the owner has is as it was."""
    owner, attacker = Person(scene, scene.keys[OWNER]), Person(scene, scene.keys[ATTACKER])
    it, mine = made(owner), made(attacker)
    before = _state(owner, it)
    for (method, path), tries in ATTEMPTS.items():
        for number, each in enumerate(tries, start=1):
            what = f"http {method} {path}"
            yield _attempt(
                attacker,
                method,
                what,
                f"way {number}",
                (each(it, mine), it),
                (each(each_nobody := nobodys(), mine), each_nobody),
                mine,
            )
    for (method, path), tries in LISTS.items():
        for number, each in enumerate(tries, start=1):
            text = attacker.send(method, each(it, mine)).text
            leaked = tuple(word for word in it.words() if word in text)
            yield Tried(
                f"http {method} {path}", f"list {number}", "nothing of the owner's", not leaked, leaked
            )
    after = _state(owner, it)
    yield Tried(
        "what the owner has", "compared", "as it was" if after == before else "changed", after == before, ()
    )


def _attempt(
    attacker: Person,
    method: str,
    what: str,
    how: str,
    aimed: tuple[Ask, Belongings],
    missed: tuple[Ask, Belongings],
    mine: Belongings,
) -> Tried:
    answers = []
    for ask, things in (aimed, missed):
        answer = attacker.send(method, ask)
        answers.append((answer.text, _without(f"{answer.status_code} {answer.text}", things, mine)))
    (text, first), (_, second) = answers
    asked = f"{aimed[0]}"
    leaked = tuple(word for word in aimed[1].words() if word in text and word not in asked)
    return Tried(what, how, first, first == second and not first.startswith("5"), leaked)


def _without(answer: str, it: Belongings, mine: Belongings) -> str:
    for word in sorted((*it.words(), it.run, it.sampler, *mine.words()), key=len, reverse=True):
        answer = answer.replace(word, "…")
    return _DRAWN.sub("…", _ADDRESS.sub("there is nothing at '…'", answer))


def _state(owner: Person, it: Belongings) -> list[str]:
    """All that the owner is told of what they have."""
    paths = (
        f"{API}/training_runs",
        f"{API}/checkpoints",
        f"{API}/sessions/{it.session}",
        f"{API}/samplers/{it.sampler}",
        f"{API}/training_runs/{it.run}/checkpoints",
        "/adapters",
    )
    told = [owner.http.get(path).text for path in paths]
    return [*told, owner.result(it.future).text]
