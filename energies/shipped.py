"""Files that come with this package, found by their names alone."""

from pathlib import Path

SHIPPED = Path(__file__).resolve().parent / "data"
"""Where a file is looked for that is not found from the working directory."""


def located(path: str | Path) -> Path:
    """Return the path, or that of the file of this name which comes with this package."""
    shipped = SHIPPED / path
    return shipped if shipped.is_file() and not Path(path).is_file() else Path(path)
