"""What a run recorded, as `log.csv`, and for TensorBoard where that is installed."""

import csv
from pathlib import Path

COLUMNS = ("step", "total", "supervised", "unlabelled", "contrast", "density", "validation")


class Log:
    """Args: the run's folder, and its history so far, which TensorBoard has seen already. Rows of steps that it does
    not hold, written before the run was interrupted, are dropped at once."""

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
        """Writes the whole table anew, so that a resumed run leaves no row twice."""
        with open(self.path, "w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(history)
        if self.board:
            for record in history[self.written :]:
                for name in record.keys() - {"step"}:
                    self.board.add_scalar(name, record[name], record["step"])
            self.board.flush()
        self.written = len(history)

    def close(self) -> None:
        if self.board:
            self.board.close()
