"""What becomes of a version that an engine takes and that then turns out to be wrong."""

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from loractl.bus.errors import NotFinite
from loractl.bus.messages import Message, VersionReleased, VersionServed
from loractl.sampler_actor.engine import key_of
from loractl.sampler_actor.hosts import Engines
from loractl.sampler_actor.library import Library
from loractl.sampler_actor.torch_engine import TorchEngine
from loractl.tests.sampler_actor.tiny import ALICE, CONTEXT, engine_settings, make_version
from safetensors.torch import load_file, save_file


def test_a_version_whose_logits_are_not_finite_leaves_nothing_in_its_engine(tiny_model, tmp_path, run):
    record = make_version(tiny_model, tmp_path / "v", adapter=ALICE, number=1, rank=4, seed=1)
    file = Path(record.directory) / "adapter_model.safetensors"
    save_file({name: tensor.fill_(1e19) for name, tensor in load_file(file).items()}, file)
    record = replace(record, digest=hashlib.sha256(file.read_bytes()).hexdigest())
    engine = TorchEngine(engine_settings(tiny_model))
    reports: list[Message] = []

    async def load_then_retire() -> bool:
        engines = Engines(lambda _: engine, choice="torch", vllm_missing="", places=1, on_lost=lambda _: None)
        async with asyncio.TaskGroup() as group:
            library = Library(
                engines,
                actor="sampler-0",
                context_tokens=CONTEXT,
                max_loaded=1,
                tolerance=0.25,
                spawn=group.create_task,
                report=reports.append,
                ask=lambda: None,
            )
            library.published(record)
            with pytest.raises(NotFinite):
                async with library.pinned(key_of(record)), library.loaded(key_of(record)):
                    pass
            library.retired(key_of(record))
        assert engine._model is not None
        held = engine._model.lora.holds(key_of(record))
        await engines.close()
        return held

    assert run(load_then_retire()) is False
    assert [type(report) for report in reports] == [VersionServed, VersionReleased]
