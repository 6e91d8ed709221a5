"""The slow, obvious forward and backward in NumPy: the specification that every kernel is held against.

Both work in the array's own type; the tests call them in float64.
"""

import numpy as np

from .windows import pooling_windows


def forward(input, output_size):
    """Average every window of `input`, an array of shape ``(N, C, H, W)``, to ``(N, C, oH, oW)``."""
    N, C, H, W = input.shape
    oH, oW = output_size
    output = np.empty((N, C, oH, oW), input.dtype)
    for oh, (ih0, ih1) in enumerate(zip(*pooling_windows(H, oH), strict=True)):
        for ow, (iw0, iw1) in enumerate(zip(*pooling_windows(W, oW), strict=True)):
            output[:, :, oh, ow] = input[:, :, ih0:ih1, iw0:iw1].mean(axis=(2, 3))
    return output


def backward(grad_output, input_size):
    """Spread every element of `grad_output`, ``(N, C, oH, oW)``, evenly over its window of ``(N, C, H, W)``."""
    N, C, oH, oW = grad_output.shape
    H, W = input_size
    grad_input = np.zeros((N, C, H, W), grad_output.dtype)
    for oh, (ih0, ih1) in enumerate(zip(*pooling_windows(H, oH), strict=True)):
        for ow, (iw0, iw1) in enumerate(zip(*pooling_windows(W, oW), strict=True)):
            area = (ih1 - ih0) * (iw1 - iw0)
            grad_input[:, :, ih0:ih1, iw0:iw1] += grad_output[:, :, oh, ow, None, None] / area
    return grad_input
