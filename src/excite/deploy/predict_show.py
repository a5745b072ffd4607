"""Predictions on a terminal, or in a file."""

from __future__ import annotations

import csv
import io
import json
import sys

from excite.deploy.predict import PredictConfig, Predictions
from excite.files import expanded, write_atomic

__all__ = ["show_predictions"]


def show_predictions(result: Predictions, config: PredictConfig) -> int:
    """Prints predictions, or writes them to ``out``; what was skipped is named on stderr.

    Returns:
        The exit code: 0, or 1 if a picture was skipped.
    """
    if config.out is not None:
        out = expanded(config.out)
        write_atomic(out, _written(result, out.suffix.removeprefix(".")))
        print(f"{out}: {len(result.images)} pictures")
    else:
        print(_written(result, config.format), end="")
    for image, reason in result.skipped:
        print(f"skipped {image}: {reason}", file=sys.stderr)
    return 1 if result.skipped else 0


def _written(result: Predictions, format: str) -> str:
    if format == "json":
        return json.dumps(result.to_dict(), indent=1) + "\n"
    if format == "csv":
        return _csv(result)
    width = max((len(image) for image, _ in result.images), default=0)
    lines = [
        f"{image:{width}}  " + ", ".join(f"{guess.name} {100 * guess.probability:.1f} %" for guess in guesses) + "\n"
        for image, guesses in result.images
    ]
    return "".join(lines)


def _csv(result: Predictions) -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("image", "rank", "class", "probability"))
    for image, guesses in result.images:
        rows.writerows((image, i + 1, guess.name, f"{guess.probability:.6f}") for i, guess in enumerate(guesses))
    return text.getvalue()
