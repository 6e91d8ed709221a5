"""An operator of your own: adaptive max pooling, for the CPU and for CUDA.

Copy this file, change the kernels, the shapes and the gradient, and keep
the rest.  It uses only documented names of torch, NumPy and Numba.
"""

import numpy as np
import torch
from numba import cuda, njit, prange
from torch import Tensor


@njit
def window(o, inputs, outputs):
    return o * inputs // outputs, -(-(o + 1) * inputs // outputs)


@njit
def largest(x, plane, oh, ow, oH, oW):
    _, H, W = x.shape
    top, bottom = window(oh, H, oH)
    left, right = window(ow, W, oW)
    best, at = x[plane, top, left], top * W + left
    for h in range(top, bottom):
        for w in range(left, right):
            value = x[plane, h, w]
            if value > best or value != value:  # NaN is not equal to itself
                best, at = value, h * W + w
    return best, at


@njit(parallel=True, cache=True)
def pool_planes(x, y, index):
    planes, oH, oW = y.shape
    for plane in prange(planes):
        for oh in range(oH):
            for ow in range(oW):
                best, at = largest(x, plane, oh, ow, oH, oW)
                y[plane, oh, ow], index[plane, oh, ow] = best, at


def planes_of(tensor):
    return tensor.detach().contiguous().flatten(0, -3)


def array(tensor):
    return np.from_dlpack(planes_of(tensor))  # the same memory


def outputs(x, height, width):
    y = x.new_empty((*x.shape[:-2], height, width))
    return y, torch.empty_like(y, dtype=torch.int64)


@torch.library.custom_op("own::max_pool", mutates_args=(), device_types="cpu")
def pool(x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    y, index = outputs(x, height, width)
    pool_planes(array(x), array(y), array(index))
    return y, index


pool.register_fake(outputs)


@njit(parallel=True, cache=True)
def scatter_planes(grad_y, index, grad_x):
    planes, oH, oW = grad_y.shape
    W = grad_x.shape[2]
    for plane in prange(planes):  # no two threads share a plane
        for oh in range(oH):
            for ow in range(oW):
                h, w = divmod(index[plane, oh, ow], W)
                grad_x[plane, h, w] += grad_y[plane, oh, ow]


@torch.library.custom_op("own::scatter", mutates_args=(), device_types="cpu")
def scatter(grad_y: Tensor, index: Tensor, H: int, W: int) -> Tensor:
    grad_x = grad_y.new_zeros((*grad_y.shape[:-2], H, W))
    scatter_planes(array(grad_y), array(index), array(grad_x))
    return grad_x


@scatter.register_fake
def grad_input(grad_y, index, H, W):
    return grad_y.new_empty((*grad_y.shape[:-2], H, W))


def keep(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.size = inputs[0].shape[-2:]


def backward(ctx, grad_y, _):
    (index,) = ctx.saved_tensors
    return scatter(grad_y, index, *ctx.size), None, None


pool.register_autograd(backward, setup_context=keep)


def adaptive_max_pool2d(x, output_size):
    height, width = output_size
    if x.ndim not in (3, 4) or min(*x.shape[-2:], height, width) < 1:
        raise ValueError(f"cannot pool {tuple(x.shape)} to {output_size}")
    wide = x.float() if x.dtype.itemsize == 2 else x  # Numba has no half
    return pool(wide, height, width)[0].to(x.dtype)


# The same for CUDA.  Without it, the file is complete for the CPU.
gpu_largest = cuda.jit(device=True)(largest.py_func)


@cuda.jit
def pool_outputs(x, y, index):
    _, oH, oW = y.shape
    i = cuda.grid(1)  # a thread for each output
    if i < y.size:
        plane, oh, ow = i // (oH * oW), i // oW % oH, i % oW
        best, at = gpu_largest(x, plane, oh, ow, oH, oW)
        y[plane, oh, ow], index[plane, oh, ow] = best, at


@cuda.jit
def gather_inputs(grad_y, index, grad_x):
    (_, oH, oW), (_, H, W) = grad_y.shape, grad_x.shape
    i = cuda.grid(1)  # a thread for each input: no two add to the same one
    if i < grad_x.size:
        plane, h, w = i // (H * W), i // W % H, i % W
        for oh in range(*window(h, oH, H)):
            for ow in range(*window(w, oW, W)):
                if index[plane, oh, ow] == h * W + w:
                    grad_x[plane, h, w] += grad_y[plane, oh, ow]


def launch(kernel, *tensors):
    threads, device = tensors[-1].numel(), tensors[-1].device
    stream = torch.cuda.current_stream(device).cuda_stream
    if threads:
        with cuda.gpus[device.index]:
            grid = -(-threads // 256), 256, cuda.external_stream(stream)
            kernel[grid](*map(planes_of, tensors))


@pool.register_kernel("cuda")
def _(x, height, width):
    y, index = outputs(x, height, width)
    launch(pool_outputs, x, y, index)
    return y, index


@scatter.register_kernel("cuda")
def _(grad_y, index, H, W):
    grad_x = grad_y.new_zeros((*grad_y.shape[:-2], H, W))
    launch(gather_inputs, grad_y, index, grad_x)
    return grad_x
