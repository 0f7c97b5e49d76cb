"""Every fault that is tried, in the order of the table."""

from tests.faults import (
    cases_boxes,
    cases_embeddings,
    cases_indexes,
    cases_media,
    cases_pictures,
    cases_runs,
    cases_tars,
    cases_words,
)


def every_fault() -> list[str]:
    samples = [c.fault for m in (cases_pictures, cases_words, cases_embeddings, cases_boxes) for c in m.CASES]
    samples += cases_boxes.SHARDS
    samples += [*(c.fault for c in cases_media.CASES), *cases_media.RUNS]
    tars = [row for c in cases_tars.CASES for row in (c.fault, f"{c.fault}, as a stream")]
    lies = [lie.fault for lie in (*cases_indexes.LIES, *cases_indexes.CACHES)]
    lies.insert(1, "index.json with a wrong count, as a stream")
    return samples + tars + lies + [*cases_runs.FAULTS, *cases_boxes.RUNS]
