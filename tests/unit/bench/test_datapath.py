"""Plan of a data path run."""

import pytest

from nfq_enforcer.errors import BadInput
from tests.bench.contenders import C_ACCEPT, C_BATCH
from tests.bench.datapath import Plan
from tests.bench.places import PLACES, SEGMENTED
from tests.bench.variants import VARIANTS


def test_a_run_is_of_all_places_and_of_each_variant_that_there_is_or_is_left_out() -> None:
    plan = Plan(5, 1.0)

    assert plan.ways() == list(PLACES)
    assert [one.name for one in plan.variants()] + list(plan.left_out()) == sorted(
        (one.name for one in VARIANTS), key=lambda name: name in plan.left_out()
    )


def test_a_part_of_a_name_chooses() -> None:
    plan = Plan(5, 1.0, contenders="netfilterqueue, per-packet", places="two nodes, offloads off")

    assert [one.policies for one in plan.variants()] == [10, 10_000]
    assert plan.left_out() == {}
    assert plan.ways() == [SEGMENTED]


@pytest.mark.parametrize("contender", ["pigeon", "C accepts"])
def test_what_nobody_is_called_is_refused_with_the_names_there_are(contender: str) -> None:
    with pytest.raises(
        BadInput, match=f"no contender has '{contender}' in its name; there are: .*{C_ACCEPT}; {C_BATCH}"
    ):
        Plan(5, 1.0, contenders=contender).check()


def test_a_place_that_there_is_not_is_refused_likewise() -> None:
    with pytest.raises(BadInput, match="no place has 'abroad' in its name; there are: at the host; "):
        Plan(5, 1.0, places="abroad").check()
