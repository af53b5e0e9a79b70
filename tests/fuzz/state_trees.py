"""A state directory with adapters, checkpoints, snapshots and versions, and what accidents make of one."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.layout import StateLayout
from loractl.bus.messages import LoraSpec, VersionRecord
from loractl.tests.fuzz.source import Source
from loractl.trainer_actor.checkpoints import Checkpoints
from loractl.trainer_actor.publishing import Versions
from loractl.trainer_actor.registry import open_registry
from loractl.trainer_actor.snapshots import Draft, Snapshots
from loractl.trainer_actor.windows import Window

ADAPTERS = tuple(AdapterId(f"ad-{letter * 32}") for letter in "ab")
TENANT, BASE = TenantId("ann"), "tiny 0123"
LORA = LoraSpec(rank=4, alpha=8.0, seed=1)
_NAMES = (
    "step_latest", "1", "2", "3", "99", "-1", "0", "007", "1.0", "\u0663", "9" * 19, "9" * 200, ".aside-0123", "latest", "a b",
    "ad-" + "c" * 32, "ad-" + "A" * 32, "*", "\udcff", "x" * 200,
)  # fmt: skip
_HUGE = 2**40


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"main/a": torch.full((5,), float(step)), "main/b": torch.arange(4.0).reshape(2, 2)}


def draft(adapter: AdapterId, step: int) -> Draft:
    pieces = {"main": tensors(step), "gradients": tensors(0)}
    metadata = {"step": str(step), "tokens": "3"}
    return Draft(
        adapter=adapter, step=step, lora=LORA, base=BASE, window=Window(step=step), metadata=metadata, tensors=pieces
    )  # fmt: skip


def version(adapter: AdapterId, number: int) -> VersionRecord:
    return VersionRecord(
        adapter=adapter,
        tenant=TENANT,
        name="poet",
        number=number,
        step=number,
        directory="",
        digest="",
        lora=LORA,
        modules=7,
        probe_tokens=(1, 2),
        probe_logprobs=(-1.0,),
    )


def grow(root: Path) -> None:
    """Two adapters with all that an adapter may have."""
    layout = StateLayout(root)
    registry, checkpoints, snapshots, versions = (
        open_registry(layout, BASE),
        Checkpoints(layout),
        Snapshots(layout),
        Versions(layout),
    )
    for step, adapter in enumerate(ADAPTERS, start=1):
        registry.add(registry.draft(TENANT, f"poet-{step}", LORA, now_unix_s=1.0, adapter=adapter))
        for name in ("first", "second"):
            metadata = {"step": str(step)}
            checkpoints.save(adapter, name, tensors(step), metadata, step=step, lora=LORA, base=BASE)
        snapshots.write(draft(adapter, step))
        snapshots.write(draft(adapter, step + 1))
        versions.write(version(adapter, step), "{}", b"weights")


@dataclass(frozen=True, slots=True)
class Accidents:
    """What befalls a state directory. outside: a whole one elsewhere, to which links may lead."""

    source: Source
    root: Path
    outside: Path

    def befall(self) -> None:
        for _ in range(self.source.randint(1, 4)):
            paths = sorted(self.root.rglob("*"))
            if not paths:
                return
            path = self.source.choice(paths)
            if path.is_symlink():
                path.unlink()
            elif path.is_dir():
                self._to_directory(path)
            elif _readable(path):
                self._to_file(path)

    def _to_file(self, file: Path) -> None:
        source = self.source
        match source.randrange(8):
            case 0 | 1 if file.suffix == ".json":
                self._described_otherwise(file)
            case 0 | 1 | 2:
                file.write_bytes(source.damaged(file.read_bytes()))
            case 3 if self.root / "versions" not in file.parents:  # their digests are taken at every start
                with file.open("r+b") as opened:
                    opened.truncate(source.choice((0, 1, 10, _HUGE)))
            case 4:
                file.unlink()
            case 5 if file.parent != self.root:  # see `_to_directory`
                self._linked(file)
            case 6:
                file.unlink()
                os.mkfifo(file) if source.one_in(2) else file.mkdir()
            case _:
                others = [path for path in self.root.rglob("*") if _readable(path)]
                file.write_bytes(source.choice(others).read_bytes() if others else b"")

    def _to_directory(self, directory: Path) -> None:
        source = self.source
        beside = directory.with_name(source.choice(_NAMES))
        free = not os.path.lexists(beside)
        match source.randrange(7):
            case 0 | 1 if free and self._can_be_copied(directory):
                shutil.copytree(directory, beside, symlinks=True)
            case 2 if free:
                directory.rename(beside)
            case 3:
                shutil.rmtree(directory)
            case 4 if directory.parent != self.root:  # these may lie on another disk
                shutil.rmtree(directory)
                self._link(directory)
            case 5:
                shutil.rmtree(directory)
                directory.write_bytes(b"a file")
            case _:
                place = directory / source.choice(_NAMES)
                if not os.path.lexists(place):
                    source.choice((place.mkdir, place.touch, lambda: self._link(place)))()

    def _can_be_copied(self, directory: Path) -> bool:
        paths = [path for path in directory.rglob("*") if not path.is_symlink() and not path.is_dir()]
        return all(_readable(path) for path in paths)

    def _linked(self, file: Path) -> None:
        file.unlink()
        self._link(file)

    def _link(self, path: Path) -> None:
        """To what lies at the same place elsewhere, to itself, to nothing, to what never ends."""
        same = self.outside / path.relative_to(self.root)
        path.symlink_to(
            self.source.choice((same, same, path, self.outside / "nothing", self.outside / "endless"))
        )

    def _described_otherwise(self, file: Path) -> None:
        """Another description, whole by its own account."""
        source = self.source
        try:
            tree = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            tree = None
        if not isinstance(tree, dict):
            file.write_bytes(source.json_text(source.odd()))
        elif "record" in tree and source.one_in(2):
            text = source.json_text(source.changed(tree["record"]))
            sealed = b'{"record":' + text + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}'
            file.write_bytes(sealed)
        elif (
            "digest" in tree and _readable(state := file.with_name("state.safetensors")) and source.one_in(2)
        ):
            data = source.damaged(state.read_bytes())
            state.write_bytes(data)
            tree |= {"digest": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
            file.write_text(json.dumps(tree))
        else:
            file.write_bytes(source.json_text(source.changed(tree)))


def _readable(path: Path) -> bool:
    """A file, and not one that was made as long as no memory is."""
    return path.is_file() and path.stat().st_size < _HUGE
