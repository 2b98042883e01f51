"""How pictures look in both labs."""

from typing import Any

PAPER, INK = "#FFFFFF", "#1F2328"
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D"  # Okabe and Ito's
DASHES = "-", "--", ":", "-."  # of the second, third, ... line of a colour
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#E8E8E8",
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "text.color": "#222222",
    "axes.labelcolor": "#444444",
    "svg.hashsalt": "compare",
    "text.parse_math": False,
}
