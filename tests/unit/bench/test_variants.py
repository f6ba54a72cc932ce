"""Variants of the engine, and the variants that the agent's configuration refuses."""

from tests.bench.variants import VARIANTS, Variant, refusal


def test_the_library_s_driver_is_always_there() -> None:
    assert refusal(Variant("netfilterqueue", "per-packet", 10)) is None


def test_what_the_configuration_refuses_is_refused_with_its_own_sentence() -> None:
    reason = refusal(Variant("pigeons", "per-packet", 10))

    assert reason is not None
    assert "'pigeons' is not allowed; allowed: " in reason


def test_variants_have_names_of_their_own() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) == 8
