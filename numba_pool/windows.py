"""The window formula of adaptive pooling: integers and NumPy only.

Along one axis of length ``input_size``, output ``o`` of ``output_size`` averages the elements from
``start_index(o)`` up to, not including, ``end_index(o)``.
The formula is ATen's (``aten/src/ATen/native/AdaptivePooling.h``), in integers, never in floating point.
"""

import numpy as np


def start_index(o, output_size, input_size):
    """Return where the window of output `o` starts: ``floor(o * I / O)``."""
    return (o * input_size) // output_size


def end_index(o, output_size, input_size):
    """Return where the window ends, excluded: ``ceil((o + 1) * I / O)``."""
    return ((o + 1) * input_size + output_size - 1) // output_size


def pooling_windows(input_size, output_size):
    """Return where the window of every output starts and ends, along one axis.

    Parameters
    ----------
    input_size : int
        Length of the input along the axis, in elements; at least 1 unless `output_size` is 0.
    output_size : int
        Length of the output along the axis, in elements; 0 gives two empty arrays.

    Returns
    -------
    starts, ends : numpy.ndarray
        Two int64 arrays of shape ``(output_size,)``: output ``o`` is the mean of
        ``input[starts[o]:ends[o]]``.

    Raises
    ------
    ValueError
        If a size is negative, or there are outputs but no input.

    Notes
    -----
    Neighboring windows overlap by at most one element, and all lengths of an axis lie within one of each other.
    The outputs whose window holds input ``i`` are the window of ``i`` with the sizes' roles swapped,
    ``pooling_windows(output_size, input_size)``: the gradient is a gather.

    Examples
    --------
    >>> from numba_pool import pooling_windows
    >>> starts, ends = pooling_windows(7, 3)
    >>> starts
    array([0, 2, 4])
    >>> ends
    array([3, 5, 7])
    """
    if input_size < 0 or output_size < 0:
        raise ValueError(f"pooling_windows: sizes must be non-negative, got {input_size} and {output_size}")
    if input_size == 0 and output_size > 0:
        raise ValueError(f"pooling_windows: an empty axis has no windows, but output_size is {output_size}")
    o = np.arange(output_size, dtype=np.int64)
    if output_size == 0:
        return o, o.copy()
    return start_index(o, output_size, input_size), end_index(o, output_size, input_size)
