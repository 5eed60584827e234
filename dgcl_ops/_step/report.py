"""The diagnostics of DensityContrastLoss in words: why the loss is what it is, class by class."""

from collections.abc import Callable, Sequence

_LISTED = 12  # of a longer list, the first so many are named


def report(loss, class_names: Sequence[str] | None = None) -> str:
    """See DensityContrastLoss.report."""
    if class_names is not None and len(class_names) != loss.num_classes:
        raise ValueError(
            f"DensityContrastLoss.report: class_names must name all {loss.num_classes} classes, "
            f"got {len(class_names)} names"
        )
    state = State(loss, class_names)
    return "\n".join([state.headline(), *state.classes(), *state.pixels(), *state.bank()])


class State:
    """The diagnostics, on the host, and the sentences about them."""

    def __init__(self, loss, class_names: Sequence[str] | None):
        told = {name: tensor.tolist() for name, tensor in loss.diagnostics().items()}
        self.loss, self.names, self.told = loss, class_names, told
        self.waits = loss.strategy.start == "all_full"
        # Rows from which on a class takes part.
        self.needed = loss.bank.capacity if self.waits else loss.bank.min_rows
        every = range(loss.num_classes)
        self.present = [c for c in every if told["pixels"][c]]
        self.active = [c for c in every if told["active"][c]]
        self.contrasted = [c for c in every if c not in loss.exclude_classes]
        self.lacking = [c for c in self.contrasted if told["rows"][c] < self.needed]
        passed_over = ("ignored_pixels", "non_finite_pixels", "unknown_labels")
        self.passed_over = [told[name] for name in passed_over]
        self.total = sum(told["pixels"]) + sum(self.passed_over)

    # ---- sentences ----------------------------------------------------------------------------------

    def headline(self) -> str:
        if not self.total:
            return "No loss yet: the module has not been called with a batch that has pixels."
        if not self.active:
            return f"The last loss was 0: {self.why_none()}."
        losses = self.told["class_loss"]
        value = sum(losses[c] for c in self.active) / len(self.active)
        if value - value != 0:
            wrong = [c for c in self.active if losses[c] - losses[c] != 0]
            return (
                f"The last loss was {value}, that of {self.listed(wrong)}: finite projections so large that a "
                f"sum of them overflows, or a row of the bank in {self.loss.bank.dtype}."
            )
        number = f"The last loss was {value:.4g}"
        if len(self.present) == 1:
            return (
                f"{number}: the only class in the batch was {self.listed(self.present)}, so there were no "
                "negatives."
            )
        if value == 0:
            return (
                f"{number}: every anchor is so close to its key that the rest is lost in rounding."
            )
        if len(self.active) == 1:
            return f"{number}, that of the one class that took part."
        return f"{number}, the mean over the {len(self.active)} classes that took part."

    def why_none(self) -> str:
        """Why no class took part in a batch with pixels."""
        ignored, non_finite, unknown = self.passed_over
        if ignored == self.total:
            return (
                f"all {self.total:,} pixels were ignored (label {self.loss.strategy.ignore_index})"
            )
        if not self.present:
            labelled = non_finite + unknown
            if not unknown:
                return f"all {labelled:,} labelled pixels held an inf or NaN"
            if not non_finite:
                return f"all {labelled:,} labels that were not ignored lie outside {self.valid()}"
            return f"all {labelled:,} labelled pixels held an inf or NaN or a label outside {self.valid()}"
        wanted = [c for c in self.present if c in self.contrasted]
        if not wanted:
            return "all classes in the batch are excluded"
        if self.waits:
            return 'no class starts before every class is full (start="all_full")'
        if len(self.single_pixels()) == len(wanted):
            return "no class in the batch had a pixel for an anchor and another for a key"
        return "no class in the batch was ready"

    def classes(self) -> list[str]:
        lines = []
        if self.total:
            absent = [c for c in self.contrasted if c not in self.present]
            idle = [
                c
                for c in self.present
                if c in self.contrasted and c not in self.active and c not in self.lacking
            ]
            single = self.single_pixels()
            waiting = [c for c in idle if self.waits and self.lacking]
            since = [c for c in idle if c not in single and c not in waiting]
            lines = [
                ("Took part", self.listed(self.active)),
                ("Ready now, but not when the last step began", self.listed(since)),
                ("Full, waiting for the others", self.listed(waiting)),
                ("One pixel, which cannot be anchor and key", self.listed(single)),
                ("Absent from the batch", self.listed(absent)),
            ]
        lines += [
            ("Not ready", self.listed(self.lacking, self.rows)),
            ("Excluded", self.listed(list(self.loss.exclude_classes))),
        ]
        return [f"{title}: {text}." for title, text in lines if text]

    def pixels(self) -> list[str]:
        ignored, non_finite, unknown = self.passed_over
        lines = []
        if self.total:
            parts = [
                (ignored, f"ignored (label {self.loss.strategy.ignore_index})"),
                (non_finite, "with an inf or NaN"),
                (unknown, f"with another label outside {self.valid()}"),
            ]
            parts = [f"{number:,} {what}" for number, what in parts if number]
            which = ", of which " + ", ".join(parts) if parts else ""
            lines.append(f"Pixels of the last batch: {self.total:,}{which}.")
        ever = self.told["non_finite_rows"]
        if ever:
            lines.append(f"Pixels passed over for an inf or NaN since construction: {ever:,}.")
        return lines

    def bank(self) -> list[str]:
        bank = self.loss.bank
        size = sum(buffer.nbytes for buffer in (bank.features, bank.projections, bank.density))
        lines = [
            f"Bank: {sum(self.told['rows']):,} rows in {bank.num_classes} rings of {bank.capacity:,}, "
            f"{size / 1e6:.3g} MB{self.shared()}; pushes so far: {self.told['pushes']:,}."
        ]
        if not self.loss.training:
            lines.append("The module is in eval mode: batches do not enter the bank.")
        return lines

    # ---- words --------------------------------------------------------------------------------------

    def shared(self) -> str:
        ranks = self.loss.bank.ranks()
        if ranks.size == 1:
            return ""
        if not self.loss.bank.rings.whole:
            return f" of them here, in the windows of rank {ranks.rank} of {ranks.size}"
        return f", the same on {ranks.size} processes"

    def single_pixels(self) -> list[int]:
        """Ready classes whose only pixel would have to be both anchor and key."""
        strategy = self.loss.strategy
        if not (strategy.disjoint and strategy.keys == "high_confidence"):
            return []
        candidates = [c for c in self.contrasted if c not in self.lacking and c not in self.active]
        return [c for c in candidates if self.told["pixels"][c] == 1]

    def valid(self) -> str:
        return f"[0, {self.loss.num_classes})"

    def rows(self, c: int) -> str:
        return f" ({self.told['rows'][c]:,} of {self.needed:,} rows)"

    def listed(self, classes: list[int], more: Callable[[int], str] = lambda c: "") -> str:
        """ "0, 3 and 9 more"."""
        names = [
            f"{c if self.names is None else self.names[c]}{more(c)}" for c in classes[:_LISTED]
        ]
        left = len(classes) - len(names)
        return ", ".join(names) + (f" and {left:,} more" if left else "")
