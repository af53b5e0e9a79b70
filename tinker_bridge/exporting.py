"""save_weights_external: a run's weights as PEFT files for other programs, encrypted if that was asked for."""

from ..bus.messages import ExportWeights, Message, WeightsExported
from .age import Recipients
from .bodies import SaveExternalBody
from .calls import Operation, Place
from .checkpoints import Checkpoints, checked_ttl
from .exports import Exports
from .records import CheckpointRecord, RunRecord
from .results import Result, json_result


class SaveExternal:
    """One save. The files lie on the disk before the record speaks of them."""

    def __init__(self, body: SaveExternalBody, checkpoints: Checkpoints, exports: Exports) -> None:
        self._body = body
        self._checkpoints = checkpoints
        self._exports = exports
        self._run: RunRecord | None = None
        self._to: Recipients | None = None
        self._reserved = ""
        self._token = ""

    def build(self, run: RunRecord, place: Place) -> Operation:
        checked_ttl(self._body.ttl_seconds)
        self._checkpoints.check_free(run, "external", self._body.path)
        self.take_up(run, place)
        return ExportWeights(adapter=place.adapter, lane=place.lane, seq=place.seq)

    def take_up(self, run: RunRecord, _place: Place) -> None:
        if self._body.age_encryption_recipients is not None:
            self._to = Recipients(self._body.age_encryption_recipients)
        self._run = run
        self._reserved = self._checkpoints.reserve(run, "external", self._body.path)

    async def finish(self, answer: Message, made_by: str) -> Result:
        assert isinstance(answer, WeightsExported)
        assert self._run is not None
        # The record is written last: where there is one, so are its files.
        record = self._checkpoints.made(self._run, "external", self._body.path, made_by)
        record = record or await self._write(self._run, answer, made_by)
        return json_result(
            {"type": "save_weights_external", "path": record.id, "size_bytes": record.size_bytes}
        )

    async def _write(self, run: RunRecord, answer: WeightsExported, made_by: str) -> CheckpointRecord:
        self._token = self._exports.begin(made_by)
        files = {
            "adapter_config.json": memoryview(answer.config_json.encode()),
            "adapter_model.safetensors": answer.safetensors.data,
        }
        size_bytes = await self._exports.write(run.tenant, self._token, files, self._to)
        return self._checkpoints.add(
            run,
            "external",
            self._body.path,
            ttl_s=self._body.ttl_seconds,
            user_metadata={},
            token=self._token,
            size_bytes=size_bytes,
            made_by=made_by,
        )

    def close(self) -> None:
        self._checkpoints.release(self._reserved)
        self._exports.end(self._token)
