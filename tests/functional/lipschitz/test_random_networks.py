"""No bound is below the truth: random networks against exact Jacobians."""

import pytest

from tests.functional.lipschitz.random_networks import BOUNDED, WITHOUT, finding, table

NETWORKS = 1000
TOGETHER = 20


@pytest.mark.sweep(share=0.04)
@pytest.mark.parametrize("first", range(0, NETWORKS, TOGETHER))
def test_no_jacobian_of_a_random_network_is_above_its_bound(first):
    findings = {seed: finding(seed) for seed in range(first, first + TOGETHER)}
    print(*table(findings.values()), sep="\n")

    assert {seed: each for seed, each in findings.items() if each.kind not in {"finite", "infinite with reason"}} == {}
    assert sum(each.kind == "finite" for each in findings.values()) > TOGETHER / 2
    unbounded = [
        each for each in findings.values() if WITHOUT.intersection(each.parts) and not BOUNDED.intersection(each.parts)
    ]
    assert all(each.kind == "infinite with reason" or each.truth == 0 for each in unbounded)
