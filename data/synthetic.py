"""Fifteen classes of procedurally drawn grey scenes: the embedded default data set, made in seconds without a download.

The class names are those of 15-Scene (Lazebnik et al. 2006). Every picture is sketched in unit coordinates (x to the
right and y downwards, both 0..1; greys 0 black to 1 white) and then photographed: framed, flipped, sometimes at night,
blurred, and given a mean and a contrast drawn alike for all classes, so that shape and not brightness tells the class.
"""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

IMAGES_PER_CLASS = MappingProxyType({"train": 40, "val": 12, "test": 28})
_OVERSAMPLING = 2  # sketches are drawn this many times larger: scaling them down smooths the edges


class _Canvas:
    """A square grey picture drawn on in unit coordinates; parts may reach beyond its edges."""

    def __init__(self, generator, pixels):
        self.image = Image.new("L", (pixels, pixels), 128)
        self.draw = ImageDraw.Draw(self.image)
        self.generator = generator
        self.pixels = pixels

    def light(self):
        return self.generator.uniform(0.7, 1.0)

    def middle(self):
        return self.generator.uniform(0.35, 0.65)

    def dark(self):
        return self.generator.uniform(0.0, 0.3)

    def polygon(self, points, grey):
        self.draw.polygon([self._place(point) for point in points], fill=_ink(grey))

    def rectangle(self, left, top, right, bottom, grey, rounding=0.0):
        box = [*self._place((left, top)), *self._place((right, bottom))]
        self.draw.rounded_rectangle(box, radius=rounding * self.pixels, fill=_ink(grey))

    def disc(self, x, y, radius, grey, height=None):
        """An ellipse `radius` wide from its centre and `height` high from it; a circle without `height`."""
        height = radius if height is None else height
        box = [*self._place((x - radius, y - height)), *self._place((x + radius, y + height))]
        self.draw.ellipse(box, fill=_ink(grey))

    def line(self, points, grey, width):
        pixels = max(1, round(width * self.pixels))
        self.draw.line([self._place(point) for point in points], fill=_ink(grey), width=pixels, joint="curve")

    def gradient(self, top, bottom, top_grey, bottom_grey):
        """A band over the whole width, its grey running from `top_grey` to `bottom_grey`."""
        rows = range(math.floor(top * self.pixels), math.ceil(bottom * self.pixels))
        for row, grey in zip(rows, np.linspace(top_grey, bottom_grey, len(rows)), strict=True):
            self.draw.line([(0, row), (self.pixels, row)], fill=_ink(grey))

    def _place(self, point):
        return round(point[0] * self.pixels), round(point[1] * self.pixels)


def _ink(grey):
    return round(255 * min(1.0, max(0.0, grey)))  # shades made by adding to a grey may leave 0..1


def _recede(point, vanishing_point, depth):
    """The place of a point of the picture plane (depth 0) once it has moved `depth` away."""
    nearness = 1 / (1 + depth)
    return tuple(far + (near - far) * nearness for near, far in zip(point, vanishing_point, strict=True))


def _wavy_line(generator, left_height, right_height, amplitude, waves):
    """Points of a sine wave that crosses the picture from `left_height` to `right_height`."""
    across = np.linspace(-0.02, 1.02, 40)
    swing = amplitude * np.sin(2 * np.pi * (waves * across + generator.uniform()))
    return list(zip(across, left_height + (right_height - left_height) * across + swing, strict=True))


def _ground_below(line):
    """The outline of all that lies below a line across the picture."""
    return [*line, (1.02, 1.02), (-0.02, 1.02)]


def _sky(canvas, generator, horizon):
    canvas.gradient(0, horizon, generator.uniform(0.55, 0.85), generator.uniform(0.8, 1.0))
    for _ in range(generator.integers(0, 4)):
        x, y, grey = generator.uniform(0, 1), generator.uniform(0.0, 0.6) * horizon, generator.uniform(0.85, 1.0)
        half = generator.uniform(0.07, 0.14)
        for puff in np.linspace(-1, 1, 6):
            height = (0.5 - 0.35 * abs(puff)) * half * generator.uniform(0.8, 1.1)
            canvas.disc(x + puff * half, y - 0.5 * height, 0.45 * half, grey, height)
        canvas.disc(x, y, 1.4 * half, grey, height=0.12 * half)


def _room(canvas, generator):
    """Walls, floor and ceiling seen head on; returns left, top, right and bottom of the far wall."""
    left, right = generator.uniform(0.06, 0.2), generator.uniform(0.8, 0.94)
    top, bottom = generator.uniform(0.06, 0.16), generator.uniform(0.58, 0.68)
    far_wall, floor = generator.uniform(0.65, 0.9), generator.uniform(0.35, 0.65)
    side_wall = far_wall - generator.uniform(0.12, 0.25)
    canvas.rectangle(0, 0, 1, 1, side_wall)
    canvas.polygon([(left, top), (right, top), (1.1, -0.05), (-0.1, -0.05)], far_wall + 0.15)
    canvas.polygon([(left, bottom), (right, bottom), (1.15, 1.05), (-0.15, 1.05)], floor)
    canvas.rectangle(left, top, right, bottom, far_wall)
    for corner, outside in (((left, top), (-0.1, -0.05)), ((right, top), (1.1, -0.05))):
        canvas.line([corner, outside], side_wall - 0.2, 0.008)
    canvas.line([(left, bottom), (right, bottom)], floor - 0.25, 0.012)
    return left, top, right, bottom


def _framed(canvas, left, top, right, bottom, inside, frame, border=0.015):
    """A rectangle of grey `inside` with a border of grey `frame`: windows, pictures, doors, screens."""
    canvas.rectangle(left, top, right, bottom, frame)
    canvas.rectangle(left + border, top + border, right - border, bottom - border, inside)


def _tree(canvas, generator, x, ground, height):
    canvas.line([(x, ground), (x, ground - 0.6 * height)], canvas.dark(), 0.1 * height)
    grey = generator.uniform(0.15, 0.4)
    for _ in range(7):
        across, up = generator.uniform(-0.22, 0.22) * height, generator.uniform(0.5, 0.95) * height
        shade = grey + generator.uniform(-0.08, 0.08)
        canvas.disc(x + across, ground - up, generator.uniform(0.15, 0.25) * height, shade)


