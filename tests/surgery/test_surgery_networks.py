"""Gates in networks untouched from their packages: found where the architecture has places, exact in and exact out."""

import pytest
from network_cases import CASES, expected, tried


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c), marks=[pytest.mark.slow] * c.slow) for c in CASES])
def test_a_network_takes_gates_and_gives_them_back(case):
    assert tried(case) == expected(case), case.why
