"""The table as a picture: each measurement as a bar against its floor, to the scale of the ratio."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.row import Row

_WIDTH, _LABEL, _LINE, _TOP = 860, 360, 30, 46
_MOST = 3.0
"""Ratios beyond it are cut off, and say so by their number."""


def chart(rows: Sequence[Row], title: str) -> str:
    """An SVG document. The line at 1 is the floor; a bar that ends left of it is better than its floor."""
    rated = [(row, ratio) for row in rows if (ratio := row.ratio) is not None]
    height = _TOP + _LINE * len(rated) + 20
    scale = (_WIDTH - _LABEL - 70) / _MOST
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(title)}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="22" font-size="15">{escape(title)}</text>',
    ]
    for number, (row, ratio) in enumerate(rated):
        top = _TOP + number * _LINE
        long = min(ratio, _MOST) * scale
        colour = {True: "#3a7d44", False: "#b3541e", None: "#5b6b7b"}[row.met]
        parts += [
            f'<text x="{_LABEL - 8}" y="{top + 15}" text-anchor="end">{escape(row.name)}</text>',
            f'<rect x="{_LABEL}" y="{top}" width="{long:.1f}" height="20" fill="{colour}"/>',
            f'<text x="{_LABEL + long + 6:.1f}" y="{top + 15}">{ratio:.2f}</text>',
        ]
    line = _LABEL + scale
    parts += [
        f'<line x1="{line:.1f}" y1="{_TOP - 12}" x2="{line:.1f}" y2="{height - 16}" stroke="#222" '
        'stroke-dasharray="4 3"/>',
        f'<text x="{line:.1f}" y="{_TOP - 16}" text-anchor="middle" font-size="11">floor</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
