"""Adapters as PEFT directories: copied out of a published version, or read in as a new adapter."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..bus.errors import CheckpointMismatch, InvalidData, VersionNotFound
from ..bus.messages import LoraSpec, Receipt, VersionRecord
from .service import Service

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj"}
_UNEMBED = {"lm_head"}
# Trained as a whole or not at all, which is how an adapter's shape can be three switches.
_GROUPS = (_ATTENTION, _MLP, _UNEMBED)
_END = 2**31


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """The two files of a PEFT LoRA adapter, and the shape that they say it has."""

    config_json: str
    safetensors: bytes
    lora: LoraSpec


def choose_version(name: str, records: list[VersionRecord], number: int | None) -> VersionRecord:
    """The version asked for, or the newest.

    Raises:
        VersionNotFound: it was never published, or is not kept any more.
    """
    if not records:
        raise VersionNotFound(f"{name!r} has no published version: `loractl train` publishes at its end")
    found = [r for r in records if number is None or r.number == number]
    if not found:
        kept = ", ".join(str(r.number) for r in records)
        raise VersionNotFound(f"{name!r} has no version {number}: these are kept: {kept}")
    return found[-1]


def export_version(record: VersionRecord, directory: Path) -> None:
    """Copy a version's PEFT files into a new or empty directory, checked by digest.

    Raises:
        InvalidData: the directory holds something, or cannot be written.
        VersionNotFound: the version was deleted meanwhile.
        CheckpointMismatch: the copy is not what was published.
    """
    source = Path(record.directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise InvalidData(f"{directory} is not empty: name a new directory")
    except OSError as error:
        raise InvalidData(f"cannot write to {directory}: {error.strerror}") from error
    try:
        _copy(source, directory, record.digest)
    except FileNotFoundError as error:
        _remove_copies(directory)
        raise VersionNotFound(
            f"version {record.number} of {record.name!r} is not kept any more: export a newer one"
        ) from error
    except OSError as error:
        _remove_copies(directory)
        raise InvalidData(f"cannot write to {directory}: {error.strerror}") from error
    except CheckpointMismatch:
        _remove_copies(directory)
        raise


def _copy(source: Path, directory: Path, digest: str) -> None:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.copyfile(source / name, directory / name)
    with (directory / WEIGHTS_FILE).open("rb") as copied:
        found = hashlib.file_digest(copied, "sha256").hexdigest()
    if found != digest:
        raise CheckpointMismatch(f"the copy of {source} has the digest {found}, not {digest} as published")


def _remove_copies(directory: Path) -> None:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        (directory / name).unlink(missing_ok=True)


def read_peft_folder(directory: Path, seed: int = 0) -> PeftFolder:
    """Read a PEFT LoRA adapter. Whether its tensors fit the base model is for the trainer to say.

    Raises:
        InvalidData: a file is missing, cannot be read, or is not a LoRA that loractl trains.
    """
    try:
        config_json = (directory / CONFIG_FILE).read_text(encoding="utf-8")
        safetensors = (directory / WEIGHTS_FILE).read_bytes()
        config = json.loads(config_json)
    except OSError as error:
        raise InvalidData(
            f"cannot read {error.filename}: {error.strerror}; is {directory} a PEFT directory?"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{directory / CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidData(f"{directory / CONFIG_FILE} holds no object")
    return PeftFolder(config_json, safetensors, lora_of(config, seed))


def import_adapter(service: Service, name: str, folder: PeftFolder) -> Receipt:
    """Make an adapter of these files, save and publish it. When that fails, no adapter is left behind."""
    adapter = service.create_adapter_like(name, folder.lora)
    try:
        adapter.import_weights(folder.config_json, folder.safetensors).result()
        adapter.save("import").result()
    except BaseException:
        service.delete_adapter(name)
        raise
    return adapter.publish().result()


def lora_of(config: Mapping[str, object], seed: int) -> LoraSpec:
    """What an adapter_config.json says about rank, alpha and targets.

    Raises:
        InvalidData: it is not a plain LoRA, or names modules that loractl does not train.
    """
    if config.get("peft_type") != "LORA":
        raise InvalidData(f"peft_type is {config.get('peft_type')!r}: only LORA adapters can be imported")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise InvalidData(f"r is {rank!r} and lora_alpha is {alpha!r}: both must be numbers")
    # JSON's are of any length. What a model takes is the trainer's to say.
    if not (abs(rank) < _END and abs(alpha) < _END):
        raise InvalidData(f"r and lora_alpha must be numbers below {_END}")
    targets = _targets(config.get("target_modules"))
    return LoraSpec(
        rank=rank,
        alpha=float(alpha),
        seed=seed,
        train_attn=bool(targets & _ATTENTION),
        train_mlp=bool(targets & _MLP),
        train_unembed=bool(targets & _UNEMBED),
    )


def _targets(value: object) -> set[str]:
    """Module names, the last part of each dotted one."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise InvalidData(f"target_modules is {value!r}: it must list the adapted modules")
    targets = {str(name).rpartition(".")[2] for name in names}
    if unknown := sorted(targets - _ATTENTION - _MLP - _UNEMBED):
        raise InvalidData(
            f"target_modules names {unknown[0]!r}: loractl trains {', '.join(sorted(_ATTENTION | _MLP | _UNEMBED))}"
        )
    for group in _GROUPS:
        if targets & group and (missing := sorted(group - targets)):
            raise InvalidData(
                f"target_modules lacks {', '.join(missing)}: loractl trains {', '.join(sorted(group))} together"
            )
    return targets
