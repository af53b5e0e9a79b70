"""The frozen base model: a stock megatron-core GPTModel with our attention and linears in it.

Everything of ours goes in through the layer spec; nothing is patched. The same on CPU and CUDA. The ranks of a
tensor parallel group each hold a shard of the layers and of the embedding; hidden states are whole on all of
them. The output layer's product is not computed here: `output` does that in chunks, on the first rank, which
alone holds the output weight, whole. That is the memory of a vocabulary times hidden, and the others wait for
it: it is not cut by vocabulary yet.

Legend: T = packed positions, V = vocabulary, H = hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..bus.errors import StartFailed
from .attention import PackedAttention, rotation
from .hf_config import BaseModel, check_shares
from .hf_weights import load_weights
from .layer_parts import RmsNorm, SwiGlu
from .linears import Linear
from .lora import LoraColumnParallelLinear, LoraRowParallelLinear
from .lora_pass import LoraPass
from .packing import Packing
from .pass_frame import PassFrame
from .shard import Shard
from .tensor_group import TensorGroup, tensor_group


class Backbone:
    """Call `hidden`, and the backward of what it returned, within `running`. group: who shares the model."""

    def __init__(
        self,
        base: BaseModel,
        linears: Sequence[Linear],
        dtype: torch.dtype,
        device: torch.device,
        *,
        recompute: bool = False,
    ) -> None:
        """linears: this rank's part of all that adapters may train. recompute: see `_RecomputedLayer`."""
        self.group: TensorGroup = tensor_group()
        check_shares(base, self.group.shard.count)
        self._frame = PassFrame()
        self._dtype = dtype
        self._inverse_frequencies = base.inverse_frequencies.to(device)
        spec = _layer_spec(base, self._frame, device, recompute=recompute)
        self._model = _gpt_model(base, spec, dtype, device, self.group.shard)
        for layer in self._model.decoder.layers:
            # Stock RMSNorms know no dtype of their own.
            layer.to(dtype=dtype, device=device)
        self._model.decoder.final_layernorm.to(dtype=dtype, device=device)
        self.parameters = load_weights(self._model, base, self.group.shard)
        self._model.requires_grad_(False)
        refuse_trainable(self._model)
        self._attach(linears)

    @property
    def output_weight(self) -> Tensor:
        """[V, H]; the embedding itself where the model ties them. [0, H] on ranks other than the first."""
        weight: Tensor | None = self._model.output_layer.weight
        return self._model.shared_embedding_or_output_weight() if weight is None else weight

    def tell_progress(self, alive: Callable[[], None]) -> None:
        self._frame.alive = alive

    @contextmanager
    def running(self, packing: Packing, lora: LoraPass | None) -> Iterator[None]:
        """One pass over these sequences with these adapters; None for the base model alone."""
        turn = rotation(packing.positions, self._inverse_frequencies, self._dtype)
        with self._frame.running(packing, turn, lora):
            yield

    def hidden(self, tokens_T: Tensor) -> Tensor:
        """The final hidden states [T, H] of the pass's packed sequences."""
        embedded_T1H = self._model.embedding(input_ids=tokens_T[None], position_ids=None)
        hidden_T1H: Tensor = self._model.decoder(hidden_states=embedded_T1H, attention_mask=None)
        return hidden_T1H.squeeze(1)

    def _attach(self, linears: Sequence[Linear]) -> None:
        for linear in linears:
            module = self._module_of(linear)
            if module is not None:
                module.attach(self._frame, linear, self.group)

    def _module_of(self, linear: Linear) -> LoraColumnParallelLinear | LoraRowParallelLinear | None:
        if linear.kind == "unembed":
            return None  # `output` adds the adapters there
        layer = self._model.decoder.layers[linear.layer]
        modules = {
            "qkv": layer.self_attention.linear_qkv,
            "proj": layer.self_attention.linear_proj,
            "fc1": layer.mlp.linear_fc1,
            "fc2": layer.mlp.linear_fc2,
        }
        module: LoraColumnParallelLinear | LoraRowParallelLinear = modules[linear.kind]
        return module