def _car(canvas, x, ground, length):
    """A car seen from behind, `length` wide."""
    body, glass, tyre = canvas.middle(), canvas.dark(), 0.05
    for side in (-0.36, 0.36):
        canvas.rectangle(x + (side - 0.1) * length, ground - 0.2 * length, x + (side + 0.1) * length, ground, tyre)
    canvas.rectangle(x - 0.36 * length, ground - 0.8 * length, x + 0.36 * length, ground - 0.3 * length, body, 0.01)
    canvas.rectangle(x - 0.28 * length, ground - 0.72 * length, x + 0.28 * length, ground - 0.48 * length, glass)
    canvas.rectangle(x - 0.5 * length, ground - 0.48 * length, x + 0.5 * length, ground - 0.12 * length, body, 0.01)


# ----- indoors ---------------------------------------------------------------------------------------------------


def _bedroom(canvas, generator):
    """A bed seen from its foot, its head at the far wall, with a bedside lamp and a window."""
    left, top, right, bottom = _room(canvas, generator)
    x, half = generator.uniform(0.4, 0.6), generator.uniform(0.17, 0.23)
    foot_half, foot = half * generator.uniform(1.35, 1.6), generator.uniform(0.82, 0.9)
    head = bottom - generator.uniform(0.04, 0.1)
    sheet, blanket, wood = canvas.light(), canvas.middle(), canvas.dark()

    for side in (-1, 1):  # a window or picture on both sides above the bed, a lamp on a bedside table below
        if generator.uniform() < 0.7:
            centre = x + side * generator.uniform(0.16, 0.24)
            _framed(canvas, centre - 0.1, top + 0.05, centre + 0.1, top + 0.24, canvas.light(), wood)
            canvas.line([(centre, top + 0.05), (centre, top + 0.24)], wood, 0.012)
        if generator.uniform() < 0.8:
            table = x + side * (half + 0.11)
            canvas.rectangle(table - 0.06, bottom - 0.08, table + 0.06, bottom + 0.08, wood)
            canvas.line([(table, bottom - 0.08), (table, bottom - 0.16)], wood, 0.015)
            shade = [(-0.03, -0.22), (0.03, -0.22), (0.055, -0.13), (-0.055, -0.13)]
            canvas.polygon([(table + across, bottom + up) for across, up in shade], 1.0)

    canvas.rectangle(x - half - 0.02, head - generator.uniform(0.15, 0.22), x + half + 0.02, bottom, wood, 0.03)
    corners = [(x - half, head), (x + half, head), (x + foot_half, foot), (x - foot_half, foot)]
    canvas.polygon(corners, sheet)
    fold = generator.uniform(0.3, 0.5)
    fold_half, fold_height = half + (foot_half - half) * fold, head + (foot - head) * fold
    canvas.polygon([(x - fold_half, fold_height), (x + fold_half, fold_height), *corners[2:]], blanket)
    canvas.line([(x - fold_half, fold_height), (x + fold_half, fold_height)], sheet, 0.03)
    canvas.rectangle(x - foot_half, foot, x + foot_half, foot + 0.08, blanket - 0.2)
    for side in (-1, 1):
        pillow = x + side * half * 0.5
        canvas.rectangle(pillow - 0.45 * half, head - 0.05, pillow + 0.45 * half, head + 0.04, sheet - 0.15, 0.03)
        canvas.rectangle(pillow - 0.42 * half, head - 0.05, pillow + 0.42 * half, head + 0.03, sheet, 0.03)
        canvas.rectangle(x + side * foot_half - 0.02, foot - 0.06, x + side * foot_half + 0.02, foot + 0.13, wood)


def _livingroom(canvas, generator):
    """A sofa with cushions, a picture above it, a standing lamp beside it and a low table on a rug before it."""
    _, top, _, bottom = _room(canvas, generator)
    x, half, seat = generator.uniform(0.4, 0.55), generator.uniform(0.24, 0.3), bottom + generator.uniform(0.0, 0.05)
    sofa, wood = generator.uniform(0.15, 0.5), canvas.dark()

    picture = x + generator.uniform(-0.08, 0.08)
    width, height = generator.uniform(0.09, 0.17), generator.uniform(0.13, 0.18)
    _framed(canvas, picture - width, top + 0.06, picture + width, top + 0.06 + height, canvas.light(), wood, 0.02)
    canvas.disc(picture, top + 0.06 + height / 2, 0.35 * width, canvas.middle())

    lamp = x + half + generator.uniform(0.1, 0.15)
    canvas.line([(lamp, bottom + 0.08), (lamp, bottom - 0.3)], wood, 0.016)
    canvas.disc(lamp, bottom + 0.08, 0.06, wood, height=0.015)
    shade = [(-0.04, -0.42), (0.04, -0.42), (0.085, -0.27), (-0.085, -0.27)]
    canvas.polygon([(lamp + across, bottom + up) for across, up in shade], canvas.light())

    canvas.disc(x, 0.88, generator.uniform(0.3, 0.42), canvas.light(), height=generator.uniform(0.07, 0.1))
    canvas.rectangle(x - half, seat - generator.uniform(0.18, 0.22), x + half, seat + 0.05, sofa, 0.04)
    cushions = generator.integers(2, 4)
    for left in np.linspace(x - half, x + half, cushions, endpoint=False):
        right = left + 2 * half / cushions
        canvas.rectangle(left + 0.008, seat - 0.13, right - 0.008, seat - 0.02, sofa + 0.12, 0.03)
        canvas.rectangle(left + 0.004, seat - 0.02, right - 0.004, seat + 0.05, sofa + 0.25, 0.02)
    canvas.rectangle(x - half, seat + 0.05, x + half, seat + 0.11, sofa - 0.1)
    for side in (-1, 1):
        arm = x + side * half
        canvas.rectangle(arm - 0.05, seat - 0.08, arm + 0.05, seat + 0.12, sofa + 0.06, 0.04)
        canvas.rectangle(arm - 0.02, seat + 0.12, arm + 0.02, seat + 0.15, wood)
    table = x + generator.uniform(-0.08, 0.08)
    canvas.disc(table, 0.86, generator.uniform(0.14, 0.2), wood, height=0.035)
    for side in (-0.09, 0.09):
        canvas.line([(table + side, 0.86), (table + 1.2 * side, 0.95)], wood, 0.016)


