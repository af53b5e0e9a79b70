"""What the commands do once their options are read. Each returns its exit code.

stdout gets data, stderr gets talk. Starting and stopping the daemon itself is `daemon.launch`'s.
"""

import contextlib
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from ..bus.config import Config
from ..bus.errors import InvalidData, LoractlError, NotSupported
from ..bus.ids import TenantId
from ..bus.layout import StateLayout
from ..bus.messages import DaemonStatus
from . import doctor, screens
from .logs import merged_log
from .peft_folders import choose_version, export_version, import_adapter, read_peft_folder
from .run_command import Talk, drive_run
from .run_record import remove_record
from .runs import Job, prepare_run
from .sampling import show_answer
from .service import SampleOptions, Service, connect
from .startup import check_same_base_model
from .terminal import EXIT_FAILED, data_console, show_json, talk_console
from .tiny_model import make_tiny_model

_LOG_LOOK_S = 0.25
_STATUS_WAIT_S = 3.0


@contextmanager
def _service(config: Config) -> Iterator[Service]:
    with connect(config=config, on_waiting=Talk(talk_console()).waiting) as service:
        yield service


def show_status(config: Config, *, as_json: bool) -> int:
    """Answered at once, also while the trainer restarts or is in a long pass: then without adapters."""
    listed = None
    with connect(config=config, patience_s=0.0) as service:
        state = service.status()
        if any(actor.role == "trainer" and actor.phase == "ready" for actor in state.actors):
            with contextlib.suppress(TimeoutError, LoractlError):
                listed = service.listed(_STATUS_WAIT_S)
    if as_json:
        adapters = screens.plain_data(listed.adapters) if listed is not None else None
        elsewhere = listed.elsewhere if listed is not None else None
        data = {"daemon": screens.plain_data(state), "adapters": adapters, "elsewhere": elsewhere}
        show_json(data_console(), data)
    else:
        screens.show_status(data_console(), state, listed)
    return 0


def show_logs(config: Config, *, follow: bool, lines: int) -> int:
    pause = threading.Event()

    def wait() -> None:
        pause.wait(_LOG_LOOK_S)

    console = data_console()
    folder = StateLayout(Path(config.state_dir)).logs
    if not any(folder.glob("*.log")):
        talk_console().print(f"no logs in {folder} yet: no daemon has run there")
    for line in merged_log(folder, last=lines, wait=wait if follow else None):
        console.print(line.text())
    return 0


def train(config: Config, job: Job, *, again: str, base_model_given: bool) -> int:
    """Train on the daemon that runs. again: the command that resumes this run."""
    console = talk_console()
    talk = Talk(console)
    with connect(config=config, on_waiting=talk.waiting) as service:
        if base_model_given:
            check_same_base_model(config, service.status())
        ready = prepare_run(service, StateLayout(Path(config.state_dir)), job, talk.say)
        return drive_run(ready, data_console(), console, resume_command=again)


def sample(config: Config, prompt: str, *, as_json: bool, **options: Unpack[SampleOptions]) -> int:
    """Continue a prompt; `-` stands for what is on stdin."""
    text = _standard_input() if prompt == "-" else prompt
    with _service(config) as service:
        stream = options.get("num_samples", 1) == 1 and not as_json
        request = service.sample_request(text, stream=stream, **options)
        show_answer(service.stream_sample(request), request, options.get("adapter"), as_json=as_json)
    return 0


def _standard_input() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidData(f"stdin is not {error.encoding} text at byte {error.start + 1}") from error


def list_adapters(config: Config, tenant: TenantId | None, *, everybody: bool, as_json: bool) -> int:
    """tenant: None for the caller's own. everybody: all tenants', which the daemon's owner may ask for."""
    with _service(config) as service:
        tenant = None if everybody else tenant or service.tenant
        tenants = [tenant] if tenant else [each.tenant for each in service.tenants()]
        own = tenant in (None, service.tenant)
        listed = service.listed_of(tenants)
    adapters = [each for found in listed for each in found.adapters]
    elsewhere = [
        name if tenant else f"{owner}/{name}"
        for owner, found in zip(tenants, listed, strict=True)
        for name in found.elsewhere
    ]
    if as_json:
        show_json(data_console(), screens.plain_data(adapters))
    elif adapters:
        screens.show_adapters(data_console(), adapters, with_tenants=tenant is None)
    elif not elsewhere:
        others = f"{tenant} has no adapters: `loractl usage` lists who has some"
        talk_console().print(screens.NO_ADAPTERS if own else others)
    if elsewhere:
        talk_console().print(screens.elsewhere_text(elsewhere))
    if tenant and (adapters or elsewhere) and not as_json:
        talk_console().print(screens.usage_line(listed[0].usage))
    return 0


def show_usage(config: Config, *, as_json: bool) -> int:
    with _service(config) as service:
        tenants = service.tenants()
    if as_json:
        show_json(data_console(), screens.plain_data(tenants))
    elif tenants:
        screens.show_tenants(data_console(), tenants)
    else:
        talk_console().print("nobody has adapters, or took anything of the trainer since it started")
    return 0


def show_adapter(config: Config, name: str, *, as_json: bool) -> int:
    with _service(config) as service:
        details, versions = service.details(name), service.versions(name)
    if as_json:
        data = {"adapter": screens.plain_data(details), "versions": screens.plain_data(versions)}
        show_json(data_console(), data)
    else:
        screens.show_adapter(data_console(), details, versions)
    return 0


def remove_adapter(config: Config, name: str) -> int:
    with _service(config) as service:
        details = service.details(name)
        service.delete_adapter(name)
    remove_record(StateLayout(Path(config.state_dir)).training_record(details.adapter))
    talk_console().print(f"removed {name}")
    return 0


def export_adapter(config: Config, name: str, directory: Path, version: int | None) -> int:
    if config.client.connect:
        raise NotSupported(
            "published files lie on the daemon's machine: export them there, or over HTTP with the Tinker SDK "
            "(save_weights_external)"
        )
    with _service(config) as service:
        record = choose_version(name, service.versions(name), version)
    export_version(record, directory)
    talk_console().print(f"exported {name} version {record.number} (step {record.step}) to {directory}")
    return 0


def import_directory(config: Config, directory: Path, name: str) -> int:
    folder = read_peft_folder(directory)
    with _service(config) as service:
        data_console().print(screens.receipt_text(import_adapter(service, name, folder)))
    return 0


def make_tiny(directory: Path, seed: int) -> int:
    with talk_console().status("making a tiny model"):
        made = make_tiny_model(directory, seed=seed)
    talk_console().print(
        f"made {made.directory}: {made.parameters:,} parameters, a vocabulary of {made.vocab_size}\n"
        f"serve it with: loractl daemon start --base-model tiny={shlex.quote(str(made.directory))}"
    )
    return 0


def run_doctor(config: Config) -> int:
    talk_console().print("trying torch and vllm, too, which takes some seconds")
    checks = doctor.examine(config, _asker(config))
    return 0 if doctor.show_checks(data_console(), checks) else EXIT_FAILED


def _asker(config: Config) -> Callable[[], DaemonStatus]:
    def ask() -> DaemonStatus:
        with connect(config=config, patience_s=0.0) as service:
            return service.status()

    return ask
