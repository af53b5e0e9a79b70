"""HTTP: every route that the service describes, with damaged paths, queries, headers and bodies.

Nothing is answered with a 5xx, everything is answered in time, refusals say why, and afterwards the service
is well. Half of the requests name things that exist, which grow as answers name them.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import zstandard
from loractl.tests.fuzz.bridge_stage import Answer, Asked, Service, opened
from loractl.tests.fuzz.source import ODD_TEXTS, Source
from loractl.tests.fuzz.subject import MIB, Play, Subject
from loractl.tests.fuzz.valid_bodies import JSON, PROTOBUF, pass_bodies, pass_trees, sample_trees

_EPISODE = 500
_BOMB = zstandard.compress(bytes(200 * MIB))
_TYPES = (
    b"application/json",
    b"application/x-protobuf",
    b"text/plain",
    b"",
    b"application/json; charset=\xff",
    b"multipart/form-data",
)
# Names of fields whose values, when answers say them, are worth asking about.
_TELLING = {
    "session_id": "session", "model_id": "run", "request_id": "future", "sampling_session_id": "sampler", "path": "path",
    "training_run_id": "run", "tinker_path": "path", "url": "url",
}  # fmt: skip
_NAMED = {
    "session": "session", "session_id": "session", "run": "run", "model_id": "run", "sampler": "sampler",
    "sampling_session_id": "sampler", "request_id": "future", "path": "path", "tinker_path": "path", "model_path": "path",
    "source_path": "path", "last_session_id": "session", "name": "name", "segment": "segment",
}  # fmt: skip
_MOST_KNOWN = 30


@contextmanager
def _open(directory: Path) -> Iterator[Play]:
    with opened(directory) as (service, keys):
        stage = _Stage(service, keys)
        yield stage.play


HTTP = Subject(name="http", share=160, open=_open, episode=_EPISODE, patience_s=120.0)


@dataclass
class _Stage:
    service: Service
    keys: list[str]
    known: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = {
            "name": ["first", "second"],
            "segment": ["weights", "sampler_weights"],
            "base_model": ["tiny"],
        }
        described = json.loads(self._get(b"/openapi.json").body)
        self._parts = described["components"]["schemas"]
        self._operations = [
            (method.upper(), path, operation)
            for path, operations in sorted(described["paths"].items())
            for method, operation in sorted(operations.items())
        ]
        self._protobuf = pass_bodies()
        self._begin()

    def play(self, source: Source) -> None:
        for _ in range(source.randint(1, 3)):
            asked = self._drawn(source)
            answer = self.service.ask(asked)
            _judge(asked, answer)
            self._learn(answer)
            if answer.status == 200 and self.known.get("future", [""])[-1].encode() in answer.body:
                polled = self._poll(self.known["future"][-1])
                _judge(asked, polled)
                self._learn(polled)
        assert self._get(b"/healthz").status == 200
        assert not self.service.broken, self.service.broken

    # --- what is there ---------------------------------------------------------------------------

    def _begin(self) -> None:
        """A session with a run, checkpoints and a sampler."""
        session = self._posted("create_session", tags=[], sdk_version="0.38.0")["session_id"]
        made = self._posted(
            "create_model", session_id=session, model_seq_id=0, base_model="tiny", lora_config={"rank": 8}
        )
        run = self._result(made)["model_id"]
        self._result(self._posted("save_weights", model_id=run, seq_id=1, path="first"))
        self._result(self._posted("save_weights_for_sampler", model_id=run, seq_id=2, path="second"))
        self._posted(
            "create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model="tiny"
        )

    def _posted(self, path: str, /, **body: Any) -> Any:
        headers = self._headers(self.keys[0], JSON.encode())
        asked = Asked("POST", f"/api/v1/{path}".encode(), headers=headers, body=json.dumps(body).encode())
        answer = self.service.ask(asked)
        assert answer.status == 200, answer
        self._learn(answer)
        return json.loads(answer.body)

    def _poll(self, request_id: str) -> Answer:
        headers = self._headers(self.keys[0], JSON.encode())
        body = json.dumps({"request_id": request_id}).encode()
        return self.service.ask(Asked("POST", b"/api/v1/retrieve_future", headers=headers, body=body))

    def _result(self, made: Any) -> Any:
        found = {"type": "try_again"}
        while found.get("type") == "try_again":
            found = self._posted("retrieve_future", request_id=made["request_id"])
        return found

    def _get(self, path: bytes) -> Answer:
        return self.service.ask(Asked("GET", path))

    def _learn(self, answer: Answer) -> None:
        """Remember what an answer names."""
        if answer.status != 200 or b"json" not in answer.headers.get(b"content-type", b""):
            return
        told = json.loads(answer.body)
        for name, kind in _TELLING.items():
            if isinstance(told, dict) and isinstance(value := told.get(name), str) and value:
                names = self.known.setdefault(kind, [])
                if value not in names:
                    names.append(value)
                del names[1:-_MOST_KNOWN]

    # --- requests --------------------------------------------------------------------------------

    def _drawn(self, source: Source) -> Asked:
        method, template, operation = source.choice(self._operations)
        while (method, template) == ("DELETE", "/api/v1/auth/apikey/me"):  # the key would be gone
            method, template, operation = source.choice(self._operations)
        if source.one_in(15):
            method = source.choice(("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "X" * 300))
        body, kind, encoding = self._body(source, template, operation)
        key = source.choice((*self.keys[:1] * 25, self.keys[1], "", "\xff", "tml-x", "x" * 5000))
        headers = [*self._headers(key, kind)]
        if encoding:
            headers.append((b"content-encoding", encoding))
        if source.one_in(5):
            headers.append(self._odd_header(source))
        return Asked(
            method, self._path(source, template), self._query(source, operation), tuple(headers), body
        )

    def _headers(self, key: str, kind: bytes) -> tuple[tuple[bytes, bytes], ...]:
        return ((b"x-api-key", key.encode("latin-1")), (b"content-type", kind))

    def _odd_header(self, source: Source) -> tuple[bytes, bytes]:
        name = source.choice((b"x-api-key", b"content-type", b"content-encoding", b"content-length", b"accept",
                              b"x-stainless-read-timeout", b"host", b"x-tinker-request", b"range", b"cookie", b"expect"))  # fmt: skip
        return name, source.choice(
            (
                b"",
                b"nan",
                b"-1",
                b"1e999",
                b"\xff\xfe",
                b"a" * 9000,
                b"application/x-protobuf",
                b"zstd",
                b"bytes=9-1",
            )
        )

    def _path(self, source: Source, template: str) -> bytes:
        parts = []
        for part in template.split("/"):
            if part.startswith("{"):
                parts.append(self._segment(source, part.strip("{}")))
            else:
                parts.append(part.encode())
        path = b"/".join(parts)
        if source.one_in(25):
            path = (
                b"/"
                + quote_from_bytes(source.damaged(path, (b"/", b"//", b"..", b"%", b"\x00", b"?"))).encode()
            )
        return path

    def _segment(self, source: Source, name: str) -> bytes:
        known = self.known.get(_NAMED.get(name, name), [])
        if known and not source.one_in(4):
            text = source.choice(known)
        else:
            text = source.choice(ODD_TEXTS)
        raw = text.encode("utf-8", "surrogatepass")
        return quote_from_bytes(source.damaged(raw) if source.one_in(8) else raw, safe="").encode()

    def _query(self, source: Source, operation: Mapping[str, Any]) -> bytes:
        names = [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]
        if not names or source.one_in(3):
            return b"" if not source.one_in(20) else b"&&=%zz&a[]=1&\xff"
        values = ("0", "1", "-1", "9" * 30, "nan", "", "\x00", "own", "x", "1e3", "\u0663")
        pairs = [
            f"{source.choice(names)}={quote_from_bytes(source.choice(values).encode())}" for _ in range(2)
        ]
        return "&".join(pairs).encode()

    def _body(
        self, source: Source, template: str, operation: Mapping[str, Any]
    ) -> tuple[bytes, bytes, bytes]:
        """Its bytes, their Content-Type, their Content-Encoding."""
        content = operation.get("requestBody", {}).get("content", {})
        kind = source.choice(sorted(content)) if content else JSON
        if kind == PROTOBUF and source.one_in(2):
            body = source.choice(self._protobuf)
            body = source.damaged(body, others=self._protobuf) if not source.one_in(4) else body
        else:
            kind, body = JSON, self._json(source, template, content)
        encoding = b""
        if source.one_in(12):
            encoding, body = b"zstd", zstandard.compress(body) if not source.one_in(10) else _BOMB
        if source.one_in(25):
            body = source.damaged(body)
        return body, source.choice(_TYPES) if source.one_in(20) else kind.encode(), encoding

    def _json(self, source: Source, template: str, content: Mapping[str, Any]) -> bytes:
        if template.endswith(("/forward_backward", "/forward")):
            tree = source.choice(pass_trees(source.choice(self.known["run"])))
            tree["seq_id"] = source.randint(1, 60)
        elif template.endswith("/asample"):
            tree = source.choice(sample_trees(source.choice(self.known["sampler"])))
        else:
            tree = self._example(source, content.get(JSON, {}).get("schema", {}))
        return source.json_text(tree if source.one_in(2) else source.changed(tree))

    def _example(self, source: Source, schema: Mapping[str, Any], name: str = "") -> Any:  # noqa: C901
        """What fits a schema; where the name says what is meant, of what is there."""
        if "$ref" in schema:
            schema = self._parts[schema["$ref"].rpartition("/")[2]]
        choices = schema.get("anyOf") or schema.get("oneOf")
        if choices:
            return self._example(source, source.choice(choices), name)
        if "enum" in schema or "const" in schema:
            return source.choice(schema.get("enum") or [schema["const"]])
        match schema.get("type"):
            case "object" if "properties" in schema:
                wanted = schema["properties"]
                must = schema.get("required", [])
                kept = [each for each in wanted if each in must or not source.one_in(3)]
                return {each: self._example(source, wanted[each], each) for each in kept}
            case "object":
                return {"a": 1}
            case "array":
                return [
                    self._example(source, schema.get("items", {}), name) for _ in range(source.randrange(3))
                ]
            case "integer":
                return source.randint(1, 60) if name == "seq_id" else source.choice((0, 1, 2, 8, 100))
            case "number":
                return source.choice((0.0, 0.5, 1.0))
            case "boolean":
                return source.one_in(2)
            case "null":
                return None
        known = self.known.get(_NAMED.get(name, name))
        return (
            source.choice(known)
            if known and not source.one_in(6)
            else source.choice(("x", "third", *ODD_TEXTS[:8]))
        )


def _judge(asked: Asked, answer: Answer) -> None:
    where = (
        asked.method,
        asked.path[:300],
        asked.query,
        asked.headers,
        asked.body[:500],
        answer.status,
        answer.body[:500],
    )
    # The founding API says with 500 that the work of a request failed, by whosever doing.
    failed_work = asked.path == b"/retrieve_future" and b'"status":"failed"' in answer.body
    assert 200 <= answer.status < 500 or failed_work, where
    assert b'"category":"server"' not in answer.body, where
    if b"json" in answer.headers.get(b"content-type", b"") and asked.method != "HEAD":
        told = json.loads(answer.body)
        if answer.status >= 400 and not failed_work:
            assert told["detail"], where
