"""A model's tokenizer under a hub name, in the layout of Hugging Face's cache: found without any hub.

The Tinker SDK and the cookbook load the tokenizer of the model that a service names. Where that name
belongs to a directory on this machine, the libraries find the tokenizer if its files lie as if they had
once been downloaded: `<cache>/models--ORG--NAME/refs/main` names a revision, whose files lie in
`snapshots/<revision>/`. Our revisions are digests of their files.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..bus.errors import InvalidData, InvalidName

# Everything that says how text becomes tokens, and nothing that holds weights.
_WANTED = (
    "config.json",
    "generation_config.json",
    "*token*.json",
    "*.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "*processor_config.json",
    "tokenization_*.py",
    "configuration_*.py",
)
# One of them holds the vocabulary.
_VOCABULARIES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.json", "vocab.txt", "tekken.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_REVISION_LENGTH = 40  # as long as the hub's own

_LLAMA_3 = "meta-llama/Llama-3"
_LLAMA_3_TOKENIZER = "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer"


def write_tokenizer_cache(name: str, directory: str | Path, cache: str | Path) -> Path:
    """Put the tokenizer of the model in `directory` into a hub cache, as the hub's `name`.

    Returns the directory of the snapshot. What is there already from the same files is left as it is;
    what an earlier call put there from others is replaced.

    Raises:
        InvalidName: the hub has no such names.
        InvalidData: the directory holds no tokenizer, the cache holds the hub's own files of that name,
            or it cannot be written.
    """
    directory, home = Path(directory), Path(cache) / f"models--{_checked(name).replace('/', '--')}"
    try:
        files = _tokenizer_files(directory)
        revision = _digest(directory, files)
        _check_ours(home)
        snapshot = home / "snapshots" / revision
        if not snapshot.is_dir():
            _copy(directory, files, snapshot)
        _point(home / "refs" / "main", revision)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidData(f"cannot copy the tokenizer in {directory} to {home}: {reason}") from error
    return snapshot


def name_that_clients_ask_for(name: str) -> str:
    """The hub name under which the SDK looks for the tokenizer of a model of this name."""
    return _LLAMA_3_TOKENIZER if name.startswith(_LLAMA_3) else name


def _checked(name: str) -> str:
    if not _HUB_NAME.fullmatch(name) or "--" in name or ".." in name:
        raise InvalidName(f"{name[:80]!r} is no hub name: write NAME or ORG/NAME, as Qwen/Qwen3-8B")
    return name


def _tokenizer_files(directory: Path) -> list[Path]:
    """Relative to the directory, in the order of their names."""
    if not (directory / "config.json").is_file():
        raise InvalidData(f"{directory} is no model directory: it has no config.json")
    if not any(next(directory.glob(pattern), None) for pattern in _VOCABULARIES):
        raise InvalidData(f"{directory} has no tokenizer: none of {', '.join(_VOCABULARIES)}")
    found = {file for pattern in _WANTED for file in directory.glob(pattern) if file.is_file()}
    return sorted(file.relative_to(directory) for file in found)


def _digest(directory: Path, files: Sequence[Path]) -> str:
    """Of the files' names, lengths and bytes."""
    digest = hashlib.sha256()
    for file in files:
        data = (directory / file).read_bytes()
        digest.update(f"{file.as_posix()}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:_REVISION_LENGTH]


def _check_ours(home: Path) -> None:
    """What was downloaded from the hub is not ours to replace: its revision is not its files' digest."""
    main = home / "refs" / "main"
    if not main.exists():
        return
    revision = main.read_text(encoding="ascii", errors="replace").strip()
    snapshot = home / "snapshots" / revision
    files = sorted(file.relative_to(snapshot) for file in snapshot.rglob("*") if file.is_file())
    if files and _digest(snapshot, files) != revision:
        raise InvalidData(f"{home} holds what was got from the hub: name another cache with --cache DIR")


def _copy(directory: Path, files: Sequence[Path], snapshot: Path) -> None:
    """Aside first: whoever finds the snapshot finds all of it."""
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=snapshot.parent, prefix=".new-") as aside:
        made = Path(aside) / snapshot.name
        for file in files:
            (made / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / file, made / file)
        made.rename(snapshot)


def _point(ref: Path, revision: str) -> None:
    ref.parent.mkdir(parents=True, exist_ok=True)
    aside = ref.with_name(f".{ref.name}.new")
    aside.write_text(revision, encoding="ascii")
    aside.replace(ref)
