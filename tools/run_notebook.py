"""Runs notebooks, each in a fresh kernel, and writes their outputs into them.

    python tools/run_notebook.py notebooks/NAME.ipynb ...

Jupyter's own commands would also write when each cell ran, and the state of widgets.
"""

import sys
from pathlib import Path

import nbclient
import nbformat


def joined(outputs):
    """The outputs, with the pieces in which a stream arrived made one."""
    whole = []
    for output in outputs:
        last = whole[-1] if whole else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            whole.append(output)
    return whole


def run(path):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=1200, record_timing=False,
                            store_widget_state=False, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = joined(cell.outputs)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run(Path(argument))
