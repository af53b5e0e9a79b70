"""Settings that name tenants: a name that no key has is told of."""

from loractl.bus.config import FairnessConfig
from loractl.bus.ids import LOCAL_TENANT, TenantId
from loractl.daemon.known_tenants import unknown_tenants

FAIRNESS = FairnessConfig(weights="alice=2, bob=0.5, local=3", priorities="carol=1")


def test_names_that_no_key_has_are_told_of_with_their_setting():
    assert unknown_tenants(FAIRNESS, [TenantId("alice"), LOCAL_TENANT]) == {
        "fairness.weights": ["bob"],
        "fairness.priorities": ["carol"],
    }


def test_before_the_first_key_is_made_nobody_is_unknown():
    assert unknown_tenants(FAIRNESS, []) == unknown_tenants(FAIRNESS, [LOCAL_TENANT]) == {}


def test_known_names_are_not_told_of():
    assert unknown_tenants(FAIRNESS, map(TenantId, ("alice", "bob", "carol"))) == {}
