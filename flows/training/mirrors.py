"""Mirrors of a run's figures in other programs: optional, and never a reason to stop."""

import json
import os
import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

Row = dict[str, Any]


class Outcome(NamedTuple):
    """What a run has come to.

    Attributes:
        step: Gradient steps done.
        figures: The numbers of its evaluation by name.
        pictures: PNG files by name.
        files: What another machine needs to use the flow, below the run folder.
    """

    step: int
    figures: Mapping[str, float]
    pictures: Mapping[str, Path]
    files: Sequence[Path]


class Mirror(ABC):
    """Shows in another program what the run folder holds anyway."""

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take one row of figures; `row["step"]` counts gradient steps over the whole run."""

    def rewind(self, step: int) -> None:  # noqa: B027  # what cannot be taken back stays
        """Forget the rows after a step: training goes on from there, and they come again."""

    @abstractmethod
    def conclude(self, outcome: Outcome) -> None:
        """Take what the run has come to."""

    @abstractmethod
    def close(self) -> None:
        """Finish; a run that was never concluded ended before its time."""


class Guarded(Mirror):
    """Passes everything to a mirror until it fails; then warns, once, and lets it be.

    Args:
        start: Makes the mirror.
    """

    def __init__(self, start: Callable[[], Mirror]) -> None:
        self._mirror: Mirror | None = None
        self._do("start", lambda: setattr(self, "_mirror", start()))

    def log(self, row: Row) -> None:
        """Pass the row on."""
        if (mirror := self._mirror) is not None:
            self._do("take a row", lambda: mirror.log(row))

    def rewind(self, step: int) -> None:
        """Pass it on."""
        if (mirror := self._mirror) is not None:
            self._do("forget rows", lambda: mirror.rewind(step))

    def conclude(self, outcome: Outcome) -> None:
        """Pass the outcome on."""
        if (mirror := self._mirror) is not None:
            self._do("take the evaluation", lambda: mirror.conclude(outcome))

    def close(self) -> None:
        """Close the mirror."""
        if (mirror := self._mirror) is not None:
            self._do("close", mirror.close)

    def _do(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  # of another program: anything may come
            name = "A logger" if self._mirror is None else type(self._mirror).__name__
            self._mirror = None
            why = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(
                f"{name} failed to {what} and is left out from here on; metrics.jsonl has all of "
                f"it, the run goes on: {why}",
                stacklevel=2,
            )


class Wandb(Mirror):
    """Mirror a run to Weights & Biases.

    The id of the wandb run is kept in the run folder: a run that is resumed goes on as the same
    wandb run. Offline, each session leaves a folder `wandb/offline-run-*` of that id, and
    `wandb sync <run folder>/wandb` joins them in order of time.

    Args:
        folder: The run folder; all that wandb writes stays below it.
        config: Shown beside the run.
        project, mode: As in `wandb.init`; mode "offline" needs no account and no network.
        name: Shown as the run's name.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        project: str = "boltzflow",
        mode: Literal["online", "offline", "disabled"] = "offline",
        name: str | None = None,
    ) -> None:
        import wandb  # a mirror is optional, and importing it takes seconds

        self._wandb, self._folder, self._concluded = wandb, folder, False
        self._run = wandb.init(
            project=project,
            mode=mode,
            dir=str(folder),
            id=_stored_id(folder / "wandb" / "run_id"),
            resume="allow",
            name=name or folder.name,
            config=config,
        )

    def log(self, row: Row) -> None:
        """Send the row's numbers."""
        self._run.log(_numbers(row), step=row["step"])

    def conclude(self, outcome: Outcome) -> None:
        """Send figures to the summary, pictures to the media, files as an artifact.

        Figures are named `evaluation/<name>`: some rows have one of the same name.
        """
        pictures = {
            f"figures/{name}": self._wandb.Image(str(path))
            for name, path in outcome.pictures.items()
        }
        self._run.log(pictures, step=outcome.step)
        self._run.summary.update({f"evaluation/{k}": v for k, v in outcome.figures.items()})
        artifact = self._wandb.Artifact(f"flow-{self._run.id}", type="model")
        for path in outcome.files:
            # Immutable: not copied to the home folder first, which a compute node may not have.
            name = str(path.relative_to(self._folder))
            artifact.add_file(str(path), name=name, policy="immutable")
        self._run.log_artifact(artifact)
        self._concluded = True

    def close(self) -> None:
        """End the run, as failed if it was not concluded."""
        self._run.finish(exit_code=0 if self._concluded else 1)


class TensorBoard(Mirror):
    """Mirror a run to event files for TensorBoard, in `tensorboard/` of the run folder.

    Args:
        folder: The run folder.
        config: Shown as text.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open: Any = partial(SummaryWriter, str(folder / "tensorboard"))
        self._writer: Any = None
        self._text = f"```json\n{json.dumps(config, indent=2, default=str)}\n```"

    def log(self, row: Row) -> None:
        """Write the row's numbers."""
        writer = self._at(row["step"])
        for name, value in _numbers(row).items():
            writer.add_scalar(name, value, row["step"])

    def rewind(self, step: int) -> None:
        """Start another file, whose head tells TensorBoard to forget what came after `step`."""
        self.close()
        self._at(step + 1)

    def conclude(self, outcome: Outcome) -> None:
        """Write figures as `evaluation/<name>`, and pictures."""
        import numpy as np
        from PIL import Image

        writer = self._at(outcome.step)
        for name, value in outcome.figures.items():
            writer.add_scalar(f"evaluation/{name}", value, outcome.step)
        for name, path in outcome.pictures.items():
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            writer.add_image(f"figures/{name}", pixels, outcome.step, dataformats="HWC")

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _at(self, step: int) -> Any:
        """The writer, which if none is open is opened at a step."""
        if self._writer is None:
            self._writer = self._open(purge_step=step)
            self._writer.add_text("config", self._text, step)
        return self._writer


def _numbers(row: Row) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, int | float)}


def _stored_id(file: Path) -> str:
    """Return the id that the run folder holds; a new one, or the sweep agent's, is stored."""
    if file.is_file() and (stored := file.read_text(encoding="utf-8").strip()):
        return stored
    new = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{new}\n", encoding="utf-8")
    return new
