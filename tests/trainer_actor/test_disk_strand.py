"""A disk that stands still is not the loop's standing still, and shows all the same."""

import threading

from loractl.bus.pulse import Strand
from loractl.trainer_actor.disk_jobs import DiskJobs


def test_a_loop_that_waits_for_the_disk_says_that_it_lives_and_the_disk_what_it_is_at():
    strand, go_on, said = Strand(), threading.Event(), []
    begun = threading.Event()

    def alive() -> None:
        said.append(strand.busy().at)
        go_on.set()

    def write() -> str:
        begun.set()
        assert go_on.wait(30)
        return "written"

    jobs = DiskJobs(alive, strand)
    future = jobs.behind(write, "a snapshot of ad-1 on the disk")
    assert begun.wait(30)

    jobs.wait_for(future)
    jobs.close()

    assert future.result() == "written"
    assert said == ["a snapshot of ad-1 on the disk"]
    assert strand.busy() == (0.0, "")
