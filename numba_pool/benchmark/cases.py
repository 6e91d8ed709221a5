"""What is timed: named shapes, each with the reason why it is here.  Data only."""

import random
from dataclasses import dataclass
from math import prod

ALL_DTYPES = ("float32", "float64", "float16", "bfloat16")
LAYOUTS = ("NCHW", "NHWC", "strided")


def sizes(input_size, output_size):
    """Write ``(8, 64, 56, 56)`` and ``(7, 5)`` as ``8×64×56×56 → 7×5``; a square output is one number."""
    if len(set(output_size)) == 1:
        output_size = output_size[:1]
    return " → ".join("×".join(map(str, size)) for size in (input_size, output_size))


@dataclass(frozen=True)
class Case:
    """One input shape and output size to pool, and why it is worth timing.

    Parameters
    ----------
    name : str
        Short and unique; ``--cases`` selects by it, tables and plots show it beside the sizes.
    reason : str
        Where the shape comes from, or what it stresses.
    input_size : tuple of int
        ``(N, C, H, W)``.
    output_size : tuple of int
        ``(oH, oW)``.
    dtypes : tuple of str
        Names of torch dtypes; every case is timed in float32, a part in all four.
    strided : bool
        Whether a crop (a view that is neither NCHW nor NHWC in memory) is timed as well, in float32.
    quick : bool
        Whether ``--quick`` keeps the case.
    study : str
        ``"cases"`` for this list; other studies have their own names.
    layout : str
        The only layout that the case is timed in; if empty, all.
    """

    name: str
    reason: str
    input_size: tuple[int, int, int, int]
    output_size: tuple[int, int]
    dtypes: tuple[str, ...] = ("float32",)
    strided: bool = False
    quick: bool = False
    study: str = "cases"
    layout: str = ""

    @property
    def title(self):
        """The name with the sizes: ``"se 112, 16×32×112×112 → 1"``."""
        return f"{self.name}, {sizes(self.input_size, self.output_size)}"

    @property
    def input_elements(self):
        """The number of elements of the input, and of the gradient of the input."""
        return prod(self.input_size)

    @property
    def output_elements(self):
        """The number of elements of the output, and of the gradient of the output."""
        return prod(self.input_size[:2] + self.output_size)

    @property
    def window(self):
        """The mean number of input elements for each output element; below 1 where the output is larger."""
        return prod(self.input_size[2:]) / prod(self.output_size)

    def layouts(self, dtype):
        """Return the layouts in which the case is timed in `dtype`."""
        if self.layout:
            return (self.layout,)
        return LAYOUTS if self.strided and dtype == "float32" else LAYOUTS[:2]


