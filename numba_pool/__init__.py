"""Adaptive average pooling for PyTorch, as kernels written in Python with Numba."""

from .config import precompile, show_config
from .functional import adaptive_avg_pool2d
from .modules import AdaptiveAvgPool2d, convert_adaptive_avg_pool2d, override_adaptive_avg_pool2d
from .windows import pooling_windows

__version__ = "0.1.0"

__all__ = [
    "AdaptiveAvgPool2d",
    "__version__",
    "adaptive_avg_pool2d",
    "convert_adaptive_avg_pool2d",
    "override_adaptive_avg_pool2d",
    "pooling_windows",
    "precompile",
    "show_config",
]