def _kitchen(canvas, generator):
    """Wall cupboards and an extractor hood over a worktop with an oven, a sink and more cupboards."""
    tiles, front, edge = canvas.light(), generator.uniform(0.5, 0.85), canvas.dark()
    upper_bottom, worktop = generator.uniform(0.28, 0.36), generator.uniform(0.52, 0.6)
    lower_bottom = generator.uniform(0.88, 0.94)
    columns = generator.integers(4, 6)
    oven = generator.integers(1, columns - 1)
    sink = oven + 1 if oven < columns / 2 else oven - 1
    width = 1 / columns

    canvas.rectangle(0, 0, 1, 1, tiles)
    for y in np.arange(upper_bottom, worktop, 0.05):
        canvas.line([(0, y), (1, y)], tiles - 0.15, 0.006)
    for x in np.arange(0, 1, 0.06):
        canvas.line([(x, upper_bottom), (x, worktop)], tiles - 0.15, 0.006)
    canvas.rectangle(0, lower_bottom, 1, 1, canvas.middle())
    for column in range(columns):
        left, right = column * width, (column + 1) * width
        middle = (left + right) / 2
        if column == oven:
            hood = [(middle - 0.05, 0), (middle + 0.05, 0), (middle + 0.05, upper_bottom - 0.1)]
            hood += [(right, upper_bottom), (left, upper_bottom), (middle - 0.05, upper_bottom - 0.1)]
            canvas.polygon(hood, front - 0.25)
            canvas.rectangle(left + 0.01, worktop, right - 0.01, lower_bottom, edge)
            canvas.rectangle(left + 0.03, worktop + 0.14, right - 0.03, lower_bottom - 0.06, canvas.light(), 0.015)
            canvas.rectangle(left + 0.045, worktop + 0.17, right - 0.045, lower_bottom - 0.08, edge, 0.01)
            for knob in np.linspace(left + 0.05, right - 0.05, 4):
                canvas.disc(knob, worktop + 0.085, 0.016, 0.95)
            canvas.rectangle(middle - 0.05, worktop - 0.09, middle + 0.05, worktop, canvas.middle(), 0.01)
            canvas.line([(middle + 0.05, worktop - 0.06), (middle + 0.11, worktop - 0.07)], edge, 0.014)
            continue
        _framed(canvas, left, -0.02, right, upper_bottom, front, edge, 0.01)
        _framed(canvas, left + 0.03, 0.04, right - 0.03, upper_bottom - 0.05, front + 0.1, front - 0.2, 0.008)
        canvas.line([(right - 0.04, upper_bottom - 0.1), (right - 0.04, upper_bottom - 0.03)], edge, 0.014)
        if column == sink:
            tap = [(middle, worktop), (middle, worktop - 0.11), (middle + 0.06, worktop - 0.11)]
            canvas.line([*tap, (middle + 0.06, worktop - 0.07)], edge, 0.018)
        drawers = generator.integers(1, 4)
        for top in np.linspace(worktop, lower_bottom, drawers, endpoint=False):
            bottom = top + (lower_bottom - worktop) / drawers
            _framed(canvas, left, top, right, bottom, front, edge, 0.01)
            canvas.line([(middle - 0.04, top + 0.06), (middle + 0.04, top + 0.06)], edge, 0.016)
    canvas.rectangle(0, worktop - 0.005, 1, worktop + 0.035, canvas.light())
    canvas.line([(0, worktop + 0.04), (1, worktop + 0.04)], edge, 0.01)


def _office(canvas, generator):
    """Rows of desks with monitors and chairs under ceiling lights, a window with blinds behind them."""
    left, top, right, bottom = _room(canvas, generator)
    for x in np.linspace(0.15, 0.85, generator.integers(2, 4)):
        canvas.polygon([(x - 0.07, 0.025), (x + 0.07, 0.025), (x + 0.09, 0), (x - 0.09, 0)], 1.0)
    window_left, window_right = generator.uniform(left + 0.04, 0.35), generator.uniform(0.65, right - 0.04)
    _framed(canvas, window_left, top + 0.04, window_right, top + 0.22, 0.95, canvas.dark())
    for y in np.arange(top + 0.06, top + 0.21, 0.025):
        canvas.line([(window_left, y), (window_right, y)], 0.6, 0.008)

    far_row, near_row = (bottom - 0.02, 0.6, 0.35, 4), (0.84, 1.0, 0.44, generator.integers(2, 4))
    for desk, scale, half, monitors in (far_row, near_row):
        wood, screen, case = canvas.light(), generator.uniform(0.6, 1.0), canvas.dark()
        middle = 0.5 + generator.uniform(-0.08, 0.08)
        left, right = middle - half, middle + half
        for leg in (left + 0.02, right - 0.02):
            canvas.line([(leg, desk), (leg, desk + 0.2 * scale)], case, 0.03 * scale)
        back = desk - 0.05 * scale
        canvas.polygon([(left, desk), (right, desk), (right - 0.03, back), (left + 0.03, back)], wood)
        canvas.line([(left, desk), (right, desk)], wood - 0.35, 0.025 * scale)
        width, height = generator.uniform(0.1, 0.125) * scale, generator.uniform(0.16, 0.2) * scale
        for x in np.linspace(middle - 0.68 * half, middle + 0.68 * half, monitors):
            foot = desk - 0.025 * scale
            canvas.rectangle(x - 0.05 * scale, foot - 0.015, x + 0.05 * scale, foot, case)
            canvas.rectangle(x - 0.015 * scale, foot - 0.06 * scale, x + 0.015 * scale, foot, case)
            screen_bottom = foot - 0.04 * scale
            _framed(canvas, x - width, screen_bottom - height, x + width, screen_bottom, screen, case, 0.02 * scale)
            for text in np.linspace(screen_bottom - 0.8 * height, screen_bottom - 0.3 * height, 3):
                end = x + generator.uniform(-0.3, 0.6) * width
                canvas.line([(x - 0.65 * width, text), (end, text)], screen - 0.35, 0.014 * scale)
            chair = x + generator.uniform(-0.04, 0.04)
            canvas.line([(chair, desk + 0.05 * scale), (chair, desk + 0.22 * scale)], case, 0.02 * scale)
            seat = desk + 0.12 * scale
            canvas.rectangle(chair - 0.07 * scale, desk - 0.01, chair + 0.07 * scale, seat, case + 0.1, 0.02)


