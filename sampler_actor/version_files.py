"""The files of a published version, checked before an engine reads them."""

import hashlib
from pathlib import Path

from ..bus.errors import PublishFailed
from ..bus.messages import VersionRecord


def check_files(record: VersionRecord) -> None:
    """Compare the weights with the digest that the trainer gave. Reads the whole file: use a thread.

    Raises:
        PublishFailed: files are missing, unreadable, or not the ones that were published.
    """
    directory = Path(record.directory)
    try:
        with (directory / "adapter_model.safetensors").open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
        (directory / "adapter_config.json").stat()
    except OSError as error:
        raise PublishFailed(f"its files cannot be read: {error}") from error
    if digest != record.digest:
        raise PublishFailed(f"{directory} does not hold the weights that were published: the digest differs")