class _RecomputedLayer(TransformerLayer):  # type: ignore[misc]  # megatron-core has no types
    """Keeps only its input and computes all else again on the way back (gradient checkpointing).

    megatron-core's own recomputation needs CUDA. Nothing is drawn at random here, so there is no random
    state to restore. The pass's adapters and packing are still there then: a `PassFrame` lasts until
    the end of backward. Gradients are gathered by backward alone, so twice forward adds nothing twice.
    """

    def forward(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        result: tuple[Tensor, Tensor | None]
        if torch.is_grad_enabled():
            work = partial(super().forward, *args, **kwargs)
            result = checkpoint(work, use_reentrant=False, preserve_rng_state=False)
        else:
            result = super().forward(*args, **kwargs)
        return result


def refuse_trainable(model: torch.nn.Module) -> None:
    """Only adapters are trained, and they live in the bank: a parameter that wants gradients is a fault.

    Raises:
        StartFailed: names the parameters.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if trainable:
        raise StartFailed(f"parameters of the base model would be trained: {', '.join(trainable[:5])}")


def _gpt_model(
    base: BaseModel, spec: ModuleSpec, dtype: torch.dtype, device: torch.device, shard: Shard
) -> GPTModel:
    several = shard.count > 1
    model = GPTModel(
        _transformer_config(base, dtype, device, shard),
        spec,
        vocab_size=shard.most(base.shape.vocab) * shard.count,  # it has to be shared evenly
        max_sequence_length=base.max_positions,
        share_embeddings_and_output_weights=base.tied or several,  # several: it allocates none of its own
        position_embedding_type="none",  # positions are the attention's
        parallel_output=True,
    )
    if several:
        _whole_output_weight(model, base, shard)
    return model


def _whole_output_weight(model: GPTModel, base: BaseModel, shard: Shard) -> None:
    """For the first rank; where the embedding is tied to it, its shard of that is a view of it."""
    embedding = model.embedding.word_embeddings
    rows = base.shape.vocab if shard.first else 0
    whole_VH = torch.nn.Parameter(embedding.weight.new_empty(rows, base.shape.hidden))
    model.output_layer.weight = whole_VH
    if base.tied and shard.first:
        embedding.weight = torch.nn.Parameter(whole_VH.detach()[: len(embedding.weight)])


def _transformer_config(
    base: BaseModel, dtype: torch.dtype, device: torch.device, shard: Shard
) -> TransformerConfig:
    return TransformerConfig(
        num_layers=base.shape.layers,
        hidden_size=base.shape.hidden,
        ffn_hidden_size=base.shape.ffn,
        num_attention_heads=base.shape.heads,
        num_query_groups=base.shape.kv_heads,
        kv_channels=base.shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=base.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        use_te_activation_func=True,  # which means: the one in the layer spec
        add_bias_linear=False,
        add_qkv_bias=base.family.qkv_bias,
        qk_layernorm=base.family.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        # The fused forms compile at their first use and gain nothing without dropout and bias.
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        use_cpu_initialization=device.type == "cpu",
        # Parameters stay uninitialised until `load_weights` has filled every one of them.
        perform_initialization=False,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=shard.count,
    )


def _layer_spec(base: BaseModel, frame: PassFrame, device: torch.device, *, recompute: bool) -> ModuleSpec:
    spec = get_gpt_layer_local_spec(qk_layernorm=base.family.qk_norm, normalization="RMSNorm")
    if recompute:
        spec.module = _RecomputedLayer
    attention = spec.submodules.self_attention.submodules
    attention.linear_qkv = LoraColumnParallelLinear
    attention.linear_proj = LoraRowParallelLinear
    attention.core_attention = partial(PackedAttention, frame=frame)
    mlp = spec.submodules.mlp.submodules
    mlp.linear_fc1 = LoraColumnParallelLinear
    mlp.linear_fc2 = LoraRowParallelLinear
    mlp.activation_func = SwiGlu
    if device.type == "cpu":
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RmsNorm
        if base.family.qk_norm:
            attention.q_layernorm = attention.k_layernorm = RmsNorm
    return spec
