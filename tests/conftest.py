"""What all tests share: how hypothesis draws.

A check that blocks a change has to give the same answer twice, so laws are tested on the same
examples in every run; ``pytest --hypothesis-profile random`` looks for new ones.
"""

from hypothesis import HealthCheck, settings

# The first draw of a fresh checkout builds tables of characters for seconds; a busy machine does
# the rest. Laws are about values: speed is measured in benchmarks.
_CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("laws", _CALM, derandomize=True)
settings.register_profile("random", _CALM)
settings.load_profile("laws")
