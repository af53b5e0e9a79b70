"""All that is fuzzed. Most cases go to what is quick to ask."""

from loractl.tests.fuzz.broker import BROKER
from loractl.tests.fuzz.bus_frames import BUS_FRAMES
from loractl.tests.fuzz.chat_rows import CHAT_ROWS
from loractl.tests.fuzz.directories import DIRECTORIES
from loractl.tests.fuzz.http_requests import HTTP
from loractl.tests.fuzz.key_files import KEYS
from loractl.tests.fuzz.live_daemon import DAEMON
from loractl.tests.fuzz.settings_text import SETTINGS
from loractl.tests.fuzz.subject import Subject
from loractl.tests.fuzz.weight_files import WEIGHTS
from loractl.tests.fuzz.wire_bodies import BODIES

SUBJECTS: tuple[Subject, ...] = (
    BUS_FRAMES,
    BROKER,
    DAEMON,
    BODIES,
    HTTP,
    DIRECTORIES,
    WEIGHTS,
    SETTINGS,
    CHAT_ROWS,
    KEYS,
)