CASES = (
    # The documented examples of the layer.
    Case("doc 32 to 1", "documented example: one layer, three input sizes", (1, 64, 32, 32), (1, 1)),
    Case("doc 16 to 1", "documented example: one layer, three input sizes", (1, 64, 16, 16), (1, 1)),
    Case("doc 8 to 1", "documented example, and mostly the call's cost", (1, 64, 8, 8), (1, 1), quick=True),
    Case("doc 32 to 4", "documented example: any output size", (2, 128, 32, 32), (4, 4), ALL_DTYPES),
    Case("doc 10x20 to 1x7", "documented example: a sequence", (2, 64, 10, 20), (1, 7)),
    Case("doc cnn 4 to 1", "documented example: the last feature map of a small CNN", (4, 256, 4, 4), (1, 1)),
    Case("doc 32 to 2", "documented example: adaptive against regular pooling", (1, 64, 32, 32), (2, 2)),
    # Heads of real networks.
    Case("resnet50 head", "7x7 to 1, a training batch", (32, 2048, 7, 7), (1, 1), ALL_DTYPES, quick=True),
    Case("resnet50 head, one image", "7x7 to 1, inference", (1, 2048, 7, 7), (1, 1)),
    Case("mobilenet head", "7x7 to 1, fewer channels", (32, 576, 7, 7), (1, 1)),
    Case("inception head", "8x8 to 1, windows that fill whole vectors", (32, 2048, 8, 8), (1, 1)),
    Case("cifar head", "8x8 to 1, a large batch of small maps", (128, 64, 8, 8), (1, 1)),
    Case("efficientnet head", "12x12 to 1, a network for larger images", (16, 1792, 12, 12), (1, 1)),
    Case("14 to 1", "the head of a network of stride 16", (32, 512, 14, 14), (1, 1), strided=True),
    Case("alexnet 13 to 6", "3x3 windows overlap", (32, 256, 13, 13), (6, 6), ALL_DTYPES, strided=True, quick=True),
    Case("vgg 7 to 7", "the identity, at the image size that it was made for", (32, 512, 7, 7), (7, 7), ALL_DTYPES),
    Case("vgg 10 to 7", "the same layer on a larger image", (32, 512, 10, 10), (7, 7)),
    # Squeeze and excitation: the mean of large maps, in every block.
    Case("se 112", "squeeze and excitation at the first stage", (16, 32, 112, 112), (1, 1), strided=True),
    Case("se 56", "squeeze and excitation at the second stage", (16, 144, 56, 56), (1, 1), ALL_DTYPES, quick=True),
    Case("se 28", "squeeze and excitation at the third stage", (16, 240, 28, 28), (1, 1)),
    Case("se 14", "squeeze and excitation at the fourth stage", (16, 480, 14, 14), (1, 1)),
    Case("coordinate attention, rows", "the mean of every row", (16, 96, 56, 56), (56, 1)),
    Case("coordinate attention, columns", "the mean of every column", (16, 96, 56, 56), (1, 56)),
    # Pyramids.
    Case("pyramid 60 to 1", "pyramid pooling of a scene", (2, 2048, 60, 60), (1, 1)),
    Case("pyramid 60 to 2", "pyramid pooling of a scene", (2, 2048, 60, 60), (2, 2)),
    Case("pyramid 60 to 3", "pyramid pooling of a scene", (2, 2048, 60, 60), (3, 3)),
    Case("pyramid 60 to 6", "pyramid pooling of a scene", (2, 2048, 60, 60), (6, 6), ALL_DTYPES),
    Case("spatial pyramid 13 to 4", "spatial pyramid pooling, windows of 4x4 that overlap", (16, 256, 13, 13), (4, 4)),
    Case("regions 14 to 7", "regions of interest: many planes, windows of 2x2", (128, 256, 14, 14), (7, 7)),
    # Downsampling, sequences and pictures.
    Case("half 112 to 56", "every window is 2x2", (8, 64, 112, 112), (56, 56)),
    Case("quarter 112 to 28", "every window is 4x4", (8, 64, 112, 112), (28, 28)),
    Case("text line 4x100 to 1x100", "text recognition: columns become a sequence", (16, 512, 4, 100), (1, 100)),
    Case("spectrogram 80x300 to 10x75", "sound: both axes shrink, by different factors", (8, 32, 80, 300), (10, 75)),
    Case("signal 4096 to 64", "a signal as a plane of one row", (8, 64, 1, 4096), (1, 64)),
    Case("signal 4096 to 64, upright", "a signal as a plane of one column", (8, 64, 4096, 1), (64, 1)),
    Case("video frame to 7", "720x1280, three channels, large windows", (4, 3, 720, 1280), (7, 7)),
    Case("picture to 224", "1080x1920, three channels, windows of 5x9", (2, 3, 1080, 1920), (224, 224), strided=True),
    # Sizes that do not divide.
    Case("56 to 7x5", "a tuple that does not divide", (8, 256, 56, 56), (7, 5), ALL_DTYPES, strided=True, quick=True),
    Case("57 to 56", "every 2x2 window overlaps on all sides: the most sums", (4, 64, 57, 57), (56, 56)),
    Case("224 to 50", "windows of 5 and 6 that overlap", (8, 16, 224, 224), (50, 50), ALL_DTYPES),
    Case("97 to 13", "primes, square", (8, 64, 97, 97), (13, 13)),
    Case("101x67 to 31x17", "primes, a rectangle", (8, 32, 101, 67), (31, 17)),
    Case("31 to 29", "primes close together", (16, 64, 31, 31), (29, 29)),
    # Output larger than input.
    Case("7 to 14", "larger, and divides: copies of each element", (16, 256, 7, 7), (14, 14), ALL_DTYPES, quick=True),
    Case("7 to 56", "much larger", (4, 64, 7, 7), (56, 56)),
    Case("5 to 12", "larger, and does not divide", (16, 128, 5, 5), (12, 12)),
    Case("1 to 7", "one element becomes a plane", (32, 512, 1, 1), (7, 7)),
    # One huge plane, or few: the threads must share a plane.
    Case("plane 4096 to 1", "one huge plane, one window", (1, 1, 4096, 4096), (1, 1)),
    Case("plane 4096 to 7", "one huge plane, does not divide", (1, 1, 4096, 4096), (7, 7), ALL_DTYPES, quick=True),
    Case("plane 4096 to 1000", "one huge plane, a large output that does not divide", (1, 1, 4096, 4096), (1000, 1000)),
    Case("three planes 2048 to 3", "fewer planes than most machines have cores", (1, 3, 2048, 2048), (3, 3)),
    # Very many tiny planes: what is done once for each plane counts.
    Case("planes 1 to 1", "nothing to add: a copy", (64, 4096, 1, 1), (1, 1)),
    Case("planes 2 to 1", "a million planes of four elements", (1024, 1024, 2, 2), (1, 1), ALL_DTYPES, quick=True),
    Case("planes 3 to 2", "a quarter of a million planes, windows of 2x2 that overlap", (256, 1024, 3, 3), (2, 2)),
    Case("planes 4 to 2", "tiny planes that divide", (64, 1024, 4, 4), (2, 2)),
    # Tiny tensors: only the cost of the call counts.
    Case("call 1 to 1", "the smallest input there is", (1, 1, 1, 1), (1, 1)),
    Case("call 4 to 2", "one small plane", (1, 1, 4, 4), (2, 2)),
    Case("call 8 to 2", "a small feature map, not the mean", (1, 64, 8, 8), (2, 2), ALL_DTYPES, quick=True),
    Case("call 7 to 1", "the head of a small network on one image", (1, 96, 7, 7), (1, 1)),
)  # fmt: skip

