"""How much a network stretches its input.

`jacobian` measures it on samples, from below. `bound` is above it for all inputs: `walk` has the `tracer` follow the
module (`untraced` looks at its layers alone) with a `traced_tensor`, and asks the `judge`, who asks the `rules`. An
answer is a `value`; `chain` is what several layers do together, and `rounding` goes upwards. A `budget` limits the
time. What is run is a `stand_in` of the module; tensors may be `nested` in anything, and share `memory`.
`certificates` are what bounds are good for.
"""
