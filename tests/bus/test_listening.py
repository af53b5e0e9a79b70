"""Where HTTP is served: the same port again where it can be, and a clear word where it cannot."""

from pathlib import Path

import pytest
from loractl.bus.errors import InvalidConfig, StartFailed
from loractl.bus.listening import is_open_to_others, listen, listen_as_before, url_from_here, url_of


def test_a_port_is_kept_from_one_start_to_the_next(tmp_path: Path):
    with listen_as_before(tmp_path / "http.port") as first:
        url = url_of(first)

    with listen_as_before(tmp_path / "http.port") as second:
        assert url_of(second) == url


def test_a_port_that_somebody_took_meanwhile_gives_way_to_a_free_one(tmp_path: Path):
    with (
        listen_as_before(tmp_path / "http.port") as first,
        listen_as_before(tmp_path / "http.port") as second,
    ):
        moved = url_of(second)
        assert moved != url_of(first)

    with listen_as_before(tmp_path / "http.port") as third:
        assert url_of(third) == moved


@pytest.mark.parametrize("text", ["", "port", "0", "-1", "70000", "\xff"])
def test_a_note_that_makes_no_sense_is_replaced(tmp_path: Path, text: str):
    (tmp_path / "http.port").write_text(text, encoding="latin-1")

    with listen_as_before(tmp_path / "http.port") as listening:
        port = listening.getsockname()[1]

    assert (tmp_path / "http.port").read_text() == f"{port}\n"


def test_a_note_that_cannot_be_written_does_not_stop_the_service(tmp_path: Path):
    with listen_as_before(tmp_path / "nowhere" / "http.port") as listening:
        assert url_of(listening).startswith("http://127.0.0.1:")


@pytest.mark.parametrize("http", ["", "8000", ":8000", "localhost:", "localhost:http", "localhost:70000"])
def test_an_address_of_another_form_says_which_there_are(http: str):
    with pytest.raises(InvalidConfig, match=r"HOST:PORT.*or auto, or none"):
        listen(http)


def test_a_port_in_use_and_an_address_that_is_not_ours_say_what_to_do():
    with (
        listen("127.0.0.1:0") as taken,
        pytest.raises(StartFailed, match=r"already in use; choose another --http"),
    ):
        listen(url_of(taken).removeprefix("http://"))
    with pytest.raises(StartFailed, match="choose another --http"):
        listen("192.0.2.1:0")


@pytest.mark.parametrize(
    ("url", "here", "others"),
    [
        ("http://127.0.0.1:80", "http://127.0.0.1:80", False),
        ("http://[::1]:80", "http://[::1]:80", False),
        ("http://0.0.0.0:80", "http://127.0.0.1:80", True),
        ("http://[::]:80", "http://[::1]:80", True),
        ("http://10.0.0.7:80", "http://10.0.0.7:80", True),
    ],
)
def test_an_address_tells_who_reaches_it_and_how_to_from_here(url: str, here: str, others: bool):
    assert (url_from_here(url), is_open_to_others(url)) == (here, others)