def _store(canvas, generator):
    """Shelves from side to side, full of boxes, bottles and tins."""
    shelves, board, back = generator.integers(3, 6), canvas.light(), generator.uniform(0.1, 0.35)
    top, bottom = generator.uniform(0.02, 0.14), generator.uniform(0.88, 0.98)
    canvas.rectangle(0, 0, 1, 1, canvas.middle())
    canvas.rectangle(0, top, 1, bottom, back)
    height = (bottom - top) / shelves
    for shelf in range(1, shelves + 1):
        ground = top + shelf * height - 0.02
        x = generator.uniform(-0.05, 0.0)
        while x < 1:
            width, tall = generator.uniform(0.04, 0.085), height * generator.uniform(0.5, 0.8)
            grey, mark = generator.uniform(0.2, 1.0), generator.uniform(0.0, 1.0)
            kind = generator.choice(["box", "bottle", "tin"])
            for _ in range(generator.integers(1, 5)):  # goods of a kind stand side by side
                middle = x + width / 2
                if kind == "bottle":
                    canvas.rectangle(middle - 0.2 * width, ground - tall, middle + 0.2 * width, ground, grey)
                    canvas.rectangle(x, ground - 0.65 * tall, x + width, ground, grey, 0.015)
                elif kind == "tin":
                    canvas.rectangle(x, ground - tall, x + width, ground, grey)
                    canvas.disc(middle, ground - tall, width / 2, grey + 0.2, height=0.012)
                else:
                    canvas.rectangle(x, ground - tall, x + width, ground, grey)
                canvas.rectangle(x + 0.1 * width, ground - 0.45 * tall, x + 0.9 * width, ground - 0.2 * tall, mark)
                x += width + 0.008
        canvas.rectangle(0, ground, 1, ground + 0.03, board)
        for tag in np.arange(generator.uniform(0.02, 0.1), 1, 0.13):
            canvas.rectangle(tag, ground + 0.005, tag + 0.05, ground + 0.025, board - 0.4)


# ----- in town ---------------------------------------------------------------------------------------------------


def _highway(canvas, generator):
    """A wide road that narrows to a point on the horizon, with lane marks, guard rails and cars."""
    horizon = generator.uniform(0.32, 0.48)
    vanishing = (generator.uniform(0.38, 0.62), horizon)
    left, right = generator.uniform(-0.5, -0.15), generator.uniform(1.15, 1.5)
    road, mark = generator.uniform(0.2, 0.45), generator.uniform(0.85, 1.0)
    _sky(canvas, generator, horizon)
    canvas.gradient(horizon, 1, canvas.middle(), canvas.middle())
    hills = _wavy_line(generator, horizon - 0.03, horizon - 0.03, 0.02, generator.uniform(0.7, 1.6))
    canvas.polygon([*hills, (1.02, horizon), (-0.02, horizon)], canvas.middle() - 0.1)
    canvas.polygon([(left, 1.02), (right, 1.02), vanishing], road)

    lanes = generator.integers(2, 5)
    for x in (left + 0.06, right - 0.06):
        canvas.polygon([(x - 0.025, 1.02), (x + 0.025, 1.02), vanishing], mark)
    for x in np.linspace(left, right, lanes + 1)[1:-1]:
        for depth in np.arange(generator.uniform(-0.2, 0.1), 12, 0.7):
            near = [_recede((x + side, 1.02), vanishing, depth) for side in (-0.025, 0.025)]
            far = [_recede((x + side, 1.02), vanishing, depth + 0.35) for side in (0.025, -0.025)]
            canvas.polygon([*near, *far], mark)
    for x in (left - 0.12, right + 0.12):
        canvas.line([_recede((x, 0.82), vanishing, 0), vanishing], canvas.light(), 0.02)
        for depth in np.arange(0.1, 6, 0.4):
            post = [_recede((x, height), vanishing, depth) for height in (0.8, 1.02)]
            canvas.line(post, 0.2, 0.02 / (1 + depth))
    if generator.uniform() < 0.4:
        depth, beam = generator.uniform(1.5, 3), horizon - 0.6
        corners = [(left - 0.1, 1.02), (left - 0.1, beam), (right + 0.1, beam), (right + 0.1, 1.02)]
        canvas.line([_recede(corner, vanishing, depth) for corner in corners], canvas.dark(), 0.015)
        for x in (left + 0.15, right - 0.75):
            sign_left, sign_top = _recede((x, beam - 0.12), vanishing, depth)
            sign_right, sign_bottom = _recede((x + 0.6, beam + 0.2), vanishing, depth)
            _framed(canvas, sign_left, sign_top, sign_right, sign_bottom, canvas.dark(), 1.0, 0.008)
    for depth in sorted(generator.uniform(0.7, 5, size=generator.integers(0, 4)), reverse=True):
        lane = (generator.integers(0, lanes) + 0.5) / lanes
        x, ground = _recede((left + (right - left) * lane, 1.02), vanishing, depth)
        _car(canvas, x, ground, 0.34 / (1 + depth))