# Timed on GPUs only, whose caches hold the largest of the cases above.
LARGE = (
    Case("large 56 to 7", "411 MB, windows of 8x8", (128, 256, 56, 56), (7, 7), ALL_DTYPES),
    Case("large 112 to 56", "308 MB, windows of 2x2", (96, 64, 112, 112), (56, 56)),
    Case("large 57 to 50", "333 MB, does not divide", (100, 256, 57, 57), (50, 50)),
    Case("large 7 to 1", "411 MB, small planes", (1024, 2048, 7, 7), (1, 1), ALL_DTYPES),
    Case("large plane to 7", "537 MB, two planes", (1, 2, 8192, 8192), (7, 7)),
)

SERIES = (
    *(
        Case(f"{s}x{s} pixels", "bandwidth against the size", (1, 16, s, s), (7, 7), study="pixels")
        for s in (14, 28, 56, 112, 224, 448, 896)
    ),
    *(
        Case(f"{planes} of {s}x{s}", "time against the number of threads", (1, n, s, s), (7, 7), study="threads")
        for planes, n, s in (("1 plane", 1, 4096), ("256 planes", 256, 256))
    ),
)

# Inputs of sizes that never come again: heights and widths from 20 to 80, each pair once.
NEW_SIZES = tuple(
    Case(f"new sizes, {channels} channels to {size}", "each height and width once", (1, channels, 80, 80), 2 * (size,),
         study="sizes", layout="NCHW")
    for channels, size in ((16, 3), (256, 1), (256, 7))
)  # fmt: skip


def random_cases(count=300, seed=1):
    """Return `count` cases of random shapes, the same for a seed; every second one is channels_last.

    Inputs and outputs have a thousand to four million elements together, heights and widths of 1 to 130 are pooled to
    1 to 40.
    """
    numbers = random.Random(seed)
    cases: list[Case] = []
    while len(cases) < count:
        N, C = numbers.choice((1, 2, 4, 8, 16)), numbers.choice((1, 3, 8, 16, 32, 64, 100, 256, 512))
        H, W, oH, oW = (numbers.randint(1, most) for most in (130, 130, 40, 40))
        if 1000 < N * C * (H * W + oH * oW) < 4_000_000:
            layout = LAYOUTS[len(cases) % 2]
            name = f"random {len(cases)}"
            cases.append(Case(name, "a random shape", (N, C, H, W), (oH, oW), study="random", layout=layout))
    return tuple(cases)
