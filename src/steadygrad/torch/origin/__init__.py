"""Where a NaN or inf comes from: a tape that costs next to nothing, and one replay.

`tape` keeps what a step was made of, `patches` feeds it from torch. When a step's gradients
or loss are not finite, `finder` has `replay` run the step again with the instruments of `probe`,
and `blame` reads the answer from what they showed. `states` keeps the training as it is.
"""
