"""Proximal operators, which make weights exactly zero: of entries (`elementwise`, `concave`) and of `groups`.

`step_size` knows how far each optimizer moves a weight, which is the factor that an operator needs; `optimality` is how
far weights are from a minimum.
"""
