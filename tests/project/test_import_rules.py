"""The layout and import rules, as tests: folders meet as messages, heavy libraries have one door each."""

import ast
import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from loractl.bus import settings

ROOT = Path(__file__).resolve().parents[2]
ACTORS = ("daemon", "trainer_actor", "sampler_actor", "tinker_bridge")
FOLDERS = (*ACTORS, "bus", "client")
MAY_IMPORT = {
    "bus": set(),
    **{actor: {"bus"} for actor in ACTORS},
    "client": {"bus"},
    "cli": {*FOLDERS},
}


def routes() -> set[str]:
    """The bridge's routes, one file a subject."""
    return {str(file.relative_to(ROOT)) for file in (ROOT / "tinker_bridge/routes").glob("*.py")}


# The only files that may import each library.
DOORS = {
    "zmq": {
        "bus/sockets.py",
        "bus/curve_sockets.py",
        "bus/client.py",
        "bus/async_client.py",
        "bus/actor_link.py",
        "bus/async_actor_link.py",
        "daemon/loop.py",
        "daemon/outbox.py",
    },
    "click": {"cli.py", "client/access_commands.py", "client/adapter_commands.py", "client/options.py"},
    "fastapi": {"tinker_bridge/app.py", *routes()},
    "vllm": {"sampler_actor/vllm_engine.py"},
    "megatron": {"trainer_actor/backbone.py", "trainer_actor/lora.py", "trainer_actor/tensor_group.py"},
    "sqlite3": {
        "bus/sqlite_file.py",
        "tinker_bridge/store.py",
        "tinker_bridge/future_table.py",
        "daemon/journal/tables.py",
    },
    "google": {"tinker_bridge/wire/tinker_pb2.py", "tinker_bridge/wire/protobuf.py"},
    "zstandard": {"tinker_bridge/wire/compression.py"},
    "pyrage": {"tinker_bridge/age.py"},
    "pickle": set(),
}


def sources() -> list[Path]:
    files = [ROOT / "cli.py", ROOT / "__init__.py"]
    for folder in FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    return files


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Every import as (relative level, dotted name); `from . import x` counts as `x`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield 0, name.name
        elif isinstance(node, ast.ImportFrom):
            if node.module is None:
                for name in node.names:
                    yield node.level, name.name
            else:
                yield node.level, node.module


def owner(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sources(), ids=lambda f: str(f.relative_to(ROOT)))
def test_folders_meet_only_through_the_bus(file: Path) -> None:
    if file.name == "__init__.py" and file.parent == ROOT:
        return
    depth = len(file.relative_to(ROOT).parts)

    for level, name in imports(file):
        top = name.split(".")[0]
        if level == 0:
            assert top not in FOLDERS, f"{file}: write a relative import instead of `import {name}`"
            assert top != "loractl", f"{file}: inside the package, imports are relative"
        elif level == depth and top in FOLDERS and top != owner(file):
            assert top in MAY_IMPORT[owner(file)], f"{file}: {owner(file)} may not import {top}"


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_library_has_its_door(library: str) -> None:
    users = {
        str(file.relative_to(ROOT))
        for file in sources()
        for level, name in imports(file)
        if level == 0 and name.split(".")[0] == library
    }

    assert users <= DOORS[library]


def test_the_environment_is_read_only_by_config() -> None:
    readers = {
        str(file.relative_to(ROOT))
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in {"environ", "getenv", "putenv"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }

    assert readers <= {"bus/config.py"}


def test_every_folder_of_the_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = set(project["tool"]["setuptools"]["packages"])

    found = {"loractl"} | {
        ".".join(("loractl", *file.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("__init__.py")
    }

    assert declared == found


def test_only_the_command_line_lies_beside_the_folders() -> None:
    assert {file.name for file in ROOT.glob("*.py")} == {"__init__.py", "cli.py"}


@pytest.mark.parametrize("file", sources(), ids=lambda f: str(f.relative_to(ROOT)))
def test_files_stay_readable_in_one_sitting(file: Path) -> None:
    lines = file.read_text().count("\n")

    assert lines <= 320


def test_every_setting_has_its_word() -> None:
    plain = {"level"}  # of a log: its values say it
    for section in dataclasses.fields(settings.Config):
        kind = section.type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            named = {each.name for each in dataclasses.fields(kind)} - plain
            words = {*re.findall(r"\w+", kind.__doc__ or "")}
            assert named <= words, f"{kind.__name__} does not say what {sorted(named - words)} is"