def _street(canvas, generator):
    """A street between two rows of houses whose roofs, windows and kerbs run to one vanishing point."""
    vanishing = (generator.uniform(0.42, 0.58), generator.uniform(0.52, 0.62))
    _sky(canvas, generator, vanishing[1])
    canvas.gradient(vanishing[1], 1, canvas.middle(), canvas.middle())
    canvas.polygon([(0.08, 1.02), (0.92, 1.02), vanishing], generator.uniform(0.2, 0.4))
    for x in (0.08, 0.92):
        canvas.line([(x, 1.02), vanishing], canvas.light(), 0.012)

    for side in (-0.08, 1.08):
        depths = np.cumsum([0, *generator.uniform(0.35, 0.8, size=7)])
        for near, far in reversed(list(zip(depths[:-1], depths[1:], strict=True))):
            roof, wall, glass = generator.uniform(-0.4, 0.05), generator.uniform(0.35, 0.85), canvas.dark()
            corners = [(roof, near), (roof, far), (0.92, far), (0.92, near)]
            canvas.polygon([_recede((side, y), vanishing, depth) for y, depth in corners], wall)
            canvas.line([_recede((side, y), vanishing, depth) for y, depth in corners[1:3]], wall - 0.3, 0.008)
            canvas.line([_recede((side, y), vanishing, depth) for y, depth in corners[:2]], wall - 0.3, 0.02)
            for window in np.linspace(near, far, 4)[:-1]:
                start, end = window + 0.06 * (far - near), window + 0.25 * (far - near)
                for y in np.arange(roof + 0.1, 0.8, 0.24):
                    pane = [(y, start), (y, end), (y + 0.14, end), (y + 0.14, start)]
                    canvas.polygon([_recede((side, y), vanishing, depth) for y, depth in pane], glass)

    for depth in (3.0, 1.6, 0.8):
        for side in (0.22, 0.78):
            if generator.uniform() < 0.5:
                x, ground = _recede((side, 1.02), vanishing, depth)
                _car(canvas, x, ground, 0.24 / (1 + depth))
    lamp_side = generator.choice([0.04, 0.96])
    for depth in (2.4, 1.1, 0.4):
        foot, head = _recede((lamp_side, 0.97), vanishing, depth), _recede((lamp_side, 0.15), vanishing, depth)
        arm = (head[0] + math.copysign(0.12, 0.5 - lamp_side) / (1 + depth), head[1])
        canvas.line([foot, head, arm], 0.1, 0.02 / (1 + depth))


def _insidecity(canvas, generator):
    """A house front that fills the picture: rows of windows over shops with awnings, a door and a pavement."""
    wall, glass, trim = generator.uniform(0.4, 0.8), canvas.dark(), canvas.light()
    shop_top, pavement = generator.uniform(0.5, 0.6), generator.uniform(0.88, 0.93)
    columns, storeys = generator.integers(3, 5), generator.integers(1, 3)
    canvas.rectangle(0, 0, 1, 1, wall)
    for y in np.arange(0, shop_top, 0.035):
        canvas.line([(0, y), (1, y)], wall - 0.07, 0.005)
    width, height = 1 / columns, (shop_top - 0.04) / storeys
    has_arches = generator.uniform() < 0.5
    for row in range(storeys):
        for column in range(columns):
            middle, top, bottom = (column + 0.5) * width, (row + 0.2) * height, (row + 0.88) * height
            half = 0.25 * width
            if has_arches:
                canvas.disc(middle, top + 0.02, half + 0.015, trim, height=0.06)
            _framed(canvas, middle - half - 0.015, top, middle + half + 0.015, bottom, glass, trim)
            canvas.line([(middle, top), (middle, bottom)], trim, 0.012)
            canvas.line([(middle - half, (top + bottom) / 2), (middle + half, (top + bottom) / 2)], trim, 0.012)
            canvas.rectangle(middle - half - 0.035, bottom, middle + half + 0.035, bottom + 0.02, trim)

    canvas.rectangle(0, shop_top - 0.035, 1, shop_top, trim - 0.2)
    canvas.rectangle(0, shop_top, 1, pavement, wall - 0.2)
    shops = generator.integers(2, 4)
    door = generator.integers(0, shops)
    for shop in range(shops):
        left, right = (shop + 0.06) / shops, (shop + 0.94) / shops
        _framed(canvas, left, shop_top + 0.1, right, pavement - 0.05, canvas.middle(), trim)
        if shop == door:
            middle = (left + right) / 2
            _framed(canvas, middle - 0.07, shop_top + 0.08, middle + 0.07, pavement, glass, trim, 0.02)
            canvas.disc(middle + 0.03, (shop_top + pavement) / 2 + 0.08, 0.01, trim)
        stripes = generator.integers(5, 8)
        for stripe in range(stripes):
            ends = [left + (right - left) * (stripe + side) / stripes for side in (0, 1)]
            awning = [(ends[0], shop_top + 0.02), (ends[1], shop_top + 0.02)]
            awning += [(x + 0.25 * (x - (left + right) / 2), shop_top + 0.14) for x in reversed(ends)]
            canvas.polygon(awning, trim if stripe % 2 else glass)
    canvas.rectangle(0, pavement, 1, 1, canvas.middle())
    canvas.line([(0, pavement + 0.05), (1, pavement + 0.05)], canvas.light(), 0.012)


def _tallbuilding(canvas, generator):
    """One to three towers with grids of windows against the sky, seen from the ground up."""
    _sky(canvas, generator, 1.0)
    skyline = canvas.middle() + 0.1
    for x in np.arange(-0.05, 1.0, 0.13):
        canvas.rectangle(x, generator.uniform(0.72, 0.86), x + generator.uniform(0.09, 0.16), 1, skyline)
    towers = generator.integers(1, 4)
    for tower in generator.permutation(towers):
        middle = (tower + 0.5) / towers + generator.uniform(-0.06, 0.06)
        half = generator.uniform(0.11, 0.15) if towers == 3 else generator.uniform(0.14, 0.21)
        roof = generator.uniform(0.06, 0.28)
        wall, glass = (canvas.dark() + 0.1, canvas.light()) if generator.uniform() < 0.5 else (0.6, canvas.dark())
        left, right = middle - half, middle + half
        if generator.uniform() < 0.5:
            canvas.line([(middle, roof), (middle, roof - 0.12)], wall, 0.014)
        if generator.uniform() < 0.4:
            canvas.rectangle(middle - 0.6 * half, roof - 0.05, middle + 0.6 * half, roof, wall)
        canvas.rectangle(left, roof, right, 1, wall)
        back = right + generator.uniform(0.03, 0.07)
        canvas.polygon([(right, roof), (back, roof + 0.04), (back, 1), (right, 1)], wall - 0.1)
        columns, pitch = generator.integers(3, 6), generator.uniform(0.055, 0.08)
        width = 2 * half / columns
        for y in np.arange(roof + 0.03, 1, pitch):
            for x in np.linspace(left, right, columns, endpoint=False):
                canvas.rectangle(x + 0.2 * width, y, x + 0.8 * width, y + 0.6 * pitch, glass)


