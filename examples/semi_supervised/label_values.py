"""Maps the values or colours of label files to classes."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semi_supervised.listing import read_lines

LABELS = 2**16  # number of values that a label file can hold
NO_CLASS = LABELS - 1  # what LabelValues returns for pixels without a class
IGNORE = "ignore"  # name of a colour that is not a class
COLOUR = re.compile(r"(?<![\w.])\d+(?:[\s,;]+\d+){2,}(?![\w.])")  # 3 numbers or more
PLACES = np.array([1 << 16, 1 << 8, 1], dtype=np.int32)  # of red, green and blue in a number


class LabelValues:
    """Turns the values or colours of label files into classes.

    Args:
        values: the value of class 0, of class 1 and so on. A colour is one number, see PLACES.
        ignored: the values of pixels without a class.
        colours: whether the values are colours.
    """

    def __init__(self, values: Sequence[int], ignored: Sequence[int], colours: bool = False):
        self.values, self.colours = list(values), colours
        classes = dict.fromkeys(ignored, NO_CLASS) | {value: c for c, value in enumerate(values)}
        self._known = np.array(sorted(classes), dtype=np.int32)
        self._classes = np.array([classes[value] for value in self._known], dtype=np.int32)

    def classes(self, pixels: np.ndarray, path: Path) -> np.ndarray:
        """Returns the classes of a label, [H, W] for values [H, W] or colours [H, W, 3].

        Raises:
            ValueError: If the label holds another value or colour.
        """
        if self.colours:
            pixels = pixels @ PLACES
        place = np.searchsorted(self._known, pixels).clip(max=len(self._known) - 1)
        other = self._known[place] != pixels
        if other.any():
            value, what = int(pixels[other][0]), "a value of label_values or ignore_index"
            if self.colours:
                value, what = " ".join(map(str, np.array(value) // PLACES % 256)), "a listed colour"
            elif self.values[0] == 1 and len(self.values) == self.values[-1]:
                what = f"in [1, {self.values[-1]}] or equal ignore_index 0"
            add = f"; the line `{value} {IGNORE}` ignores it" if self.colours else ""
            raise ValueError(
                f"labels must be {what} in each pixel, got {value} at {other.sum():,} pixels of {path}{add}"
            )
        return self._classes[place]


def label_rule(
    values: Sequence[int] | None, colours: Path | None, ignore_index: int, num_classes: int | None
) -> LabelValues | None:
    """Returns the rule that maps the values of label files to classes.

    Args:
        values: the file's value of each class, or None.
        colours: a file of colours, see `read_colours`, or None.
        ignore_index: the file's value of pixels without a class. If it is 0, the classes are the values from 1 on.
        num_classes: number of classes, or None.

    Returns:
        The rule, or None if the values are the classes.

    Raises:
        ValueError: If the arguments do not fit together.
    """
    if values is not None and colours is not None:
        raise ValueError("label_values and colours exclude each other, got both")
    if colours is not None:
        read = read_colours(colours)
        named = [value for name, value in read if name.lower() != IGNORE]
        rule = LabelValues(named, [value for _, value in read if value not in named], colours=True)
    elif values is not None:
        if len(set(values)) < len(values) or not all(0 <= value < LABELS for value in values):
            raise ValueError(
                f"label_values must be different numbers in [0, {LABELS}), got {list(values)}"
            )
        rule = LabelValues(values, [ignore_index])
    elif ignore_index == 0:
        return LabelValues(range(1, NO_CLASS if num_classes is None else num_classes + 1), [0])
    else:
        return None
    if not 2 <= len(rule.values) <= (num_classes or len(rule.values)):
        name, most = ("colours", colours) if colours else ("label_values", list(values or ()))
        raise ValueError(
            f"{name} must hold at least 2 classes and at most num_classes {num_classes}, "
            f"got {len(rule.values)} in {most}"
        )
    return rule


def count_classes(
    pixels: np.ndarray,
    num_classes: int | None,
    ignore_index: int,
    rule: LabelValues | None,
    where: dict[int, Path],
) -> int:
    """Returns the number of classes, and checks that the labels fit it.

    Args:
        pixels: [LABELS], pixels of each label in all label files.
        num_classes: as configured. None: one more than the largest label.
        ignore_index: label of pixels without a class.
        rule: maps the values of the files to classes. None: they are the classes.
        where: for each largest label, a file that contains it.

    Raises:
        ValueError: If the labels do not fit.
    """
    found = [c for c in pixels.nonzero()[0].tolist() if c != ignore_index]
    if not found:
        only = "pixels without a class" if rule else ignore_index
        raise ValueError(f"labels must hold a class, got only {only}")
    highest = found[-1]
    if num_classes is None and rule and len(rule.values) < NO_CLASS - 1:
        num_classes = len(rule.values)
    if rule is None and found == [0] and ignore_index == 255 and pixels[255]:
        raise ValueError(
            "labels hold only 0 and 255, and 255 is ignore_index; for background 0 and foreground 255, set "
            "label_values=[0,255]"
        )
    values = "[...]"
    if len(found) < 10:
        values = str([rule.values[c] for c in found] if rule else found).replace(" ", "")
    if num_classes is None:
        num_classes = highest + 1
        if ignore_index >= num_classes > 4 * len(found):
            ignored = (
                "" if rule or not pixels[ignore_index] else f" and ignore_index {ignore_index}"
            )
            raise ValueError(
                f"labels hold only the values {values}{ignored}; set label_values={values} if these are classes, or "
                f"num_classes={num_classes} if the values between are classes too"
            )
    elif highest >= num_classes:
        few = (
            f"; label_values={values} makes these the classes" if len(found) <= num_classes else ""
        )
        raise ValueError(
            f"labels must lie in [0, {num_classes}) or equal ignore_index {ignore_index}, "
            f"got {highest} in {where.get(highest)}{few}"
        )
    if num_classes < 2:
        raise ValueError(
            f"there must be at least 2 classes, got {num_classes}; label {ignore_index} means that a pixel "
            "has no class"
        )
    if ignore_index < num_classes:
        raise ValueError(
            f"ignore_index must lie outside the classes [0, {num_classes}), got {ignore_index}; "
            f"the largest label is {highest}, in {where.get(highest)}; label_values={values} makes these the classes"
        )
    return num_classes


def read_colours(path: Path) -> list[tuple[str, int]]:
    """Reads a list of colours: a line per class, with red, green and blue, and a name before or after them.

    CVAT's labelmap.txt, CamVid's label_colors.txt and class_dict.csv are such lists. A line named "ignore" holds the
    colour of pixels without a class. Lines without three numbers are skipped.

    Returns:
        Name and colour of each line, the colour as one number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a colour does not fit, or occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"colours: there is no file {path}")
    colours: list[tuple[str, int]] = []
    for line in read_lines(path):
        found = None if line.startswith("#") else COLOUR.search(line)
        if not found:
            continue
        # A number before them belongs to the name: "class 1,64,0,128".
        numbers = [int(number) for number in re.findall(r"\d+", found[0])][-3:]
        value = int(np.array(numbers) @ PLACES)
        if max(numbers) > 255 or value in (other for _, other in colours):
            raise ValueError(
                f"colours: {path} must hold different colours in [0, 256), got {line!r}"
            )
        colours.append((line.replace(found[0], "").strip(" \t,;:"), value))
    return colours
