"""The command that proves that nobody influenced an adapter: its journal, run alone in a fresh trainer."""

import contextlib
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ..bus.client import Client
from ..bus.config import ClientConfig, Config, FairnessConfig, QuotasConfig, config_from_json
from ..bus.errors import InvalidRequest, StorageFailed
from ..bus.ids import TenantId
from ..bus.layout import StateLayout
from ..bus.messages import (
    AdapterCreated,
    CreateAdapter,
    DescribeModel,
    HistoryEntry,
    ModelDescribed,
    SaveCheckpoint,
    StateDigest,
)
from .futures import checked
from .history import Difference, Rerun
from .history_sources import copy_source, made_it
from .history_state import standing, state_digest
from .history_work import by_text, client_of, details_of, replayed, show_differing
from .terminal import EXIT_FAILED, counted, talk_console

_INSTEAD_OF_A_PROOF = "give them more before a run that is to be verified"

_WITHIN_ROUNDING = (
    "it ran with the settings that the daemon has now: what was computed with others (trainer.data_parallel, "
    "trainer.tensor_parallel, trainer.threads, trainer.pass_tokens, trainer.logits_chunk, trainer.recompute, model.dtype), on "
    "another device, or on CUDA without trainer.deterministic, comes out the same within rounding only"
)

# Of a state, in words.
_PARTS = {
    "main": "weights",
    "exp_avg": "first moments",
    "exp_avg_sq": "second moments",
    "gradients": "gradients",
}


class StartDaemon(Protocol):
    """Starts a daemon with a configuration, and stops it when the block ends."""

    def __call__(self, config: Config) -> contextlib.AbstractContextManager[None]: ...


def verify_adapter(config: Config, name: str, tenant: TenantId, start: StartDaemon) -> int:
    """Run an adapter's journal alone in a fresh trainer and compare every answer, the digest of each checkpoint that
    was saved on the way, and that of the whole state now.

    It may train meanwhile: what it does from now on is left out.
    """
    with client_of(config) as client, tempfile.TemporaryDirectory(prefix="lo") as scratch:
        details = details_of(client, name, tenant)
        now = standing(client, details.adapter, tenant)
        past = (now.entries, now.whole)
        made, source = made_it(
            client, config, details, tenant, past, None, instead=_INSTEAD_OF_A_PROOF, with_saves=True
        )
        here, there = StateLayout(Path(config.state_dir)), StateLayout(Path(scratch) / "s")
        if source is not None:
            copy_source(source, here, there)
        alone = alone_like(config_from_json(here.config.read_text(encoding="utf-8")), there.root)
        talk_console().print(f"a fresh trainer runs {counted(len(made), 'operation')} of {name} alone")
        with start(alone), Client(alone) as fresh:
            _check_same_base(client, fresh)
            # Named like no adapter whose files were copied there.
            body = CreateAdapter(name=f"alone-{secrets.token_hex(8)}", lora=details.lora)
            created = checked(fresh.submit(body, tenant=tenant).result(), AdapterCreated)
            onto = Rerun(fresh, tenant, created.details.adapter, created.lane)
            try:
                differing = replayed(client, details.adapter, tenant, made, onto)
            except StorageFailed as error:
                raise StorageFailed(
                    f"no room for what was saved on the way, in {scratch}: {error.message}; set TMPDIR to a directory with "
                    "more"
                ) from error
            parts = differing_parts(now.state, state_digest(fresh, onto.adapter, tenant, onto.lane, onto.seq))
    if (differing or parts) and source is not None and not source.surely:
        raise InvalidRequest(
            f"it cannot be told whether {name} is what it would be alone: the checkpoint that it was loaded from may "
            "have been saved anew under its name, and the journal does not say any more"
        )
    return verdict(name, made, differing, parts)


def _check_same_base(running: Client, fresh: Client) -> None:
    """Raises InvalidRequest: the daemon runs on weights that are not in the model's files any more."""
    model, now = (
        checked(each.submit(DescribeModel()).result(), ModelDescribed).model for each in (running, fresh)
    )
    if model.weights != now.weights:
        raise InvalidRequest(
            f"base model {model.name!r} has other weights in {model.path} than when the daemon started: nothing can be "
            "told on these; put back the files that it had"
        )


def differing_parts(first: StateDigest, second: StateDigest) -> list[str]:
    """Which parts of two states are not the same to the bit, in words."""
    parts = [words for piece, words in _PARTS.items() if first.pieces.get(piece) != second.pieces.get(piece)]
    counters = (first.step, first.tokens) != (second.step, second.tokens)
    return [*parts, *(["counters"] if counters else [])]


def verdict(
    name: str, made: Sequence[HistoryEntry], differing: Sequence[Difference], parts: Sequence[str]
) -> int:
    """Say it; returns the exit code. parts: of its state now that differ."""
    show_differing(differing)
    talk = talk_console()
    if differing or parts:
        state = f"its {', '.join(parts)} differ" if parts else "its state is equal"
        answers = f"{len(differing)} of {counted(len(made), 'answer')} differ{by_text(differing)}"
        talk.print(f"{name} is NOT to the bit what it would be alone: {answers}, {state}")
        talk.print(_WITHIN_ROUNDING)
        return EXIT_FAILED
    saved = sum(each.operation == SaveCheckpoint.kind for each in made)
    among = f" (of them {counted(saved, 'digest')} of what was saved)" if saved else ""
    answers = f"{counted(len(made), 'answer')}{among}"
    talk.print(
        f"{name} is to the bit what it would be alone: {answers}, and its weights, moments and gradients"
    )
    return 0


def alone_like(running: Config, state: Path) -> Config:
    """The model and trainer that a daemon runs with, and a state that nobody keeps. Of everything that is
    for others (samplers, addresses, quotas, shares) nothing, and no chaos."""
    return replace(
        running,
        state_dir=str(state),
        trainer=replace(running.trainer, keep_checkpoints=1),
        sampler=replace(running.sampler, count=0),
        daemon=replace(running.daemon, http="none", listen="", chaos=0),
        fairness=FairnessConfig(),
        quotas=QuotasConfig(queued_tokens=0, held_bytes=0),
        client=ClientConfig(),
        journal=replace(running.journal, enabled=False),
    )
