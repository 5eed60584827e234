"""Writes a run's history to `log.csv`, and to TensorBoard if it is installed."""

import csv
from pathlib import Path

COLUMNS = ("step", "total", "supervised", "unlabelled", "contrast", "density", "validation")


class Log:
    """Logs of a run.

    Rows of an interrupted run that are not in the history are removed at once.

    Args:
        out: the run's folder.
        history: the history so far. TensorBoard already has it.
    """

    def __init__(self, out: Path, history: list[dict]):
        self.path, self.written = out / "log.csv", len(history)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            last = history[-1]["step"] if history else 0
            self.board = SummaryWriter(str(out), purge_step=last + 1)
        self.write(history)

    def write(self, history: list[dict]) -> None:
        """Rewrites the whole table, so that a resumed run does not repeat rows."""
        of_method = {name: None for record in history for name in record if name not in COLUMNS}
        with open(self.path, "w", newline="") as file:
            table = csv.DictWriter(file, (*COLUMNS, *of_method))
            table.writeheader()
            table.writerows(history)
        if self.board:
            for record in history[self.written :]:
                for name in record.keys() - {"step"}:
                    self.board.add_scalar(name, record[name], record["step"])
            self.board.flush()
        self.written = len(history)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self.board:
            self.board.close()
