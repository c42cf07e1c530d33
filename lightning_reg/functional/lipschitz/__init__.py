"""Bounds of how much a network stretches changes of its input.

`jacobian` measures a lower bound on samples. `bound` computes an upper bound for all inputs, and `certificates` derives
certified radii from it. `product` finds a larger bound that is differentiable in the weights.

The upper bound comes from a `walk` over the operations of the network. The walk runs a `stand_in` of the module. The
`tracer` passes each operation to the `judge`, which applies the `rules`. If the module cannot be traced, `untraced`
bounds its layers alone. A `traced_tensor` stands for a tensor that depends on the input, `nested` finds tensors in any
container, and `memory` finds tensors that share entries.

A `value` holds the bounds of one value in the network. `chain` bounds several layers together, and `multipliers` bound
small chains best. `parts` bound several parts of one value together. `forms` recognize values that are formulas of
other values, as in normalizations written by hand. `rounding` rounds bounds upwards, and a `budget` limits the time.
"""
