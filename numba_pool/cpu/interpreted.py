"""What computes under ``NUMBA_DISABLE_JIT=1``, for debuggers and coverage: the reference, as nothing is compiled."""

from .. import reference


def pool(src, dst, average):
    """Fill the tensor `dst` from the tensor `src`, by the slow and obvious NumPy code, in float64."""
    array = src.detach().double().numpy()
    planes = array.reshape(1, -1, *src.shape[-2:])
    compute = reference.forward if average else reference.backward
    result = compute(planes, tuple(dst.shape[-2:]))
    dst.copy_(src.new_tensor(result).reshape(dst.shape))
