"""Studies of what the paper leaves open: one command, one table and one picture each."""

from __future__ import annotations

from experiments.studies import (
    cold_items,
    fidelity,
    gate,
    missing_images,
    shorter_histories,
    third_modality,
)
from experiments.studies.study import Study

STUDIES: dict[str, Study] = {
    missing_images.NAME: missing_images.STUDY,
    third_modality.NAME: third_modality.STUDY,
    cold_items.NAME: cold_items.STUDY,
    gate.NAME: gate.STUDY,
    shorter_histories.NAME: shorter_histories.STUDY,
    shorter_histories.RETRAINED_NAME: shorter_histories.RETRAINED_STUDY,
    fidelity.NAME: fidelity.STUDY,
}
