"""The local sockets are their owner's: the directory keeps others out, and so does the kernel's word for who connects."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from loractl.bus import sockets
from loractl.bus.codec import encode
from loractl.bus.config import Config, LimitsConfig
from loractl.bus.ids import LOCAL_TENANT, RequestId
from loractl.bus.messages import Envelope, Ping
from loractl.tests.daemon.conftest import Start, short_lived_directory
from loractl.tests.daemon.real_daemon import PATIENCE_S

NOBODY = 65534
# What a peer does that the kernel let as far as the socket: it asks, and says whether anybody answered.
ASK = """
import os, sys, zmq
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
dealer = zmq.Context().socket(zmq.DEALER)
dealer.connect(sys.argv[1])
dealer.send_multipart([bytes.fromhex(sys.argv[3])])
print(bool(dealer.poll(int(sys.argv[4]))), flush=True)
os._exit(0)
"""


def answered(address: str, user: int, patience_ms: int) -> bool:
    """Whether a process of this user gets an answer."""
    ping = encode(Envelope(request=RequestId("r"), tenant=LOCAL_TENANT, body=Ping()))[0]
    command = [sys.executable, "-c", ASK, address, str(user), bytes(ping).hex(), str(patience_ms)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return said.stdout.strip() == "True"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_process_is_hung_up_on_even_where_it_reaches_the_socket(start: Start):
    daemon = start().until(trainer="ready")
    file = Path(daemon.layout.client_socket.removeprefix("ipc://"))
    # As if the file system knew no rights.
    for path in (*file.parents, file):
        if path.is_relative_to(daemon.layout.root):
            path.chmod(0o777)

    assert answered(daemon.layout.client_socket, os.getuid(), 60_000)
    assert not answered(daemon.layout.client_socket, NOBODY, 500)
    assert daemon.echo("still here") == "still here"


def test_this_libzmq_asks_the_kernel_who_connects():
    with short_lived_directory() as directory:
        address = f"ipc://{directory}/a.sock"
        context = sockets.new_context()
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.IPC_FILTER_UID, os.getuid() + 1)
        router.bind(address)
        dealer = sockets.connect_dealer(context, address, LimitsConfig(), identity=b"someone")
        dealer.send(b"hello")

        assert not router.poll(300)
        sockets.close(context, dealer, router)


@pytest.mark.parametrize("what", ["a link", "a file"])
def test_a_run_directory_that_is_somewhere_else_is_refused(start: Start, state_dir: Path, what: str):
    target = state_dir / "target"
    target.mkdir()
    target.chmod(0o755)
    if what == "a link":
        (state_dir / "run").symlink_to(target)
    else:
        (state_dir / "run").write_text("")

    daemon = start()

    assert daemon.wait() == 2
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_run_directory_of_another_user_is_refused(start: Start, state_dir: Path):
    (state_dir / "run").mkdir()
    shutil.chown(state_dir / "run", NOBODY)

    daemon = start()

    assert daemon.wait() == 2
    assert "belongs to another user" in daemon.stderr()


def test_what_a_daemon_writes_is_for_its_user_alone(start: Start, config: Config):
    daemon = start().until(trainer="ready")
    daemon.echo("hello")

    root = Path(config.state_dir)
    ours = [path for path in root.rglob("*") if path.name not in ("stderr", "test-config.json")]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in ours if path.is_file()} == {0}
    assert root / "journal.sqlite" in ours
