"""A whole service for the tests that talk HTTP: trainer, vLLM sampler, bridge, one tiny model.

The model is served under a name that the cookbook knows; its tokenizer lies in a hub cache of the
tests' own, so nothing asks a hub.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loractl.bus.config import Config, load_config, subprocess_environment
from loractl.bus.keys import Keys, ensure_local_key
from loractl.bus.layout import StateLayout
from loractl.client.tiny_model import make_tiny_model
from loractl.client.tokenizer_cache import write_tokenizer_cache
from loractl.daemon import launch

MODEL = "Qwen/Qwen3-8B"
# vLLM's start is most of a quiet one's fifteen seconds; if it fails, so does every test here.
START_S = 250.0


@dataclass(frozen=True)
class Served:
    """key: the local user's. hub_cache: where Hugging Face libraries find the model's tokenizer."""

    url: str
    key: str
    config: Config
    model: Path
    hub_cache: Path

    def key_for(self, name: str) -> str:
        """A new tenant's key."""
        return Keys(StateLayout(Path(self.config.state_dir))).create(name)

    def environment(self, **more: str) -> dict[str, str]:
        """What a client's process needs: where the service is, and no hub."""
        return subprocess_environment(
            {
                "TINKER_BASE_URL": self.url,
                "TINKER_API_KEY": self.key,
                "TINKER_TELEMETRY": "0",
                "HF_HUB_CACHE": str(self.hub_cache),
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "OMP_NUM_THREADS": "1",
                **more,
            }
        )


@contextmanager
def serving(*settings: str) -> Iterator[Served]:
    """Start a daemon of its own for the block. settings: section.key=value."""
    root = Path(tempfile.mkdtemp(prefix="loractl-"))
    model, hub_cache = root / "model", root / "hub"
    make_tiny_model(model, steps=0)
    write_tokenizer_cache(MODEL, model, hub_cache)
    config = load_config(
        state_dir=str(root / "s"),
        environ={},
        overrides=[
            f"model.name={MODEL}",
            f"model.path={model}",
            "daemon.http=auto",
            "trainer.threads=1",
            *settings,
        ],
    )
    status = launch.start_detached(config, START_S)
    try:
        url = next(actor.details for actor in status.actors if actor.role == "bridge")
        key = ensure_local_key(StateLayout(Path(config.state_dir)))
        yield Served(url, key, config, model, hub_cache)
    finally:
        launch.stop(config)
        shutil.rmtree(root, ignore_errors=True)
