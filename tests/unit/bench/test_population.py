"""Population of the store: number, validity and selectors of its policies."""

import pytest

from nfq_enforcer.policy.cilium import CiliumNetworkPolicy
from tests.bench.population import FEW, MANY, policies


@pytest.mark.parametrize("count", [FEW, MANY])
def test_there_are_as_many_policies_as_asked_for_each_with_its_name(count: int) -> None:
    assert len({policy["metadata"]["name"] for policy in policies(count)}) == count


def test_policies_are_what_the_engine_takes() -> None:
    documents = [CiliumNetworkPolicy.model_validate(policy) for policy in policies(200)]

    assert all(document.metadata.name == f"policy-{number}" for number, document in enumerate(documents))


def test_three_of_a_hundred_are_about_endpoints_that_are_measured() -> None:
    roles = [policy["spec"]["endpointSelector"]["matchLabels"]["role"] for policy in policies(1000)]

    assert sum(role in ("frontend", "backend", "monitor") for role in roles) == 30
