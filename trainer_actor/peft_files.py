"""An adapter as Hugging Face PEFT files, and such files as an adapter. Returns bytes; writes nothing.

Written as vLLM and PEFT read them: one rank for the whole adapter, no padding, the unembedding as
`lm_head`. Reading refuses, by name, every PEFT feature that this trainer does not compute.
"""

import json
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..bus.errors import CheckpointMismatch
from ..bus.messages import LoraSpec
from .bank import HostState
from .naming import from_named, listed, to_named
from .row_layout import RowLayout
from .tensor_header import check_header

# Settings that say nothing about what the tensors compute. Any other that is set is refused: a PEFT
# feature that this trainer does not know must not be dropped in silence.
_SILENT = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
# Ways to draw the first weights that leave the base model as it is (PiSSA, for one, does not).
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_CHECKED = {"peft_type", "r", "lora_alpha", "target_modules", "init_lora_weights"}
_FILE = "adapter_model.safetensors"
_SPARE_TENSORS = 64
_EMPTY: tuple[object, ...] = (None, False, "none", [], {})


def write_peft(
    layout: RowLayout, lora: LoraSpec, weights_N: Tensor, base_model: str
) -> tuple[str, bytes, int]:
    """adapter_config.json, adapter_model.safetensors, and the number of adapted modules.

    weights_N: the row in the type to write, on the CPU.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "target_modules": sorted(target_modules(layout)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    modules = sum(1 for _ in layout.projections())
    # The format lets readers know that the tensors are PyTorch's; transformers asks for it.
    data = save(to_named(layout, lora.rank, weights_N), metadata={"format": "pt"})
    return json.dumps(config, indent=2, sort_keys=True) + "\n", data, modules


def read_peft(layout: RowLayout, lora: LoraSpec, config_json: str, data: bytes) -> HostState:
    """An adapter with these weights, no gradients and no moments.

    Raises:
        CheckpointMismatch: rank, alpha, targets or tensors are not those of `lora`, or the files use
            something that this trainer does not compute. The message lists what differs.
    """
    differences = _config_differences(layout, lora, _parsed(config_json))
    if differences:
        raise CheckpointMismatch(f"adapter_config.json does not fit: {listed(differences)}")
    # Two for each module; a file with some more is read, so that the error can say which they are.
    most_tensors = 4 * sum(1 for _ in layout.projections()) + _SPARE_TENSORS
    check_header(data, most_tensors=most_tensors, what=_FILE)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError) as error:
        # A type that torch does not have is a KeyError.
        raise CheckpointMismatch(f"{_FILE} cannot be read: {error}") from error
    main = from_named(layout, lora.rank, tensors, what=_FILE)
    return HostState(lora=lora, step=0, tokens=0, main=main, gradients=None, exp_avg=None, exp_avg_sq=None)


def target_modules(layout: RowLayout) -> set[str]:
    """The adapted linears by the last part of their names: q_proj, …, lm_head."""
    return {projection.name.rpartition(".")[2] for projection in layout.projections()}


def _parsed(config_json: str) -> dict[str, object]:
    try:
        config = json.loads(config_json)
    except (ValueError, RecursionError) as error:
        raise CheckpointMismatch(f"adapter_config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointMismatch("adapter_config.json holds no JSON object")
    return config


def _config_differences(layout: RowLayout, lora: LoraSpec, config: Mapping[str, object]) -> list[str]:
    differences = []
    wanted = {"peft_type": "LORA", "r": lora.rank, "lora_alpha": lora.alpha}
    for key, value in wanted.items():
        if config.get(key) != value:
            differences.append(f"{key} is {config.get(key)!r} and the adapter's is {value!r}")
    modules = config.get("target_modules")
    expected = target_modules(layout)
    # A pattern instead of a list says nothing exact; the tensors' names decide then.
    if isinstance(modules, list) and {str(each).rpartition(".")[2] for each in modules} != expected:
        differences.append(
            f"target_modules are {sorted(map(str, modules))} and the adapter's are {sorted(expected)}"
        )
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        differences.append(f"init_lora_weights = {start!r} is not supported: it changes the base model")
    for key, value in config.items():
        if key not in _SILENT | _CHECKED and value not in _EMPTY:
            differences.append(f"{key} = {value!r} is not supported")
    return differences
