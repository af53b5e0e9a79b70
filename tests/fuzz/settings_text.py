"""Settings: the file, the environment, the flags and what actors are handed, with wrong keys and values."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loractl.bus.config import Config, config_from_json, load_config
from loractl.bus.errors import InvalidConfig
from loractl.tests.fuzz.checks import check_told
from loractl.tests.fuzz.source import ODD_TEXTS, Source
from loractl.tests.fuzz.subject import Play, Subject

_SPICE = (
    b"[[",
    b"]",
    b"=",
    b'"""',
    b"'''",
    b"\n[trainer]\n",
    b"{a=",
    b"\x00",
    b"\xff",
    b"0x",
    b"1e999",
    b"nan",
)
_TEXTS = (
    *ODD_TEXTS, "auto", "none", "true", "1e3", "1_000", " 8 ", "-1", "inf", "nan", "9" * 5000, "127.0.0.1:0", "[::1]:1",
    "host:" + "9" * 5000, "tcp://127.0.0.1:1", "tcp://h:\u0661", "a=1, b=2", "a=1,a=2", "a=nan", "=", "~nobody/x", "0x10",
)  # fmt: skip


@contextmanager
def _open(directory: Path) -> Iterator[Play]:
    plain = dataclasses.asdict(load_config(state_dir=str(directory), environ={}))
    sections = {name: values for name, values in plain.items() if isinstance(values, dict)}
    yield lambda source: _read(source, directory, sections)


SETTINGS = Subject(name="settings", share=90, open=_open)


def _read(source: Source, directory: Path, sections: dict[str, dict[str, Any]]) -> None:
    state_dir: str | None = str(directory)
    environ: dict[str, str] = {}
    overrides: list[str] = []
    (directory / "loractl.toml").unlink(missing_ok=True)
    match source.randrange(5):
        case 0 | 1:
            text = _toml(source, sections)
            (directory / "loractl.toml").write_bytes(text)
        case 2:
            environ = {_variable(source, sections): _value(source) for _ in range(source.randint(1, 3))}
        case 3:
            overrides = [_override(source, sections) for _ in range(source.randint(1, 3))]
        case _:
            _check(
                lambda: config_from_json(
                    source.json_text(source.changed(sections)).decode("utf-8", "replace")
                )
            )
            return
    if source.one_in(10):
        state_dir, environ = None, {**environ, "LORACTL_STATE_DIR": _value(source)}
    if source.one_in(20):
        environ["LORACTL_CONFIG"] = _value(source)
    _check(lambda: load_config(overrides=overrides, state_dir=state_dir, environ=environ))


def _check(load: Any) -> None:
    try:
        config = load()
    except InvalidConfig as error:
        check_told(error)
        return
    assert isinstance(config, Config)
    # What is taken is handed to the actors as it is.
    assert config_from_json(config.to_json()) == config


def _toml(source: Source, sections: dict[str, dict[str, Any]]) -> bytes:
    lines = []
    for name in source.some([*sections], 3):
        lines.append(
            f"[{name}]" if not source.one_in(8) else f"[{source.choice(('x', name + '.y', '', '[t]'))}]"
        )
        lines += [
            f"{_key(source, sections[name])} = {_toml_value(source)}" for _ in range(source.randint(0, 3))
        ]
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    return source.damaged(text, _SPICE) if source.one_in(3) else text


def _toml_value(source: Source) -> str:
    deep = source.choice((3, 900, 5000))
    others = (
        "[" * deep,
        "{a=" * deep,
        "[" * deep + "]" * deep,
        "9" * 5000,
        "1e400",
        "1979-05-27",
        "'x'",
        "",
        "0b1",
        "0x" + "f" * 5000,
    )
    return source.choice((*others, repr(source.choice(_TEXTS)), str(source.odd()).lower()))


def _key(source: Source, section: dict[str, Any]) -> str:
    return (
        source.choice([*section])
        if section and not source.one_in(10)
        else source.choice(("x", '""', "a.b", "'\x00'"))
    )


def _variable(source: Source, sections: dict[str, dict[str, Any]]) -> str:
    name = source.choice([*sections])
    joint = source.choice(("__", "__", "__", "_", "."))
    return f"LORACTL_{name}{joint}{_key(source, sections[name])}".upper()


def _override(source: Source, sections: dict[str, dict[str, Any]]) -> str:
    name = source.choice([*sections])
    joint = source.choice((".", ".", ".", "", "="))
    return f"{name}{joint}{_key(source, sections[name])}{source.choice(('=', '=', '=', '', ' = '))}{_value(source)}"


def _value(source: Source) -> str:
    return source.choice(_TEXTS) if source.one_in(2) else str(source.odd())
