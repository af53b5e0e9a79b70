"""Hugging Face safetensors into a megatron-core GPTModel: strictly, every tensor once.

The model is a plain `torch.nn.Module` here; its parameters are known by their names (megatron-core
0.16.1, local layer spec):

    linear_qkv = for each key-value group [its query heads; its key; its value]
    linear_fc1 = [gate; up]

Of several tensor parallel ranks each fills its shard, and reads no more than that of a file: some key-value
groups of qkv, some rows of gate and of up, some columns of what follows them, some rows of the embedding. The
output weight is the first rank's alone.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..bus.errors import InvalidConfig
from .hf_config import BaseModel
from .shard import WHOLE, Shard

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Files that older versions of transformers wrote hold these buffers; they are computed, not loaded.
_BUFFERS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def load_weights(model: torch.nn.Module, base: BaseModel, shard: Shard = WHOLE) -> int:
    """Fill every parameter of the model from the directory's safetensors; return how many numbers they are, in
    the whole model.

    Raises:
        InvalidConfig: a file that is missing or broken, a tensor that is missing, left over or of
            another shape. The model is then of no use.
    """
    source = _Tensors(base.path, shard)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = _value_of(name, base, source)
            if value.shape != parameter.shape:
                shapes = f"{tuple(value.shape)} and not {tuple(parameter.shape)}"
                raise InvalidConfig(f"{base.path}: the weights for {name} have the shape {shapes}")
            if not value.is_floating_point():
                raise InvalidConfig(
                    f"{base.path}: the weights for {name} are {value.dtype}, not floating point"
                )
            parameter.copy_(value)
    left_over = source.unused()
    if base.tied:
        left_over.discard("lm_head.weight")  # some files hold the tied matrix twice
    if left_over:
        some = ", ".join(sorted(left_over)[:5])
        raise InvalidConfig(f"{base.path}: {len(left_over)} tensors that the model has no place for: {some}")
    return source.numbers()


def _value_of(name: str, base: BaseModel, source: "_Tensors") -> Tensor:
    """The value of one megatron-core parameter, put together from Hugging Face tensors."""
    if name in _WHOLE_MODEL:
        return _WHOLE_MODEL[name](source, base)
    found = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    if found is None:
        raise InvalidConfig(f"the model has a parameter {name} that Hugging Face files have no value for")
    prefix = f"model.layers.{found[1]}."
    groups = base.shape.kv_heads // source.shard.count
    return _IN_LAYER[found[2]](lambda tensor, dim: source.take(prefix + tensor, dim), groups)


# A tensor by its name, and along which dimension ranks share it; None: each has all of it.
Take = Callable[[str, int | None], Tensor]


def _plain(tensor: str, dim: int | None = None) -> Callable[[Take, int], Tensor]:
    return lambda take, _groups: take(tensor, dim)


def _qkv(kind: str) -> Callable[[Take, int], Tensor]:
    def join(take: Take, groups: int) -> Tensor:
        parts = [take(f"self_attn.{each}_proj.{kind}", 0) for each in "qkv"]
        parts = [part.view(groups, -1, *part.shape[1:]) for part in parts]
        return torch.cat(parts, dim=1).flatten(0, 1)

    return join


def _gate_up(take: Take, _groups: int) -> Tensor:
    return torch.cat([take("mlp.gate_proj.weight", 0), take("mlp.up_proj.weight", 0)])


def _embedding(source: "_Tensors", base: BaseModel) -> Tensor:
    """Where the vocabulary cannot be shared evenly, the last ranks' rows end in zeros, which nobody looks up."""
    shard, vocab = source.shard, base.shape.vocab
    mine = shard.of(vocab)
    rows_vH = source.take_rows(_EMBEDDING, mine, of=vocab)
    missing = shard.most(vocab) - (mine.stop - mine.start)
    return F.pad(rows_vH, (0, 0, 0, missing)) if missing else rows_vH


def _output(source: "_Tensors", base: BaseModel) -> Tensor:
    """None of it on ranks other than the first."""
    vocab = base.shape.vocab
    name = _EMBEDDING if base.tied else "lm_head.weight"
    return source.take_rows(name, slice(0, vocab if source.shard.first else 0), of=vocab)


