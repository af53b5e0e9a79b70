"""Plays a schedule: sends everything as its clients would, and says who is not as if alone."""

from typing import assert_never

from loractl.tests.trainer_actor.schedules.alone import Lives
from loractl.tests.trainer_actor.schedules.client import Client, Outcome
from loractl.tests.trainer_actor.schedules.schedule import Burst, Move, Pause, Restart, Schedule
from loractl.tests.trainer_actor.schedules.trainers import Stage


def run(schedule: Schedule, stage: Stage, lives: Lives) -> Outcome:
    for track in schedule.tracks:
        for life in track.lives:
            lives.alone(life)  # now, so that nobody waits for it later
    outcome = Outcome()
    clients = [Client(stage, lives, track, outcome) for track in schedule.tracks]
    for client, request in [(client, client.ask_for_birth()) for client in clients]:
        client.born(request)
    for move in schedule.moves:
        _make(move, stage, clients)
    while sum(client.send(2, "in order") for client in clients):
        pass  # until none has anything left
    for client in clients:
        client.end()
    return outcome


def _make(move: Move, stage: Stage, clients: list[Client]) -> None:
    match move:
        case Burst(track=track, count=count, manner=manner):
            clients[track].send(count, manner)
        case Pause(track=track):
            clients[track].settle()
        case Restart():
            stage.restart()
            for client in clients:
                client.recover()
        case _:
            assert_never(move)