def _industrial(canvas, generator):
    """A works: smoking chimneys, a hall with a saw-tooth roof, storage tanks and pipes."""
    ground = generator.uniform(0.8, 0.9)
    _sky(canvas, generator, ground)
    steel, wall, shadow = canvas.middle(), generator.uniform(0.3, 0.6), canvas.dark()
    for x in generator.choice(np.linspace(0.12, 0.88, 6), size=generator.integers(2, 5), replace=False):
        top, half = generator.uniform(0.18, 0.38), generator.uniform(0.035, 0.055)
        wind, smoke = generator.uniform(0.2, 0.5), generator.uniform(0.3, 0.6)
        for drift in np.linspace(0.3, 0, 9):
            puff = smoke + 0.8 * drift + generator.uniform(-0.06, 0.06)
            canvas.disc(x + wind * drift, top - 0.8 * drift, 0.03 + 0.22 * drift, puff)
        shaft = [(x - 0.6 * half, top), (x + 0.6 * half, top), (x + half, ground), (x - half, ground)]
        canvas.polygon(shaft, shadow + 0.1)
        for band in (0.03, 0.09):
            canvas.rectangle(x - 0.65 * half, top + band, x + 0.65 * half, top + band + 0.03, 0.9)

    teeth, hall_left, hall_top = generator.integers(3, 5), generator.uniform(-0.05, 0.45), ground - 0.2
    for tooth in range(teeth):
        left = hall_left + tooth * 0.15
        canvas.polygon([(left, hall_top), (left, hall_top - 0.1), (left + 0.15, hall_top)], shadow + 0.15)
    canvas.rectangle(hall_left, hall_top, hall_left + teeth * 0.15, ground, wall)
    for x in np.arange(hall_left + 0.03, hall_left + teeth * 0.15 - 0.05, 0.075):
        canvas.rectangle(x, hall_top + 0.05, x + 0.045, hall_top + 0.11, 0.9)
    for _ in range(generator.integers(1, 4)):
        x, half, height = generator.uniform(0.08, 0.92), generator.uniform(0.07, 0.11), generator.uniform(0.14, 0.26)
        canvas.disc(x, ground - height, half, steel + 0.2, height=0.035)
        for strip in np.linspace(-1, 0.75, 8):  # a cylinder: lighter towards one side
            canvas.rectangle(x + strip * half, ground - height, x + (strip + 0.25) * half, ground, steel + 0.2 * strip)
        canvas.disc(x, ground - height, half, steel + 0.3, height=0.03)
    pipe = ground - generator.uniform(0.03, 0.1)
    canvas.gradient(ground, 1, canvas.middle(), canvas.middle())
    for offset in (0, 0.045):
        canvas.line([(0, pipe + offset), (1, pipe + offset)], canvas.light() - 0.1, 0.026)
        canvas.line([(0, pipe + offset + 0.014), (1, pipe + offset + 0.014)], shadow, 0.008)


def _suburb(canvas, generator):
    """A house with a gable roof, a garage, a lawn and a path to the door, trees around it."""
    ground = generator.uniform(0.66, 0.76)
    _sky(canvas, generator, ground)
    canvas.gradient(ground, 1, generator.uniform(0.3, 0.5), generator.uniform(0.5, 0.7))
    for _ in range(generator.integers(1, 4)):
        _tree(canvas, generator, generator.choice([0.05, 0.12, 0.88, 0.95]), ground, generator.uniform(0.3, 0.5))
    wall, roof, glass = generator.uniform(0.75, 1.0), generator.uniform(0.1, 0.4), canvas.dark()
    middle, half = generator.uniform(0.36, 0.48), generator.uniform(0.2, 0.26)
    eaves, ridge = ground - generator.uniform(0.22, 0.28), ground - generator.uniform(0.42, 0.52)

    garage = middle + half + generator.uniform(0.2, 0.26)
    garage_eaves = ground - 0.17
    canvas.rectangle(middle, garage_eaves, garage, ground, wall - 0.1)
    garage_roof = [(middle, garage_eaves - 0.12), (garage - 0.05, garage_eaves - 0.12)]
    canvas.polygon([*garage_roof, (garage + 0.04, garage_eaves), (middle, garage_eaves)], roof + 0.08)
    door_left = middle + half + 0.035
    canvas.rectangle(door_left, ground - 0.12, garage - 0.03, ground, wall - 0.3)
    for y in (ground - 0.09, ground - 0.06, ground - 0.03):
        canvas.line([(door_left, y), (garage - 0.03, y)], wall - 0.5, 0.006)

    chimney = middle - 0.5 * half
    canvas.rectangle(chimney - 0.03, ridge, chimney + 0.03, eaves, roof + 0.15)
    canvas.rectangle(middle - half, eaves, middle + half, ground, wall)
    canvas.polygon([(middle - half, eaves + 0.01), (middle + half, eaves + 0.01), (middle, ridge + 0.02)], wall)
    gable = [(middle - half - 0.05, eaves + 0.03), (middle, ridge), (middle + half + 0.05, eaves + 0.03)]
    canvas.line(gable, roof, 0.05)
    canvas.disc(middle, (ridge + eaves) / 2 + 0.03, 0.04, glass)
    door = middle + generator.choice([-0.1, 0.1])
    window = 2 * middle - door
    _framed(canvas, window - 0.075, eaves + 0.07, window + 0.075, eaves + 0.17, glass, roof)
    canvas.line([(window, eaves + 0.07), (window, eaves + 0.17)], roof, 0.014)
    canvas.rectangle(door - 0.04, ground - 0.15, door + 0.04, ground, glass)
    bend = door + generator.uniform(-0.15, 0.15)
    canvas.polygon([(door - 0.04, ground), (door + 0.04, ground), (bend + 0.12, 1.02), (bend - 0.1, 1.02)], 0.95)
    for _ in range(generator.integers(2, 6)):
        x, radius = generator.uniform(0, 1), generator.uniform(0.03, 0.06)
        canvas.disc(x, ground + 0.01, radius, canvas.dark() + 0.1, height=0.03)
    if generator.uniform() < 0.5:
        fence = ground + 0.1
        for x in np.arange(-0.02, 1.02, 0.05):
            canvas.rectangle(x, fence - 0.06, x + 0.022, fence + 0.04, 1.0)
        canvas.line([(0, fence - 0.02), (1, fence - 0.02)], 1.0, 0.014)


