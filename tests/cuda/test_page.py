"""The code of `docs/gpu.md`."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"


def test_code_of_the_page(cuda):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    assert names["model"].device == "cuda"
