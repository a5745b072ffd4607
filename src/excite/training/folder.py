"""A run's folder: whose it is, whether the run in it is over, and where an interrupted one continues."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from excite.data import DataSet
from excite.errors import UserError
from excite.files import expanded, write_atomic
from excite.training.config import TrainConfig
from excite.training.files import read_state
from excite.training.progress import say
from excite.training.result import RunResult, describe_data, versions

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of one run.

    It holds config.yaml (the resolved settings), metrics.csv (a line an epoch), steps.csv (a line a batch), best and
    last.safetensors (portable checkpoints), last.ckpt and previous.ckpt (what resuming needs), correct.safetensors (the
    last epoch, image by image) and result.json (written last).

    Args:
        path: the folder; made by ``locked``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.steps = path / "steps.csv"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.correct = path / "correct.safetensors"
        self.unreadable = path / "unreadable-images.txt"
        self.state = path / "last.ckpt"
        self.new_state = path / "last.ckpt.new"
        self.previous_state = path / "previous.ckpt"
        self.result = path / "result.json"

    @classmethod
    def of(cls, config: TrainConfig) -> RunFolder:
        """The folder a config asks for: ``out``, else one under runs/ named after what it holds."""
        if config.out is not None:
            return cls(expanded(config.out))
        words = [config.model, config.gate or "none", f"seed{config.seed}", config.digest()]
        return cls(Path("runs") / "-".join(re.sub(r"[^\w.=]+", "-", word).strip("-")[:100] for word in words))

    def check(self, config: TrainConfig) -> None:
        """Checks that the folder is free or holds a run with these settings, without touching it.

        Raises:
            ValueError: it holds something else, or another run, or any run at all while ``resume`` is off.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"out={str(self.path)!r} is a file: name a folder")
        # Another rank may be writing its first file.
        if not self.path.exists() or all(file.name.startswith(".") for file in self.path.iterdir()):
            return
        if not self.config.exists():
            raise UserError(f"{self.path} is not empty and holds no run: name another folder with out")
        held = TrainConfig.from_yaml(self.config).settled()
        if names := held.differences(config):
            shown = ", ".join(f"{n}: {getattr(held, n)!r} there, {getattr(config, n)!r} now" for n in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{self.path} holds a run with other settings ({shown}{more}): name another folder with out"
            )
        if not config.resume:
            raise UserError(f"{self.path} holds a run already: name another folder with out, or give resume=true")

    def finished(self, data: DataSet | None = None) -> RunResult | None:
        """The result, if the run is over.

        Raises:
            ValueError: it is of other data than ``data``, or its file is damaged.
        """
        if not self.result.exists():
            return None
        result = RunResult.load(self.path)
        if data is not None:
            self._check_data(result.data, data)
        return result

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other processes out while this one trains in it.

        Raises:
            ValueError: another process is training in it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write in {self.path}: {error.strerror}; name another folder with out") from None
        try:
            import fcntl
        except ImportError:  # Windows has no such locks
            yield
            return
        place = self.path / ".lock"
        with open(place, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another process is training in {self.path}: wait for it, or name another folder with out"
                ) from None
            try:
                yield
            finally:
                place.unlink(missing_ok=True)

    def claim(self, config: TrainConfig, data: DataSet) -> None:
        """Writes what is known before training, removes what a killed run was writing; the folder is ``locked``."""
        try:
            for part in self.path.glob(".*.tmp"):
                if part.is_file():
                    part.unlink()
            write_atomic(self.config, config.to_yaml())
            if data.unreadable:
                write_atomic(self.unreadable, "".join(f"{line}\n" for line in data.unreadable))
        except OSError as error:
            raise UserError(f"cannot write in {self.path}: {error.strerror}; name another folder with out") from None

    def resume_point(self, data: DataSet) -> Path | None:
        """The newest whole training state, or None to begin at the beginning. Says which, and what was damaged.

        Raises:
            ValueError: the state is of other data.
        """
        # The new one is there only when a save was cut between its moves.
        states = (self.new_state, self.state, self.previous_state)
        for path in states:
            if not path.exists():
                continue
            try:
                state = read_state(path)
            except UserError as error:
                say("%s; it is not used", error)
                continue
            if "excite" not in state:
                raise UserError(f"{path} is another program's: name another folder with out, or remove it")
            self._check_data(state["excite"]["data"], data)
            say("continuing %s after epoch %d", self.path, len(state["excite"]["rows"]))
            if (begun := state["excite"]["versions"]) != versions():
                changed = [f"{name} {old}" for name, old in begun.items() if versions().get(name) != old]
                say("it was begun with %s: bits may differ from an uninterrupted run's", ", ".join(changed))
            return path
        if any(path.exists() for path in states):
            say("no whole state in %s: training starts again at the beginning", self.path)
        return None

    def _check_data(self, held: dict[str, Any], data: DataSet) -> None:
        if held != describe_data(data):
            raise UserError(f"{self.path} holds a run on other data ({held['name']}): name another folder with out")
