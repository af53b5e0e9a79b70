"""Where the tests kill, so that every `crash_point` of the package is died at."""

# The broker's and its journal's, and a trainer's as `chain_actor` has them.
STAND_IN = [
    "journal.begun",
    "journal.written:2",
    "journal.committed",
    "journal.committed:5",
    "journal.told:4",
    "broker.forwarded",
    "broker.forwarded:9",
    "broker.replied:3",
    "trainer.replied:2",
    "trainer.replied:17",
    "file.written:2",
    "file.synced:2",
    "file.renamed:2",
    "snapshot.reported:3",
]
# Where the real trainer dies, and where the real bridge does, in one life of the daemon.
REAL = [
    ("file.written:2", "bridge.acknowledged:4"),
    ("file.synced:3", "futures.written:3"),
    ("file.renamed:2", "futures.committed:5"),
    ("snapshot.reported:2", ""),
    ("trainer.replied:7", "bridge.acknowledged:12"),
]
