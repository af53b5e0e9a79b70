"""Settings as the environment gives them: mistakes are told with the name that was meant."""

import re
from pathlib import Path

import pytest
from loractl.bus.config import Config, config_from_json, hub_cache, load_config, subprocess_environment
from loractl.bus.errors import InvalidConfig


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("LORACTL_STATEDIR", "LORACTL_STATE_DIR"),
        ("LORACTL_STATE_DIRECTORY", "LORACTL_STATE_DIR"),
        ("LORACTL_CONFIGS", "LORACTL_CONFIG"),
        ("LORACTL_TRAINER_SLOTS", "LORACTL_TRAINER__SLOTS"),
        ("LORACTL_TRAINER__SLOT", "LORACTL_TRAINER__SLOTS"),
    ],
)
def test_a_misspelt_variable_is_told_the_nearest(tmp_path: Path, variable: str, meant: str):
    with pytest.raises(InvalidConfig, match=f"no environment variable {variable}; the nearest is {meant}$"):
        load_config(state_dir=str(tmp_path), environ={variable: "1"})


def test_a_variable_sets_the_key_of_its_name(tmp_path: Path):
    config = load_config(state_dir=str(tmp_path), environ={"LORACTL_TRAINER__SLOTS": "3"})

    assert config.trainer.slots == 3


@pytest.mark.parametrize(
    ("http", "served"),
    [("", False), ("none", False), ("auto", True), ("127.0.0.1:0", True), ("[::1]:80", True)],
)
def test_http_is_off_for_programs_unless_they_ask_for_it(tmp_path: Path, http: str, served: bool):
    config = load_config(state_dir=str(tmp_path), environ={}, overrides=[f"daemon.http={http}"])

    assert config.daemon.serves_http is served
    assert not Config().daemon.serves_http


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trainer.slots=0", "trainer.slots must be at least 1"),
        ("trainer.host_bytes=0", "trainer.host_bytes must be at least 1"),
        ("trainer.gather_s=-1", "trainer.gather_s is -1.0: it must be a finite number and not negative"),
        ("quotas.wait_s=nan", "quotas.wait_s is nan: it must be a finite number"),
        ("fairness.quantum_ms=inf", "fairness.quantum_ms is inf: it must be a finite number"),
        ("daemon.niceness=20", "daemon.niceness must lie from 0 to 19"),
        ("fairness.quantum_ms=0", "fairness.quantum_ms must lie from 1e-06 to 1e+06"),
        ("fairness.weights=alice=1e-320", "alice has 1e-320; it must lie from 1e-06 to 1e+06"),
        ("fairness.weights=alice=1e308", "alice has 1e308; it must lie from 1e-06 to 1e+06"),
        ("fairness.weights=alice=1, alice=2", "alice is named twice"),
        ("fairness.priorities=alice", "is not NAME=NUMBER"),
        ("fairness.priorities=alice=nan", "is not NAME=NUMBER"),
    ],
)
def test_a_number_with_which_nobody_could_be_served_is_refused(tmp_path: Path, setting: str, said: str):
    with pytest.raises(InvalidConfig, match=re.escape(said)):
        load_config(state_dir=str(tmp_path), environ={}, overrides=[setting])


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, Path("/a")),
        ({"HUGGINGFACE_HUB_CACHE": "/a", "HF_HOME": "/b"}, Path("/a")),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, Path("/b/hub")),
        ({"XDG_CACHE_HOME": "/c"}, Path("/c/huggingface/hub")),
        ({}, Path.home() / ".cache/huggingface/hub"),
    ],
)
def test_the_hub_cache_is_where_hugging_face_libraries_look(environ: dict[str, str], found: Path):
    assert hub_cache(environ) == found


@pytest.mark.parametrize(
    "text",
    ["trainer = " + "[" * 5000, f"[trainer]\nslots = {'9' * 5000}", f"[trainer]\nslots = 0x{'f' * 5000}"],
    ids=["nested", "long", "long in hex"],
)
def test_a_file_that_claims_too_much_is_refused(tmp_path: Path, text: str):
    (tmp_path / "loractl.toml").write_text(text)

    with pytest.raises(InvalidConfig):
        load_config(state_dir=str(tmp_path), environ={})


@pytest.mark.parametrize("directory", ["~nobody-of-this-name/x", "x" * 5000, "a\x00b"])
def test_a_state_directory_that_cannot_be_is_refused(directory: str):
    with pytest.raises(InvalidConfig, match="cannot be the state directory"):
        load_config(environ={"LORACTL_STATE_DIR": directory})


@pytest.mark.parametrize("text", ["", "[1]", "[" * 5000, '{"sampler": {"count": "x"}}', '{"sampler": 1}'])
def test_what_actors_are_handed_is_settings_or_refused(text: str):
    with pytest.raises(InvalidConfig):
        config_from_json(text)


@pytest.mark.parametrize(
    ("told", "tells"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=3", "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_the_daemons_processes_ask_for_large_pages_unless_the_user_says_something_about_them(
    monkeypatch: pytest.MonkeyPatch, told: str | None, tells: str
):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if told is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", told)

    assert subprocess_environment({})["GLIBC_TUNABLES"] == tells
