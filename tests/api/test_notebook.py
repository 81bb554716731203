"""The notebook runs from top to bottom, and is committed without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "train_look_compare.ipynb"
SMALL = {
    "epochs": 1,
    "steps": 2,
    "pairs": 2,
    "pairs_per_update": 2,
    "eval_steps": [1],
    "eval_noises": 1,
    "eval_splits": ["unseen"],
    "device": "cpu",
}


def test_train_look_compare(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    (settings,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", ()))
    settings.source = f"settings = {SMALL}"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in code for output in cell.outputs if "data" in output]
    texts = [output["data"]["text/plain"] for output in shown]
    assert sum("image/png" in output["data"] for output in shown) == 3, "before, after, curves"
    assert any("alignment_heldout" in text and "difference" in text for text in texts)
    assert any("baseline" in text for text in texts)
    assert texts[-1].endswith("/model')")
