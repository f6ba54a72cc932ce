"""Goals of the data path: the ratio that each goal compares with its bound."""

from tests.bench.contenders import C_ACCEPT, KERNEL, NOTHING
from tests.bench.figures import BULK, CONNECTIONS, CPU, Figures, Measure
from tests.bench.goals import Result, results
from tests.bench.places import FORWARDED, SEGMENTED, Place
from tests.bench.population import FEW, MANY
from tests.bench.variants import PER_FLOW, PER_PACKET, Variant


def _variant(driver: str, datapath: str = PER_PACKET, policies: int = FEW) -> Variant:
    return Variant(driver, datapath, policies)


def _result(figures: Figures, variants: list[Variant], measure: Measure, place: Place, reference: str) -> Result:
    (matching,) = (
        result
        for result in results(figures, variants)
        if result.place == place.name and result.figure.startswith(measure.title) and result.figure.endswith(reference)
    )
    return matching


def test_less_cpu_than_the_bound_reaches_the_goal_and_more_does_not() -> None:
    for engine, reached in ((3.6, True), (3.7, False)):
        figures = Figures()
        figures.add(C_ACCEPT, FORWARDED.name, CPU, 3.0)
        figures.add(_variant("netlink").name, FORWARDED.name, CPU, engine)

        assert _result(figures, [_variant("netlink")], CPU, FORWARDED, C_ACCEPT).reached is reached


def test_more_throughput_than_the_bound_reaches_the_goal_and_less_does_not() -> None:
    for engine, reached in ((5.0, True), (4.9, False)):
        figures = Figures()
        figures.add(NOTHING, SEGMENTED.name, BULK, 10.0)
        figures.add(_variant("netlink").name, SEGMENTED.name, BULK, engine)

        assert _result(figures, [_variant("netlink")], BULK, SEGMENTED, NOTHING).reached is reached


def test_the_engine_is_the_first_driver_that_there_is() -> None:
    figures = Figures()
    figures.add(C_ACCEPT, FORWARDED.name, CONNECTIONS, 10.0)
    figures.add(_variant("netfilterqueue").name, FORWARDED.name, CONNECTIONS, 5.0)
    figures.add(_variant("netlink").name, FORWARDED.name, CONNECTIONS, 9.0)

    library = [_variant("netfilterqueue")]
    assert _result(figures, library, CONNECTIONS, FORWARDED, C_ACCEPT).ratio == 0.5
    assert _result(figures, [*library, _variant("netlink")], CONNECTIONS, FORWARDED, C_ACCEPT).ratio == 0.9


def test_a_mode_that_there_is_not_is_told_as_not_measured() -> None:
    figures = Figures()
    figures.add(KERNEL, FORWARDED.name, BULK, 10.0)

    assert _result(figures, [_variant("netlink")], BULK, FORWARDED, KERNEL).reached is None


def test_per_flow_is_held_against_the_kernel_alone() -> None:
    figures = Figures()
    figures.add(KERNEL, FORWARDED.name, BULK, 10.0)
    figures.add(_variant("netlink", PER_FLOW).name, FORWARDED.name, BULK, 9.6)

    assert _result(figures, [_variant("netlink")], BULK, FORWARDED, KERNEL).reached is True


def test_many_policies_are_worse_below_one_for_times_too() -> None:
    figures = Figures()
    for policies, cpu, bulk in ((FEW, 3.0, 10.0), (MANY, 6.0, 5.0)):
        figures.add(_variant("netlink", policies=policies).name, FORWARDED.name, CPU, cpu)
        figures.add(_variant("netlink", policies=policies).name, FORWARDED.name, BULK, bulk)

    ratios = [
        result
        for result in results(figures, [_variant("netlink")])
        if "10,000" in result.figure and result.ratio is not None
    ]
    assert [(result.ratio, result.at_most, result.reached) for result in ratios] == [(0.5, False, False)] * 2
