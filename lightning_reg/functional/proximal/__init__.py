"""Proximal operators, which make weights exactly zero: of entries (`elementwise`, `concave`) and of `groups`.

`step_size` computes the step size of each optimizer, which scales the operator. `optimality` measures the distance from
a minimum.
"""
