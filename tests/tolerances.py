"""Every numeric bound of the suite, in one table, with the reason for its size."""

import torch

# Parity of a faster path with its reference, as (rtol, atol) of torch.testing.assert_close.
PARITY: dict[torch.dtype, dict[str, float]] = {
    # Sums of up to ~1e4 terms in another order.
    torch.float64: {"rtol": 1e-10, "atol": 1e-11},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    # One rounding of a half-precision result: eps is 1e-3 (float16) and 8e-3 (bfloat16).
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}

# The same arithmetic as a peer's module, weights copied over: float32 rounding only.
PEER = {"rtol": 1e-5, "atol": 1e-6}

# A float32 tail on inputs whose mean is up to 30 standard deviations off, against float64: the input's own spacing
# there is 2e-6 of a standard deviation, and gradients sum 400 of such terms.
TAIL_OFF_CENTRE = {"rtol": 1e-4, "atol": 1e-4}

# A peer's module again, against the largest value of the tensor compared, where sums cancel. Not 1e-15 in float64:
# torch's hardsigmoid holds its 1/6 in float32.
PEER_SCALED = {torch.float32: 1e-5, torch.float64: 1e-7}

# Statistics of fixed draws: standard errors from what chance expects (fixed inputs, so a test passes always or never).
CHANCE_ERRORS = 5.0

# Pictures, in levels of 0 to 255. Two resizers that round at different places differ by 1.
RESIZE_LEVELS = 1
# A JPEG of smooth colours against what was written: the mean error of its quantisation at quality 95.
JPEG_LEVELS = 3.0
# float32 normalisation as one multiply and one add, against float64 subtract and divide: two roundings of
# values up to 5.
NORMALISE = {"rtol": 0.0, "atol": 2e-6}

# Multiply-adds against a paper's printed figure: two decimals of some billions, and what each counter leaves out.
PRINTED_MACS = 3e-3

# The first gradient of gates at a neutral start against that at the paper's, on one batch: neutral gates have twice
# the slope and scale the branch by 1 in place of 1/2, but their zero last layer hides the one before.
FIRST_GRADIENT = 10.0
# How far from 1 each gate's largest scale is after 20 steps, at least; float32 rounds at 1e-7.
GATE_MOVED = 2e-3

# A Keras layer beside PyTorch's with the same float32 weights, against the largest value: a few roundings each.
KERAS = 1e-6
# A whole network in both, as a share of the largest logit.
KERAS_NETWORK = 1e-5
