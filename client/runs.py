"""From a data file and options to a run that can start: everything `loractl train` checks beforehand.

Settings that were not given come from the run's record when it is resumed, so that
`--adapter NAME --resume` alone goes on as it began.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..bus.errors import AdapterExists, AdapterNotFound, AnotherBase, CheckpointMismatch
from ..bus.layout import StateLayout
from ..bus.messages import AdapterDetails
from .adapter import Adapter
from .datums import Datum, digest_of
from .rows import BadRows, Row, read_rows
from .run_plan import LORA_SETTINGS, GivenSettings, RunPlan, RunSettings, differences, plan_run
from .run_record import RunRecord, check_same_run, read_record, write_record
from .service import Service
from .text import ModelText
from .training import TrainingRun

Say = Callable[[str], None]
_MANY_ROWS = 2000  # take some seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a person asked for. rows: the file's, when they were read already."""

    data: Path
    adapter: str
    given: GivenSettings
    resume: bool
    rows: list[Row] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyRun:
    """A run that only has to be driven. published: the version that holds its last step already."""

    adapter: Adapter
    datums: list[Datum]
    plan: RunPlan
    settings: RunSettings
    from_checkpoint: bool
    published: int | None

    def training(self, stop: Callable[[], bool]) -> TrainingRun:
        return TrainingRun(self.adapter, self.datums, self.plan, self.settings, stop)


def prepare_run(service: Service, layout: StateLayout, job: Job, say: Say) -> ReadyRun:
    """Check everything, then create the adapter or open it.

    Raises:
        AdapterExists, AdapterNotFound: it exists and `resume` was not asked for, or the reverse.
        AnotherBase: the run to resume belongs to another base model.
        CheckpointMismatch: the run that is resumed had other data or settings.
        BadRows, InvalidData: the data cannot be used.
        InvalidRequest: a setting is out of range.
    """
    found = _existing(service, job)
    earlier = None if found is None else read_record(layout.training_record(found.adapter))
    settings = job.given.over(_base_settings(found, earlier))
    rows = read_rows(job.data, settings.loss) if job.rows is None else job.rows
    datums = _datums(service.text, job.data, rows, settings.max_length, say)
    plan = plan_run(settings, len(datums))
    record = RunRecord(
        settings=settings, data=str(job.data.absolute()), data_digest=digest_of(datums), rows=len(datums)
    )
    if found is not None:
        _check_resumable(found, earlier, record, say)
    adapter = (
        service.create_adapter_like(job.adapter, settings.lora)
        if found is None
        else service.open_adapter(job.adapter)
    )
    write_record(layout.training_record(adapter.id), record)
    return ReadyRun(
        adapter=adapter,
        datums=datums,
        plan=plan,
        settings=settings,
        from_checkpoint=earlier is not None and adapter.details.checkpoint_step >= 0,
        published=_published(service, adapter.details, plan),
    )


def _existing(service: Service, job: Job) -> AdapterDetails | None:
    try:
        found = service.find(job.adapter)
    except AnotherBase:
        if job.resume:
            raise
        found = None  # a fresh one may have the name over this base
    if found is not None and not job.resume:
        raise AdapterExists(
            f"there is an adapter {job.adapter!r} already, at step {found.step}: go on with --resume, "
            f"or remove it first with `loractl adapters rm {job.adapter}`"
        )
    if found is None and job.resume:
        raise AdapterNotFound(
            f"there is no adapter {job.adapter!r} to resume: leave out --resume to start it"
        )
    return found


def _base_settings(found: AdapterDetails | None, earlier: RunRecord | None) -> RunSettings:
    if earlier is not None:
        return earlier.settings
    return RunSettings() if found is None else RunSettings.of_lora(found.lora)


def _datums(text: ModelText, file: Path, rows: list[Row], max_length: int | None, say: Say) -> list[Datum]:
    if len(rows) >= _MANY_ROWS:
        say(f"tokenizing {len(rows)} rows")
    datums, bad, cut = text.datums(rows, max_length)
    if bad:
        raise BadRows(file, bad, of=len(rows))
    if cut:
        say(f"{cut} of {len(rows)} rows are longer than {max_length} tokens and were cut")
    return datums


def _check_resumable(found: AdapterDetails, earlier: RunRecord | None, record: RunRecord, say: Say) -> None:
    if earlier is not None:
        check_same_run(found.name, earlier, record)
        return
    made_of = RunSettings.of_lora(found.lora)
    if changed := differences(made_of, record.settings, LORA_SETTINGS):
        raise CheckpointMismatch(
            f"cannot resume {found.name!r} with {'; '.join(changed)}: leave these options out, "
            "or train another adapter"
        )
    say(f"{found.name!r} was not trained by `loractl train` here before: its earlier data is not known")


def _published(service: Service, details: AdapterDetails, plan: RunPlan) -> int | None:
    """The newest version, if it holds the weights that the run would end with."""
    if details.step < plan.total_steps:
        return None
    newest = service.versions(details.name)[-1:]
    return newest[0].number if newest and newest[0].step == details.step else None
