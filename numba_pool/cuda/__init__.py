"""The CUDA kernels: adaptive average pooling, forward and backward, at the memory's speed.

One idea carries all of them.
Forward sums, for every output, the inputs of its window.
Backward sums, for every input, the outputs whose window holds it; and those outputs are a window too, the one that
the formula gives when the two sizes change places.
So both directions are the same *window sum* from a source ``src`` of ``sH`` by ``sW`` elements to a destination ``dst``
of ``dH`` by ``dW``.
They differ in one division: forward divides a finished sum by the window's area, backward divides every source element
by the area of *its* window before it is summed.
Every destination element is owned by one thread, which *gathers* what it needs: no atomic, the same bits in every run.

A second idea removes the planes.
Planes lie one below the other in memory, and the windows of a plane end where the plane ends.
So ``planes`` planes of ``sH`` rows are one tall plane of ``planes * sH`` rows, and its windows obey the same formula:
line ``i`` of the tall destination starts at row ``i * sH // dH`` of the tall source.

=========== =============== ================== =====================================================================
kernel      memory format   windows            what a block does
=========== =============== ================== =====================================================================
``tiles``   contiguous      small              brings a piece of the source to shared memory and makes many outputs
``strips``  contiguous      tall or wide       sums columns in registers, then the columns of each window
``pixels``  channels_last   small              one thread, one pack of channels of one output
``bundles`` channels_last   large              many threads share a window's pixels
``finish``  both            parts of a window  adds the parts of windows that several blocks shared, in fixed order
=========== =============== ================== =====================================================================

The order of every sum depends on the sizes alone: not on the batch, the alignment, the device or the run.

Each kernel is a file.
``plan`` chooses between them, ``kernels`` compiles and launches them, and ``launch`` alone knows torch.
"""

from torch import Tensor

from .launch import pool

__all__ = ["backward", "forward"]


def forward(input: Tensor, output: Tensor) -> None:
    """Launch the average of every window of `input` into `output`, on torch's current stream of their device.

    Parameters
    ----------
    input : Tensor
        Shape ``(…, H, W)``, on a CUDA device, not empty, contiguous or channels_last.
    output : Tensor
        Shape ``(…, oH, oW)``, with the device, dtype and memory format of `input`.

    Raises
    ------
    ImportError
        If numba-cuda, or the CUDA toolkit that it needs, is not installed or cannot compile the kernels; the message
        names what to install.
    RuntimeError
        If the device cannot work with the dtype: bfloat16 needs compute capability 8.0 or later.
    """
    pool(input, output, backward=False)


def backward(grad_output: Tensor, grad_input: Tensor) -> None:
    """Launch the gradient of :func:`forward`: `grad_output`, ``(…, oH, oW)``, into `grad_input`, ``(…, H, W)``.

    Every element of `grad_input` is written once, by a gather: no atomics, the same bits in every run.

    Parameters
    ----------
    grad_output : Tensor
        Shape ``(…, oH, oW)``, on a CUDA device, not empty, contiguous or channels_last.
    grad_input : Tensor
        Shape ``(…, H, W)``, with the device, dtype and memory format of `grad_output`.

    Raises
    ------
    ImportError, RuntimeError
        As :func:`forward` does.
    """
    pool(grad_output, grad_input, backward=True)
