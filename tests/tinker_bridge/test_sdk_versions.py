"""The two ends of the range of SDK versions that this server is tested with.

`make sdk-versions` tries those between, too.
"""

import sys
from pathlib import Path

import pytest
from loractl.tests.tinker_bridge.sdk_tried import Tried, tried
from loractl.tests.tinker_bridge.served import Served
from loractl.tinker_bridge.sdk_versions import NEWEST, OLDEST, version_warning

tinker = pytest.importorskip("tinker", reason="the SDK is what is tested")

# Where requirements/install.sh puts it.
OLDEST_SDK = Path(sys.prefix) / "tinker-oldest"


def text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@pytest.fixture(scope="module")
def newest(served: Served) -> Tried:
    return tried(served)


def test_the_installed_sdk_is_the_newest_of_the_range():
    assert tinker.__version__ == text(NEWEST)


def test_versions_outside_the_range_are_told_so():
    assert version_warning(text(OLDEST)) is version_warning(text(NEWEST)) is None
    assert version_warning("0.5.9") is not None
    assert version_warning("99.0.0") is not None
    assert version_warning("a build of my own") is None


def test_the_newest_version_does_everything(newest: Tried):
    assert newest.version == text(NEWEST)
    assert newest.problems == newest.absent == []


def test_the_oldest_version_does_what_it_can_and_gets_the_same_numbers(served: Served, newest: Tried):
    if not OLDEST_SDK.exists():
        pytest.skip(f"needs tinker {text(OLDEST)} in {OLDEST_SDK}: requirements/install.sh puts it there")

    oldest = tried(served, OLDEST_SDK)

    assert oldest.version == text(OLDEST)
    assert oldest.problems == []
    assert oldest.differences(newest) == []
