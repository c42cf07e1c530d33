"""Bounds of how much a network stretches changes of its input.

`jacobian` measures it on samples, from below. `bound` bounds it from above for all inputs: in `walk` the `tracer`
follows the module with a `traced_tensor` (`untraced` bounds its layers alone), and asks the `judge`, which asks the
`rules`. An answer is a `value`; `chain` bounds several layers together, small chains by the best `multipliers`,
`parts` several parts of one value, `forms` knows values that are formulas of others, as in normalizations by hand, and
`rounding` rounds upwards. A `budget` limits the time. The walk runs a `stand_in` of the module, with tensors `nested`
in any containers, which may share `memory`. `certificates` derives certified radii from bounds.
"""
