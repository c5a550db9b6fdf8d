"""One look for every picture, and how a curve is taken from a function and written to a file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

# Okabe and Ito's colours, told apart by colour-blind readers too; the dashes do it without colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)))
LOOK: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.08,
}
INCHES, DPI = 9, 200  # 1800 pixels, sharp at the 900 and fewer that a README page shows


@contextmanager
def look() -> Iterator[None]:
    """The settings above and matplotlib's own defaults; no matplotlibrc changes a picture."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(LOOK)
        yield


def grid(x: tuple[float, float], points: int = 601) -> Tensor:
    """Float64 points from end to end."""
    return torch.linspace(*x, points, dtype=torch.float64)


def with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and df/dx at every point, by autograd through the function itself."""
    x = x.clone().requires_grad_()
    values = function(x)
    (slopes,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), slopes


def panels(rows: int = 1, columns: int = 2) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(INCHES, 3.4 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def line(axis: Axes, x: Tensor, y: Tensor, label: str, number: int, **options: Any) -> None:
    """Curve `number` of its panel."""
    axis.plot(
        x.numpy(),
        y.numpy(),
        color=COLORS[number],
        linestyle=DASHES[number],
        label=label,
        **options,
    )


def words(axis: Axes, title: str, x: str, y: str, legend: Any = "best") -> None:
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if legend:
        axis.legend(loc=legend)


def save(figure: Figure, path: Path) -> None:
    """A PNG of few bytes and always the same ones: 128 colours, and no date or version in it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    # by octree, not by median cut, which gives a thin line the colour of the many pixels around it
    few = Image.open(drawn).convert("RGB").quantize(128, method=Image.Quantize.FASTOCTREE)
    few.save(path, optimize=True)