# ----- in the country --------------------------------------------------------------------------------------------


def _coast(canvas, generator):
    """Sea under a straight horizon, rows of waves, and a beach whose edge runs aslant."""
    horizon = generator.uniform(0.28, 0.46)
    _sky(canvas, generator, horizon)
    sea, foam = generator.uniform(0.2, 0.4), generator.uniform(0.85, 1.0)
    if generator.uniform() < 0.5:
        length, height = generator.uniform(0.25, 0.5), generator.uniform(0.06, 0.13)
        outline = [(0, 1.0), (0.4, 0.9), (0.7, 0.4), (1.0, 0.0), (0, 0.0)]
        canvas.polygon([(across * length, horizon - up * height) for across, up in outline], canvas.dark())
    canvas.gradient(horizon, 1, sea, sea + generator.uniform(0.1, 0.25))
    if generator.uniform() < 0.4:
        x, height = generator.uniform(0.5, 0.9), generator.uniform(0.1, 0.17)
        canvas.polygon([(x, horizon - height), (x, horizon), (x + 0.6 * height, horizon)], 1.0)
        hull = [(-0.04, 0.01), (0.12, 0.01), (0.09, 0.04), (0.0, 0.04)]
        canvas.polygon([(x + across, horizon + down) for across, down in hull], 0.1)
    for nearness in np.cumsum(generator.uniform(0.1, 0.22, size=7)):
        y = horizon + 0.03 + 0.5 * nearness**1.5
        crest = _wavy_line(generator, y, y, 0.004 + 0.014 * nearness, generator.uniform(2.5, 4.5))
        start = generator.integers(0, 14)
        crest = crest[start : start + generator.integers(20, 40)]
        canvas.line([(x, y + 0.015) for x, y in crest], sea - 0.12, 0.008 + 0.018 * nearness)
        canvas.line(crest, foam, 0.006 + 0.018 * nearness)
    shore_ends = generator.uniform(0.62, 0.72), generator.uniform(0.88, 1.0)
    shore = _wavy_line(generator, *shore_ends, 0.02, generator.uniform(1, 2))
    canvas.polygon(_ground_below([(x, y - 0.04) for x, y in shore]), foam)
    canvas.polygon(_ground_below(shore), generator.uniform(0.5, 0.8))


def _forest(canvas, generator):
    """Upright trunks from bottom to top, far and near, under leaves and over undergrowth."""
    canvas.gradient(0, 1, canvas.middle(), canvas.light())
    floor = generator.uniform(0.72, 0.86)
    canvas.gradient(floor, 1, canvas.middle(), canvas.dark())
    bark = generator.uniform(0.05, 0.3)
    for nearness in np.sort(generator.uniform(0, 1, size=generator.integers(9, 16))):
        x, width = generator.uniform(0, 1), 0.02 + 0.075 * nearness**2
        lean, foot = generator.uniform(-0.03, 0.03), floor + 0.18 * nearness
        grey = bark + 0.3 * (1 - nearness)
        trunk = [(x + lean - 0.35 * width, -0.02), (x + lean + 0.35 * width, -0.02), (x + 0.5 * width, foot - 0.05)]
        roots = [(x + 0.8 * width, foot), (x - 0.8 * width, foot), (x - 0.5 * width, foot - 0.05)]
        canvas.polygon([*trunk, *roots], grey)
        canvas.line([(x + lean, 0), (x + 0.25 * width, foot - 0.04)], grey + 0.12, 0.2 * width)
        for side in (-1, 1):
            y = generator.uniform(0.25, 0.5)
            canvas.line([(x, y), (x + side * (0.06 + width), y - 0.12)], grey, 0.3 * width)
    leaf = generator.uniform(0.2, 0.6)
    for _ in range(90):
        y = generator.uniform(0, 0.5) * generator.uniform(0, 0.6)
        canvas.disc(generator.uniform(0, 1), y, generator.uniform(0.025, 0.06), leaf + generator.uniform(-0.2, 0.25))
    for _ in range(30):
        grey, radius = leaf + generator.uniform(-0.2, 0.2), generator.uniform(0.02, 0.05)
        canvas.disc(generator.uniform(0, 1), generator.uniform(floor + 0.05, 1), radius, grey, height=0.6 * radius)


def _mountain(canvas, generator):
    """Pointed peaks with a lit and a shaded side and snow on top, one range behind another."""
    foot = generator.uniform(0.78, 0.92)
    _sky(canvas, generator, foot)
    peaks = generator.integers(3, 6)
    places = generator.permutation(np.linspace(0.08, 0.92, peaks))
    for number, x in enumerate(places):
        nearness = number / (peaks - 1)
        top = generator.uniform(0.1, 0.25) + 0.25 * nearness
        left, right = x - generator.uniform(0.75, 1.0) * (foot - top), x + generator.uniform(0.75, 1.0) * (foot - top)
        lit = generator.uniform(0.5, 0.65) - 0.15 * nearness
        shade, snow = lit - generator.uniform(0.15, 0.3), generator.uniform(0.25, 0.4)
        fold = x + generator.uniform(-0.05, 0.1)
        canvas.polygon([(x, top), (left, foot), (fold, foot)], lit)
        canvas.polygon([(x, top), (fold, foot), (right, foot)], shade)
        snow_line, bite = top + snow * (foot - top), top + 0.65 * snow * (foot - top)
        for outside, grey in ((left, 1.0), (right, 0.75)):
            ends = [x + snow * (outside - x), x + snow * (fold - x)]
            canvas.polygon([(x, top), (ends[0], snow_line), (sum(ends) / 2, bite), (ends[1], snow_line)], grey)
    meadow = _wavy_line(generator, foot - generator.uniform(0, 0.06), foot - generator.uniform(0, 0.06), 0.015, 1.2)
    canvas.polygon(_ground_below(meadow), canvas.dark() + 0.1)
    for x in generator.uniform(0, 1, size=generator.integers(0, 9)):
        height = generator.uniform(0.08, 0.14)
        canvas.polygon([(x, foot - height), (x - 0.3 * height, foot + 0.03), (x + 0.3 * height, foot + 0.03)], 0.05)


