"""What the tests of the client share: a tiny model's directory, with weights that nobody needs here."""

from pathlib import Path

import pytest
from loractl.bus.messages import ModelDetails
from loractl.client.text import ModelText, load_tokenizer
from loractl.client.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def model_details(tmp_path_factory: pytest.TempPathFactory) -> ModelDetails:
    directory: Path = tmp_path_factory.mktemp("model") / "tiny"
    made = make_tiny_model(directory, steps=0)
    return ModelDetails(
        name="tiny",
        path=str(directory),
        family="qwen3",
        vocab_size=made.vocab_size,
        max_sequence_tokens=64,
        parameters=made.parameters,
        dtype="float32",
        weights="0123",
    )


@pytest.fixture(scope="session")
def text(model_details: ModelDetails) -> ModelText:
    return ModelText(model_details, load_tokenizer(model_details.name, model_details.path))
