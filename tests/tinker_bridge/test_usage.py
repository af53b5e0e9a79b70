"""What a key's tenant took of the trainer, over HTTP: its own figures, and nobody else's."""

from typing import Any

import httpx
from loractl.tests.tinker_bridge.raw import Raw, forward_backward, optim_step
from loractl.tests.tinker_bridge.served import Served

FIGURES = {
    "trainer_ms", "disk_ms", "tokens", "operations", "passes", "shared_passes", "steps", "swaps", "swapped_bytes",
}  # fmt: skip


def usage(served: Served, key: str) -> dict[str, Any]:
    answer = httpx.get(f"{served.url}/usage", headers={"X-API-Key": key})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_a_tenant_reads_its_sum_and_its_adapters_usage_and_nobody_elses(served: Served):
    with Raw(served, served.key_for("measured")) as ann, Raw(served, served.key_for("idle")) as ben:
        trained, fresh, bens = ann.model(), ann.model(), ben.model()
        assert "loss_fn_outputs" in ann.do("/forward_backward", forward_backward(trained, 1))
        assert "metrics" in ann.do("/optim_step", optim_step(trained, 2))
        ann.do("/save_weights", {"model_id": trained, "seq_id": 3, "path": "first"})

        hers, his = usage(served, ann.key), usage(served, ben.key)

    adapters = {each["name"]: each["usage"] for each in hers["adapters"]}
    assert (hers["tenant"], adapters.keys()) == ("measured", {trained, fresh})
    assert hers["usage"] == adapters[trained]
    assert hers["usage"].keys() == FIGURES
    counts = ("tokens", "operations", "passes", "shared_passes", "steps", "swaps")
    assert [hers["usage"][name] for name in counts] == [4, 3, 1, 0, 1, 1]
    assert all(hers["usage"][name] > 0 for name in ("trainer_ms", "disk_ms", "swapped_bytes"))
    assert set(adapters[fresh].values()) == {0}
    assert (his["tenant"], [each["name"] for each in his["adapters"]]) == ("idle", [bens])
    assert set(his["usage"].values()) == {0}


def test_usage_is_not_told_without_a_key(served: Served):
    assert httpx.get(f"{served.url}/usage").status_code == 401
