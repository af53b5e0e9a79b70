"""Tables for eyes: adapters fit a line each, and the details of one say the rest."""

import io
from dataclasses import replace

from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.messages import (
    ActorStatus,
    AdapterDetails,
    AdapterList,
    DaemonStatus,
    LoraSpec,
    TenantUsage,
    Usage,
)
from loractl.client.screens import show_adapter, show_adapters, show_status, show_tenants, usage_line
from rich.console import Console

WHY = "torch: the adapter trains the unembedding, which vllm cannot serve exactly"


def details() -> AdapterDetails:
    return AdapterDetails(
        adapter=AdapterId("ad-0123456789abcdef0123456789abcdef"),
        tenant=TenantId("local"),
        name="pirate-with-a-rather-long-name",
        lora=LoraSpec(rank=16, alpha=32.0, seed=0, train_attn=True, train_mlp=True, train_unembed=True),
        step=1200,
        version=3,
        checkpoint_step=1200,
        parameters=10_092_544,
        state_bytes=2**27,
        created_unix_s=0.0,
        served_by=WHY,
    )


def shown(show) -> str:
    out = io.StringIO()
    show(Console(file=out, force_terminal=True, color_system=None, width=100))
    return out.getvalue()


def test_a_list_of_adapters_has_one_line_for_each():
    text = shown(lambda console: show_adapters(console, [details(), details()]))

    assert len(text.splitlines()) == 3
    assert text.splitlines()[1].rstrip().endswith("torch")


def test_the_details_of_an_adapter_say_why_its_engine_serves_it():
    assert WHY in shown(lambda console: show_adapter(console, details(), []))


BUSY = replace(
    details(),
    phase="running",
    queued=3,
    waits_for="takes turns with 2 other adapters",
    place="device",
    open_window=True,
    row_bytes=2**20,
    usage=Usage(
        trainer_ms=2500.0,
        tokens=5000,
        operations=12,
        passes=9,
        shared_passes=7,
        steps=3,
        swaps=2,
        swapped_bytes=3 * 2**20,
        disk_ms=90_000.0,
    ),
)


def test_a_busy_adapter_says_what_it_waits_for_where_it_lies_and_what_it_took():
    lines = shown(lambda console: show_adapter(console, BUSY, [])).splitlines()

    facts = {line[:14].strip(): line[14:] for line in lines}
    assert facts["step"] == "1200, saved at 1200; gradients wait for the next one"
    assert facts["phase"] == "running, 3 operations under way"
    assert facts["waiting"] == "takes turns with 2 other adapters"
    assert facts["state"] == "on the device; takes 1.0 MiB on the device, at most 128.0 MiB elsewhere"
    assert facts["trainer time"] == "2.5 s since the trainer started"
    assert facts["disk time"] == "1 min 30 s"
    assert facts["tokens"] == "5,000, 2.0k a second of it"
    assert facts["operations"] == "12, of them 3 optimizer steps"
    assert facts["passes"] == "9, 7 of them shared with other adapters"
    assert facts["swaps"] == "2 to the device, 3.0 MiB moved both ways"


def test_an_idle_adapter_waits_for_nothing():
    text = shown(lambda console: show_adapter(console, details(), []))

    assert "waiting" not in text
    assert "phase         registered" in text


def test_everybodys_adapters_say_whose_they_are():
    text = shown(
        lambda console: show_adapters(console, [replace(details(), name="pirate")], with_tenants=True)
    )

    assert [line.split()[0] for line in text.splitlines()] == ["TENANT", "local"]


def test_each_tenants_usage_is_one_line():
    tenants = [TenantUsage(tenant=TenantId("ann"), adapters=2, usage=BUSY.usage)]

    head, line = shown(lambda console: show_tenants(console, tenants)).splitlines()

    assert head.split()[:4] == ["TENANT", "ADAPTERS", "TRAINER", "DISK"]
    assert line.split("  ")[0] == "ann"
    assert "1 min 30 s" in line
    assert line.rstrip().endswith("3.0 MiB")


