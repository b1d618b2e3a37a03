"""Which room of src/attnlab may import which: scripts/import_graph.py."""

import importlib.util
from pathlib import Path

from conftest import ROOT

SCRIPT = ROOT / "scripts" / "import_graph.py"
spec = importlib.util.spec_from_file_location("import_graph", SCRIPT)
import_graph = importlib.util.module_from_spec(spec)
spec.loader.exec_module(import_graph)


def test_imports_point_one_way():
    graph = import_graph.imports()
    assert not import_graph.upward(graph)
    assert not import_graph.circles(graph) + import_graph.circles(import_graph.rooms(graph))
    assert sorted(import_graph.rooms(graph)) == sorted(import_graph.ORDER)


def test_upward_imports_and_circles_are_found(tmp_path, capsys):
    def write(name: str, text: str) -> None:
        file = Path(tmp_path, "attnlab", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    write("__init__.py", "")
    write("run.py", "import torch\nfrom attnlab.data.loader import load\n")
    write("data/__init__.py", "from attnlab.data import loader, text\n")
    write("data/loader.py", "def load():\n    from attnlab import run\n")
    write("data/text.py", "import attnlab.data.loader\n")
    write("errors.py", "")
    assert import_graph.main(tmp_path / "attnlab") == 1
    said = capsys.readouterr().out
    assert "data, 3 modules -> run\n" in said and "errors, 1 modules -> -\n" in said
    assert "upward imports: 1\n  attnlab.data.loader imports attnlab.run\n" in said
    assert "circles of rooms: 1\n  data run\n" in said
    assert "circles of modules: 1\n  attnlab.data.loader attnlab.run\n" in said
    write("data/loader.py", "from attnlab.errors import BadInput\n")
    assert import_graph.main(tmp_path / "attnlab") == 0
