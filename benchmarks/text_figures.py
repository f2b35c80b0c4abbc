"""What the figures of the task `text` say of texts that people wrote, and of texts that were made to please one of them.

    python -m benchmarks.text_figures
    python -m benchmarks.text_figures --write FOLDER

The text is the reference of Python's language, which every Python carries (`pydoc_data.topics`, under the PSF licence). With
`--write` a reference and a held-out file are written, for `prism-plugin eval text --piece 200` and for training.
"""

import argparse
import random
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

from rich.console import Console
from rich.table import Table

from prism_plugin.evaluation.tasks import Figure, Text
from prism_plugin.evaluation.tasks.written import Written

PIECE = 200
_WORDS = 33  # of a cheat: about as many as a piece has
_LETTERS = "abcdefghijklmnopqrstuvwxyz" + " " * 5


def write_files(folder: Path) -> tuple[Path, Path]:
    """Write every fifth topic as held-out text, and the others as the reference."""
    names = sorted(topics)
    written = []
    for name, chosen in (("reference", [one for at, one in enumerate(names) if at % 5]), ("held_out", names[::5])):
        written.append(folder / f"{name}.txt")
        written[-1].write_text("\n\n".join(topics[one] for one in chosen), encoding="utf-8")
    return written[0], written[1]


def cheats(people: Sequence[str], likeliest: str, reference: str) -> dict[str, list[str]]:
    """Texts by how they were made, as many as people's: each is cheap, and pleases some of the figures."""
    rng, counts = random.Random(0), Counter(re.findall(r"[a-z]+", reference.lower()))
    common, (words, often) = [word for word, _ in counts.most_common(10)], zip(*counts.items(), strict=True)
    return {
        "the ten commonest words": [" ".join(rng.choices(common, k=_WORDS)) for _ in people],
        "the likeliest text, always": [likeliest] * len(people),
        "random letters": ["".join(rng.choices(_LETTERS, k=PIECE)) for _ in people],
        "words drawn by frequency": [" ".join(rng.choices(words, often, k=_WORDS)) for _ in people],
    }


def measure(folder: Path, count: int) -> dict[str, dict[str, Figure]]:
    """The figures of people's texts, first, and of the cheats."""
    reference, held_out = write_files(folder)
    task = Text(reference=str(reference), piece=PIECE)
    people = task.rows(held_out, count)
    found = {"people": task.judged([Written("", text) for text in people])}
    bits = found["people"]["bits_per_character"]
    likeliest = people[int((bits.total / bits.count).argmin())]
    made = cheats(people, likeliest, reference.read_text(encoding="utf-8"))
    return found | {name: task.judged([Written("", text) for text in texts]) for name, texts in made.items()}


def main() -> None:
    """Print the table, or write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="texts of each kind (default: %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the two files there, and nothing else")
    args = parser.parse_args()
    if args.write is not None:
        args.write.mkdir(parents=True, exist_ok=True)
        print(*write_files(args.write), sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.count)
    table = Table("texts", *(heading.text for heading in Text.figures.values()))
    for name, figures in found.items():
        table.add_row(name, *(format(figures[one].value, heading.form) for one, heading in Text.figures.items()))
    Console().print(table)


if __name__ == "__main__":
    main()