def _opencountry(canvas, generator):
    """Rolling fields with hedges and single trees under a wide sky, bales of hay in the nearest field."""
    horizon = generator.uniform(0.38, 0.5)
    _sky(canvas, generator, horizon + 0.1)
    fields = generator.integers(3, 5)
    for field, height in enumerate(np.linspace(horizon, 0.74, fields)):
        ends = height + generator.uniform(-0.06, 0.06, size=2)
        ridge = _wavy_line(generator, *ends, generator.uniform(0.02, 0.045), generator.uniform(0.6, 1.1))
        canvas.polygon(_ground_below(ridge), generator.uniform(0.3, 0.8))
        hedge = canvas.dark()
        start, radius = generator.integers(0, 25), 0.014 + 0.005 * field
        for x, y in ridge[start : start + generator.integers(6, 18)]:
            canvas.disc(x + generator.uniform(-0.01, 0.01), y - 0.005, radius * generator.uniform(0.6, 1.5), hedge)
        for _ in range(generator.integers(0, 2)):
            x, y = ridge[generator.integers(3, 37)]
            _tree(canvas, generator, x, y + 0.02, 0.1 + 0.05 * field)
    for y in np.sort(generator.uniform(0.8, 0.95, size=generator.integers(2, 6))):
        x, radius, straw = generator.uniform(0, 1), 0.25 * (y - 0.6), canvas.light()
        canvas.disc(x + 0.7 * radius, y + radius, 1.8 * radius, 0.15, height=0.2 * radius)
        canvas.rectangle(x, y - radius, x + 1.8 * radius, y + radius, straw - 0.3, 0.5 * radius)
        for turn, grey in ((1.0, straw), (0.65, straw - 0.15), (0.35, straw)):
            canvas.disc(x, y, 0.75 * turn * radius, grey, height=turn * radius)


_SCENES = {
    "bedroom": _bedroom,
    "coast": _coast,
    "forest": _forest,
    "highway": _highway,
    "industrial": _industrial,
    "insidecity": _insidecity,
    "kitchen": _kitchen,
    "livingroom": _livingroom,
    "mountain": _mountain,
    "office": _office,
    "opencountry": _opencountry,
    "store": _store,
    "street": _street,
    "suburb": _suburb,
    "tallbuilding": _tallbuilding,
}
CLASS_NAMES: tuple[str, ...] = tuple(sorted(_SCENES))


def _photograph(sketch, generator, size):
    """The sketch as a camera might see it: framed, flipped, at night, uneven in light, out of focus, noisy.

    Mean and contrast are drawn last and alike for all classes, so that they say nothing about the class.
    """
    frame = generator.uniform(0.88, 1.0) * sketch.width
    left, top = generator.uniform(0, sketch.width - frame, size=2)
    picture = sketch.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + frame, top + frame))
    picture = picture.filter(ImageFilter.GaussianBlur(generator.uniform(0.0, 0.003) * size))
    values = np.asarray(picture, dtype=np.float32)
    if generator.uniform() < 0.5:
        values = values[:, ::-1]
    values = (values - values.mean()) / values.std()  # light and noise below are in units of this spread
    if generator.uniform() < 0.06:
        values = -values  # night: what was light is dark

    coarse = Image.fromarray(generator.normal(size=(4, 4)).astype(np.float32))
    light = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    values = values + generator.uniform(0, 0.1) * light
    values = values + generator.uniform(0, 0.07) * generator.normal(size=values.shape)
    values = (values - values.mean()) / values.std()
    return np.clip(generator.uniform(112, 142) + generator.uniform(46, 57) * values, 0, 255).round().astype(np.uint8)


def draw_scene(class_name: str, generator: np.random.Generator, size: int = 128) -> np.ndarray:
    """Draw one picture of a class, another one at each call: a uint8 array (size, size), 0 black to 255 white.

    All randomness comes from `generator`. Raises ValueError if the class is not one of CLASS_NAMES.
    """
    if class_name not in _SCENES:
        raise ValueError(f"unknown scene class {class_name!r}; known are {', '.join(CLASS_NAMES)}")
    canvas = _Canvas(generator, _OVERSAMPLING * size)
    _SCENES[class_name](canvas, generator)
    return _photograph(canvas.image, generator, size)


def write_scenes(
    folder: str | Path, images_per_class: Mapping[str, int] = IMAGES_PER_CLASS, size: int = 128, seed: int = 0
) -> Path:
    """Write a data set of drawn scenes as `<folder>/<split>/<class>/image_NNNN.png` and return the folder.

    images_per_class: split name -> images of each class in that split.  size: pixels, square.  seed: 0 or more.
    Every image has a seed of its own, made of (seed, split, class, number), so the same arguments give the same bytes
    and a larger data set contains the smaller one.  The folder appears whole or not at all.
    Raises FileExistsError if the folder exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; scenes are written into a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".scenes-") as unfinished:
        scenes = Path(unfinished) / "scenes"  # a folder inside: the temporary one is closed to other users
        for split, count in images_per_class.items():
            for class_name in CLASS_NAMES:
                (scenes / split / class_name).mkdir(parents=True)
                for number in range(count):
                    generator = _generator_of(seed, split, class_name, number)
                    picture = Image.fromarray(draw_scene(class_name, generator, size))
                    picture.save(scenes / split / class_name / f"image_{number:04d}.png")
        if folder.exists():
            folder.rmdir()  # empty; not every system renames onto an existing folder
        scenes.rename(folder)
    return folder


def _generator_of(seed, split, class_name, number):
    """The random generator of one image, independent of those of all others."""
    split_number = int.from_bytes(split.encode(), "big")
    return np.random.default_rng(np.random.SeedSequence([seed, CLASS_NAMES.index(class_name), number, split_number]))
