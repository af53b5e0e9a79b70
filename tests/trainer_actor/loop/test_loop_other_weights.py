"""A trainer that starts on other weights under the same name: what was trained on the first ones waits."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loractl.bus.ids import TenantId
from loractl.bus.messages import (
    AdapterList,
    CheckpointSaved,
    ListAdapters,
    LoadCheckpoint,
    RecoverAdapter,
    SaveCheckpoint,
    StateLoaded,
)
from loractl.tests.trainer_actor.loop.harness import Office, create, start, stop
from safetensors.torch import load_file, save_file

BROKER = TenantId("(broker)")


def test_what_was_saved_over_other_weights_of_the_same_name_is_refused_with_words(
    open_office: Callable[..., Office], loop_model: Path, tmp_path: Path
) -> None:
    office = open_office()
    first_config = office.config
    trainer, _ = start(office)
    poet = create(office, "poet")
    poet.seq += 1
    office.ask(SaveCheckpoint(adapter=poet.id, lane=poet.lane, seq=poet.seq, name="first"), CheckpointSaved)
    stop(office, trainer)
    other_model = Path(shutil.copytree(loop_model, tmp_path / "model"))
    [file] = other_model.glob("*.safetensors")
    weights = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, name: weights[name] * 1.01}, file, metadata={"format": "pt"})

    office.config = replace(first_config, model=replace(first_config.model, path=str(other_model)))
    trainer, ready = start(office)
    new = create(office, "new")
    load = LoadCheckpoint(adapter=new.id, lane=new.lane, seq=1, source=poet.id, name="first")

    assert ready.adapters == 0
    for refusal in (
        office.refused(load),
        office.refused(ListAdapters(name="poet")),
        office.refused(RecoverAdapter(adapter=poet.id, snapshot="", lanes=()), BROKER),
    ):
        assert refusal.code == "another_base"
        assert "base model 'tiny' has other weights here" in refusal.message
        assert "start the daemon with the model that it had" in refusal.message
    stop(office, trainer)

    office.config = first_config
    trainer, _ = start(office)
    back = create(office, "back")
    load = LoadCheckpoint(adapter=back.id, lane=back.lane, seq=1, source=poet.id, name="first")
    assert office.ask(load, StateLoaded)
    assert office.ask(ListAdapters(name="poet"), AdapterList).adapters
    stop(office, trainer)
