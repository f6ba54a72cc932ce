"""Hypothesis profiles: without one every example is tried; ``check`` tries a tenth of them, as ``make check`` does.

In both no time limit applies to an example, which takes as long as the machine's load makes it take.
"""

from hypothesis import HealthCheck, settings

from tests.support.effort import FULL

settings.register_profile("full", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("check", settings.get_profile("full"), max_examples=FULL // 10)
settings.load_profile("full")
