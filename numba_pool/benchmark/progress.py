"""A progress bar for a terminal."""

import time


class Progress:
    """A line that is written over: how much is done, what is running, how long it may still take.

    Parameters
    ----------
    total : int
        The number of steps.
    stream : file
        Where to write; nothing is written unless it is a terminal.
    width : int
        Characters of the bar.
    """

    def __init__(self, total, stream, width=24):
        self.total, self.stream, self.width = total, stream, width
        self.done, self.started = 0, time.monotonic()
        self.shown = stream.isatty()

    def step(self, label):
        """Say what begins now; all steps before it are done."""
        filled = self.width * self.done // max(1, self.total)
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done) if self.done else None
        remaining = "" if left is None else f" {int(left) // 60}:{int(left) % 60:02d} left"
        bar = "#" * filled + "." * (self.width - filled)
        self._write(f"[{bar}] {self.done}/{self.total}{remaining}  {label}")
        self.done += 1

    def close(self):
        """Clear the line."""
        self._write("")

    def _write(self, text):
        if self.shown:
            self.stream.write(f"\r\x1b[K{text[:118]}")
            self.stream.flush()