def test_a_tenants_total_is_one_line():
    assert usage_line(BUSY.usage).startswith(
        "in all since the trainer started: trainer time 2.5 s; disk time 1 min 30 s; tokens 5,000"
    )


STATUS = DaemonStatus(
    daemon_version="1",
    pid=1,
    uptime_s=1.0,
    state_dir="/s",
    base_model="tiny",
    http="",
    actors=(),
    adapters=3,
    versions=0,
    last_event=0,
)


NOBODY = AdapterList(adapters=())


def test_a_status_counts_the_adapters_of_others_and_names_ones_own():
    def words(*mine: AdapterDetails) -> str:
        return shown(lambda console: show_status(console, STATUS, AdapterList(adapters=mine)))

    assert "2 adapters of other tenants" in words(details())
    assert "3 adapters of other tenants" in words()
    assert "other tenants" not in words(details(), details(), details())


def test_a_status_names_the_adapters_that_wait_for_another_base_model():
    def words(*elsewhere: str, mine: tuple[AdapterDetails, ...] = ()) -> str:
        listed = AdapterList(adapters=mine, elsewhere=elsewhere)
        return " ".join(shown(lambda console: show_status(console, STATUS, listed)).split())

    assert "no adapters yet" in words()
    assert "1 adapter waits for another base model than this daemon's: poet" in words("poet")
    assert "no adapters yet" not in words("poet")
    assert "2 adapters wait for" in words("poet", "sage", mine=(details(),))
    assert "a6, a7, …" in words(*(f"a{number}" for number in range(9)))


def test_a_status_says_who_was_given_up_and_what_to_do():
    trainer = ActorStatus(
        actor="trainer",
        role="trainer",
        phase="failed",
        pid=0,
        restarts=4,
        rss_bytes=0,
        waiting=0,
        details="was ended by SIGKILL",
    )
    sampler = replace(trainer, actor="sampler-0", role="sampler", phase="ready", details="vllm")

    text = shown(lambda console: show_status(console, replace(STATUS, actors=(trainer, sampler)), None))

    words = " ".join(text.split())
    assert "given up: was ended by SIGKILL" in words
    assert (
        "trainer given up: see `loractl daemon logs`, mend the cause and run `loractl daemon restart`"
        in words
    )


def test_a_status_says_who_may_hang_and_since_when_in_the_place_of_its_details():
    ready = ActorStatus(
        actor="trainer",
        role="trainer",
        phase="ready",
        pid=1,
        restarts=0,
        rss_bytes=0,
        waiting=0,
        details="tiny",
    )

    def words(actor: ActorStatus) -> str:
        status = replace(STATUS, actors=(actor,))
        return " ".join(shown(lambda console: show_status(console, status, NOBODY)).split())

    assert "ready 1 - 0 0 tiny" in words(ready)
    assert "no sign of life for 12 s" in words(replace(ready, silent_s=12.0))
    assert "no further with a pass for 4 min" in words(replace(ready, stuck_s=240.0, stuck_at="a pass"))


def test_a_status_tells_of_adapters_that_are_not_brought_back_and_of_those_for_another_base():
    def words(**told: int) -> str:
        status = replace(STATUS, **told)
        return " ".join(shown(lambda console: show_status(console, status, NOBODY)).split())

    assert "put off" not in words()
    assert "2 adapters cannot be brought back just now" in words(put_off=2)
    assert "another base model" not in words(put_off=2)
    assert "1 of them for another base model than this" in words(put_off=2, another_base=1)


def test_a_status_tells_of_a_disk_that_is_full_or_nearly_so_and_of_no_other():
    def words(free_mib: int) -> str:
        status = replace(STATUS, disk_free_bytes=free_mib * 2**20, disk_kept_bytes=64 * 2**20)
        return " ".join(shown(lambda console: show_status(console, status, NOBODY)).split())

    assert "disk full (63.0 MiB free, and the journal keeps 64.0 MiB" in words(63)
    assert "disk nearly full (64.0 MiB free" in words(64)
    assert "disk" not in words(128)
