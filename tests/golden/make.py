"""Write the golden files: `python -m golden.make` in `tests/`. Only where a change of what they hold is meant, and said why."""

import json
import tempfile
from pathlib import Path

from golden.cases import sampled, trained

HERE = Path(__file__).parent

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for name, values in (("sampling", sampled()), ("training", trained(directory))):
            lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
            (HERE / f"{name}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
