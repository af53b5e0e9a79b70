"""Tables for eyes: adapters fit a line each, and the details of one say the rest."""

import io

from loractl.bus.ids import AdapterId, TenantId
from loractl.bus.messages import AdapterDetails, LoraSpec
from loractl.client.screens import show_adapter, show_adapters
from rich.console import Console

WHY = "torch: the adapter trains the unembedding, which vllm cannot serve exactly"


def details() -> AdapterDetails:
    return AdapterDetails(
        adapter=AdapterId("ad-0123456789abcdef0123456789abcdef"),
        tenant=TenantId("local"),
        name="pirate-with-a-rather-long-name",
        lora=LoraSpec(rank=16, alpha=32.0, seed=0, train_attn=True, train_mlp=True, train_unembed=True),
        step=1200,
        version=3,
        checkpoint_step=1200,
        parameters=10_092_544,
        state_bytes=2**27,
        created_unix_s=0.0,
        served_by=WHY,
    )


def shown(show) -> str:
    out = io.StringIO()
    show(Console(file=out, force_terminal=True, color_system=None, width=100))
    return out.getvalue()


def test_a_list_of_adapters_has_one_line_for_each():
    text = shown(lambda console: show_adapters(console, [details(), details()]))

    assert len(text.splitlines()) == 3
    assert text.splitlines()[1].rstrip().endswith("torch")


def test_the_details_of_an_adapter_say_why_its_engine_serves_it():
    assert WHY in shown(lambda console: show_adapter(console, details(), []))