_EMBEDDING = "model.embed_tokens.weight"
_WHOLE_MODEL: dict[str, Callable[["_Tensors", BaseModel], Tensor]] = {
    "embedding.word_embeddings.weight": _embedding,
    "decoder.final_layernorm.weight": lambda source, _base: source.take("model.norm.weight", None),
    "output_layer.weight": _output,
}
_IN_LAYER: dict[str, Callable[[Take, int], Tensor]] = {
    "input_layernorm.weight": _plain("input_layernorm.weight"),
    "self_attention.linear_qkv.weight": _qkv("weight"),
    "self_attention.linear_qkv.bias": _qkv("bias"),
    "self_attention.linear_proj.weight": _plain("self_attn.o_proj.weight", 1),
    "self_attention.q_layernorm.weight": _plain("self_attn.q_norm.weight"),
    "self_attention.k_layernorm.weight": _plain("self_attn.k_norm.weight"),
    "pre_mlp_layernorm.weight": _plain("post_attention_layernorm.weight"),
    "mlp.linear_fc1.weight": _gate_up,
    "mlp.linear_fc2.weight": _plain("mlp.down_proj.weight", 1),
}


class _Tensors:
    """The tensors of a model directory, one file or several, each handed out when it is asked for."""

    def __init__(self, path: Path, shard: Shard) -> None:
        self.shard = shard
        self._path = path
        self._opened: dict[str, safe_open] = {}
        self._taken: set[str] = set()
        for file in weight_files(path):
            opened = _open(file)
            names: list[str] = opened.keys()  # type: ignore[no-untyped-call]
            for name in names:
                if name in self._opened:
                    raise InvalidConfig(f"{path}: {name} is in {file.name} and in another file")
                self._opened[name] = opened

    def take(self, name: str, dim: int | None) -> Tensor:
        """The tensor, or this rank's share of it along a dimension."""
        shape = self._shape(name)
        if dim is None or self.shard.count == 1 or len(shape) <= dim:
            return self._whole(name)
        if shape[dim] % self.shard.count:
            raise InvalidConfig(f"{self._path}: {self.shard.count} ranks cannot share {name}, {tuple(shape)}")
        rows = self.shard.of(shape[dim])
        part: Tensor = self._opened[name].get_slice(name)[(slice(None),) * dim + (rows,)]  # type: ignore[no-untyped-call]
        return part

    def take_rows(self, name: str, rows: slice, *, of: int) -> Tensor:
        """Some rows of a tensor that must have so many."""
        shape = self._shape(name)
        if rows == slice(0, of):
            return self._whole(name)
        if shape[:1] != [of]:
            raise InvalidConfig(f"{self._path}: {name} has the shape {tuple(shape)} and not {of} rows")
        part: Tensor = self._opened[name].get_slice(name)[rows]  # type: ignore[no-untyped-call]
        return part

    def unused(self) -> set[str]:
        return {name for name in self._opened if name not in self._taken and not _BUFFERS.fullmatch(name)}

    def numbers(self) -> int:
        """In all that was asked for, whoever's share it is."""
        return sum(math.prod(self._shape(name)) for name in self._taken)

    def _whole(self, name: str) -> Tensor:
        tensor: Tensor = self._opened[name].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def _shape(self, name: str) -> list[int]:
        if name not in self._opened:
            raise InvalidConfig(f"{self._path}: there is no tensor {name}")
        self._taken.add(name)
        shape: list[int] = self._opened[name].get_slice(name).get_shape()  # type: ignore[no-untyped-call]
        return shape


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model directory. Raises InvalidConfig: there are none, or one is missing."""
    index = path / _INDEX
    if not index.is_file():
        if not (path / _SINGLE).is_file():
            raise InvalidConfig(f"{path} holds neither {_SINGLE} nor {_INDEX}")
        return [path / _SINGLE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidConfig(f"cannot read {index}: {error!r}") from error
    for name in names:
        if Path(name).name != name or not (path / name).is_file():
            raise InvalidConfig(f"{index} names {name!r}, which is no file beside it")
    return [path / name for name in names]


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InvalidConfig(f"cannot read {file}: {error}") from error
