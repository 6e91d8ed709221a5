"""A comparison in one line, on the reader's machine: functions that take turns on the same input."""

import html
from dataclasses import dataclass
from statistics import median

import torch
from tabulate import tabulate

from .timing import SAMPLERS, interleave

MODES = {"forward": "forward", "full": "forward and backward"}


@dataclass(frozen=True)
class Sentence:
    """A sentence in both of the book's languages; terminals and notebooks show the English one.

    Parameters
    ----------
    en, zh : str
        The same sentence in English and in Chinese.
    """

    en: str
    zh: str

    def __str__(self):
        return self.en

    __repr__ = __str__

    def as_html(self, tag):
        """Return an element that holds both; the book's style sheet shows the one in the language of its page."""
        en, zh = html.escape(self.en), html.escape(self.zh)
        return f'<{tag} class="sentence"><span lang="en">{en}</span><span lang="zh-CN" hidden>{zh}</span></{tag}>'

    def _repr_html_(self):
        return self.as_html("p")


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured; shown as a table and a sentence.

    Parameters
    ----------
    names : tuple of str
        The functions, the baseline first.
    samples : dict
        From ``(input, mode)`` to the seconds of each function in each round.
    threads : int
        torch's number of threads.
    """

    names: tuple[str, ...]
    samples: dict[tuple[str, str], dict[str, list[float]]]
    threads: int

    def ratio(self, mode="forward", name=None, input=None):
        """Return how many times as fast as the baseline a function was: the median over the rounds.

        Parameters
        ----------
        mode : str
            ``"forward"`` or ``"full"``.
        name : str, optional
            By default the last function.
        input : str, optional
            The label of an input, by default the first one's.

        Returns
        -------
        float
            Above 1, the function was faster than the baseline.
        """
        label = next(iter(self.samples))[0] if input is None else input
        times = self.samples[label, mode]
        own = times[self.names[-1] if name is None else name]
        return median(native / mine for native, mine in zip(times[self.names[0]], own, strict=True))

    @property
    def sentence(self):
        """Say where the last function was faster than the baseline, where slower, and by how much."""
        name, baseline = self.names[-1], self.names[0]
        ratios = {key: self.ratio(key[1], name, key[0]) for key in self.samples}
        # Rounded as they are printed: a sentence must not contradict the table above it.
        shown = {key: f"{ratio:.2f}" for key, ratio in ratios.items()}
        faster = [key for key, ratio in shown.items() if float(ratio) > 1]
        least, most = (f"{pick(ratios.values()):.2f}" for pick in (min, max))
        name_zh, baseline_zh = ("原生算子" if each == "native" else f" {each} " for each in (name, baseline))
        span_en, span_zh = (least, least) if least == most else (f"{least} to {most}", f"{least} 到 {most}")
        return Sentence(
            f"{name} is faster than {baseline} in {len(faster)} of {len(shown)} rows; "
            f"it is {span_en} times as fast ({self.threads} thread{'s' * (self.threads > 1)}).",
            f"{len(shown)} 行中有 {len(faster)} 行{name_zh}比{baseline_zh}快；"
            f"速度是后者的 {span_zh} 倍（{self.threads} 个线程）。",
        )

    def _rows(self):
        for (label, mode), times in self.samples.items():
            ratios = (self.ratio(mode, name, label) for name in self.names[1:])
            yield label, MODES[mode], *(1e6 * median(times[name]) for name in self.names), *ratios

    def _table(self, style):
        ratio = ("ratio",) if len(self.names) == 2 else tuple(f"ratio, {name}" for name in self.names[1:])
        headers = ("input", "mode", *(f"{name}, µs" for name in self.names), *ratio)
        formats = ("", "", *(",.1f" for _ in self.names), *(".2f" for _ in ratio))
        return tabulate(self._rows(), headers, style, floatfmt=formats)

    def __str__(self):
        return f"{self._table('simple')}\n{self.sentence}"

    __repr__ = __str__

    def _repr_html_(self):
        return self._table("html") + self.sentence._repr_html_()


def compare(functions, inputs, modes=("forward", "full"), seconds=0.2):
    """Time functions in turn on the same input, forward alone and with its gradients.

    Parameters
    ----------
    functions : dict of str to callable
        Layers, models or functions of one tensor; the first is the baseline of the ratios.
    inputs : torch.Tensor or dict of str to torch.Tensor
        What they are called with; the names label the rows.
    modes : sequence of str
        ``"forward"`` (without recording gradients) and ``"full"``: forward, then the gradients of the input and of the
        function's own parameters.
    seconds : float
        About how long each row may take.

    Returns
    -------
    Comparison
        Shows itself as a table, with a sentence on what it says.

    Examples
    --------
    >>> layers = {"native": torch.nn.AdaptiveAvgPool2d(1), "flat": lambda x: x.mean((2, 3), keepdim=True)}
    >>> compare(layers, torch.randn(1, 8, 16, 16), seconds=0.01).ratio("full", "native")
    1.0
    """
    if isinstance(inputs, torch.Tensor):
        inputs = {"×".join(map(str, inputs.shape)): inputs}
    threads, samples = torch.get_num_threads(), {}
    for label, input in inputs.items():
        for mode in modes:
            samplers = {
                name: SAMPLERS[input.device.type](bound(function, input, mode), threads)
                for name, function in functions.items()
            }
            samples[label, mode] = interleave(samplers, block=0.002, seconds=seconds, rounds=(5, 25))
    return Comparison(tuple(functions), samples, threads)


def bound(function, input, mode):
    """Return a function without arguments that does what `mode` says, once."""
    if mode == "forward":

        def infer():
            with torch.no_grad():
                return function(input)

        return infer
    leaf = input.detach().requires_grad_()
    leaves = [leaf, *getattr(function, "parameters", tuple)()]
    grad_output = torch.ones_like(function(leaf))
    return lambda: torch.autograd.grad(function(leaf), leaves, grad_output)
