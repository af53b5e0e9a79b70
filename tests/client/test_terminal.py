"""Words for people: one line for an error, tables for eyes and tabs for pipes."""

import io

import pytest
from loractl.bus.errors import DaemonGone, InvalidData
from loractl.client.terminal import count_text, duration_text, error_text, exit_code, show_table, size_text
from rich.console import Console


def test_an_error_is_one_line_whatever_it_quotes():
    assert str(error_text("cannot use 'a\nb\r\n\tc'")) == "error: cannot use 'a b c'"


def test_the_exit_code_says_whose_doing_it_was():
    assert exit_code(InvalidData("x")) == 2
    assert exit_code(DaemonGone("x")) == 1


def test_a_pipe_gets_tabs_and_nothing_is_cut_off():
    stream = io.StringIO()

    show_table(Console(file=stream, markup=False), ("A", "B"), [("x" * 300, "[b]")])

    assert stream.getvalue() == "A\tB\n" + "x" * 300 + "\t[b]\n"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size_text(0), "0 B"),
        (size_text(1536), "1.5 KiB"),
        (size_text(3 * 2**30), "3.0 GiB"),
        (count_text(999), "999"),
        (count_text(1_234_567), "1.2M"),
        (count_text(2_000_000_000), "2.0B"),
        (duration_text(59.9), "59 s"),
        (duration_text(3599), "59 min 59 s"),
        (duration_text(7300), "2 h 1 min"),
        (duration_text(3 * 86400), "3 days"),
    ],
)
def test_numbers_read_well(shown, expected):
    assert shown == expected
