"""Whether settings that name tenants name any that exist: a mistyped name would change nothing, silently."""

from collections.abc import Iterable

from ..bus.config import FairnessConfig
from ..bus.ids import LOCAL_TENANT, TenantId
from ..bus.tenant_numbers import tenant_numbers


def unknown_tenants(fairness: FairnessConfig, keys: Iterable[TenantId]) -> dict[str, list[TenantId]]:
    """Per setting, the names that nobody's key has. Without any key there is nothing to compare with.

    A key may be made later, so that this is worth a warning and no more.
    """
    known = {*keys, LOCAL_TENANT}
    if known == {LOCAL_TENANT}:
        return {}
    named = {"fairness.weights": fairness.weights, "fairness.priorities": fairness.priorities}
    missing = {
        setting: sorted(tenant_numbers(text, what=setting).keys() - known) for setting, text in named.items()
    }
    return {setting: tenants for setting, tenants in missing.items() if tenants}
