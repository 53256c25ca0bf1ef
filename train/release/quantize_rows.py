"""Calibration and held-out rows apart: what calibrates a model must not be what it is judged on."""

from collections.abc import Sequence

from tunegate.core.artifacts import Dataset, Release
from tunegate.core.console import say
from tunegate.core.errors import UserError
from tunegate.core.files import canonical_json
from tunegate.core.rows import Row, read_rows
from tunegate.train.release import prove


def held_out_of(release: Release, calibration: Dataset, rows: Sequence[Row]) -> Dataset:
    """The dataset whose held-out rows prove the quantization: the one that the release was trained on, where it is at hand with
    such rows; else `calibration`, and it is said. rows: those of `calibration` that are to calibrate.

    Raises UserError where one of them is held out there, by its prompt (an id may be another row's in another dataset).
    """
    try:
        own = prove.find_dataset(release)
    except UserError as error:
        say(f"whether calibration and proof keep apart what was trained and held out was not checked: {error.message}")
        return calibration
    if own.digest == calibration.digest:
        return calibration
    if not own.eval_path.stat().st_size:
        say(
            f"{own.path} holds nothing out: the proof is on {calibration.path}, which may hold rows that were trained on"
        )
        return calibration
    held_out = {_prompt(row) for row in read_rows(own.eval_path)}
    both = [row.id for row in rows if _prompt(row) in held_out]
    if both:
        raise UserError(
            f"{len(both)} of {len(rows)} calibration rows are held out in {own.path}: {', '.join(both[:3])}",
            where=str(calibration.train_path),
            hint="calibrate on the dataset it was trained on, or take those rows out",
        )
    return own


def _prompt(row: Row) -> str:
    return canonical_json([row.prompt, row.tools])
