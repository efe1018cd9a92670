"""Console output of a running command: a bar on a terminal, else plain lines."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Seconds between plain lines if there is no terminal.
_EVERY_SECONDS = 10.0


class _Console(Console):
    """A Console that raises BrokenPipeError if its reader has gone, as print() does."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Returns the console for results: width follows the terminal, 100 in a pipe."""
    return _Console(width=None if sys.stdout.isatty() else 100, highlight=False)


def print_line(message: str) -> None:
    """Prints a line without markup or wrapping."""
    console().print(message, markup=False, soft_wrap=True)


def ignore_line(message: str) -> None:
    """Prints nothing: a log function for the processes that do not report."""


def as_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> Table:
    """Returns a table for the screen; its first column has names.

    A cell is a value, or (value, its text); without columns there is no head.
    """
    about = Text(title) if title else None
    table = Table(title=about, title_style="", show_header=bool(columns))
    for index, name in enumerate(columns):
        justify = "right" if index else "left"
        table.add_column(Text(name), justify=justify, overflow="fold")
    for row in rows:
        texts = (cell[1] if isinstance(cell, tuple) else cell for cell in row)
        # Text keeps rich from reading "[unused1]" as markup.
        table.add_row(*(Text(str(text)) for text in texts))
    return table


def as_lines(*parts: Any) -> str:
    """Returns tables and lines as one text, as wide as the screen."""
    out = console()
    with out.capture() as captured:
        for part in parts:
            out.print(part, markup=False, soft_wrap=isinstance(part, str))
    return captured.get().rstrip()


def duration(seconds: float) -> str:
    """Returns 75 as "1:15" and 3725 as "1:02:05"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )


class Bar:
    """Shows the progress of some work, on process 0 and if `active`.

    `unit` names the items counted from `start` to `total`. Use it as a context
    manager.
    """

    def __init__(self, unit: str, total: int, start: int = 0, active: bool = True):
        self.unit, self.total = unit, total
        self._start, self._began = start, time.monotonic()
        self._shown = 0.0
        self._active = active and jax.process_index() == 0
        self._progress = None
        if self._active and sys.stdout.isatty():
            self._progress = Progress(
                TextColumn(unit + " {task.completed:,}/{task.total:,}"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console(),
            )
            self._task = self._progress.add_task("", total=total, completed=start)

    def __enter__(self):
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_):
        if self._progress:
            self._progress.stop()

    def show(self, done: int, description: str) -> None:
        """Shows the number of items done, and a text beside it."""
        if not self._active:
            return
        if self._progress:
            return self.announce(done, description)
        now = time.monotonic()
        early = now - self._shown < _EVERY_SECONDS or done == self._start
        if early and done < self.total:
            return
        self._shown = now
        rate = (now - self._began) / max(done - self._start, 1)
        left = duration(rate * (self.total - done))
        self.announce(done, f"{description}  {left} left")

    def announce(self, done: int, description: str) -> None:
        """Shows a text beside the bar; without a terminal, as a line unless empty."""
        if self._active and self._progress:
            self._progress.update(self._task, completed=done, description=description)
        elif self._active and description:
            print(f"{self.unit} {done:,}/{self.total:,}  {description}", flush=True)

    def resize(self, total: int) -> None:
        """Changes the number of items in all."""
        self.total = total
        if self._progress:
            self._progress.update(self._task, total=total)

    def print_line(self, message: str) -> None:
        """Prints a line without tearing the bar."""
        if not self._active:
            return
        if self._progress:
            self._progress.console.print(message, markup=False)
        else:
            print(message, flush=True)


class TrainingDisplay(Bar):
    """Shows loss, learning rate, tokens/s and time left of one training."""

    def __init__(self, steps: int, start: int):
        super().__init__("step", steps, start)

    def update(self, step: int, values: dict[str, float]) -> None:
        """Shows the metrics of a step."""
        figures = [
            # nan: nothing was predicted.
            f"loss {values['loss']:.3f}" if values["loss"] == values["loss"] else "",
            f"lr {values['learning_rate']:.1e}",
            f"{values['tokens_per_second']:,.0f} tokens/s",
        ]
        if "mfu" in values:
            figures.append(f"MFU {values['mfu']:.1%}")
        self.show(step, "  ".join(filter(None, figures)))
