"""Memory that loading a backbone takes, against the size of its weights.

    python benchmarks/loading.py [--megabytes 300] [--dtype bfloat16] [--folder FOLDER]

Without a folder: a Llama of transformers, and a stand-in for LLaDA, whose code would allocate and initialise every parameter
before reading it. Each is loaded in a process of its own. Two peaks are printed, both without what the process held before:
memory that was allocated, and memory that was resident, which counts pages of the file too, where weights lie until they move.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def resident() -> dict[str, int]:
    """Resident memory of this process in bytes: anonymous, and all of it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {"allocated": int(fields["RssAnon"].split()[0]) * 1024, "resident": int(fields["VmRSS"].split()[0]) * 1024}


def measure(folder: str, dtype: str | None) -> dict[str, int]:
    """Load a backbone in this process and read every weight once, watched by a thread. Bytes."""
    from prism_plugin.backbones import load_backbone
    from prism_plugin.testing import tiny_backbone

    with tempfile.TemporaryDirectory() as warm:  # what imports and first calls take is no part of it
        tiny_backbone("llama").save_pretrained(warm)
        load_backbone(warm)
    before, peak, done = resident(), resident(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak.update({key: max(value, peak[key]) for key, value in resident().items()})
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    backbone = load_backbone(folder, trust_remote_code=True, dtype=dtype)
    for parameter in backbone.parameters():  # loaded weights are pages of the file until they are read
        parameter.detach().sum()
    done.set()
    watcher.join()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in backbone.parameters())
    return {"weights": weights} | {key: peak[key] - before[key] for key in peak}


def make(folder: Path, megabytes: int) -> dict[str, Path]:
    """Write checkpoints of about that size, in float32."""
    sys.path.insert(0, str(ROOT / "tests"))
    from remote_families import STANDIN_FAMILIES
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers = 1024, max(1, round(megabytes * 1e6 / 4 / (16 * 1024**2)) - 1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=8,
            is_causal=False,
        )
    ).save_pretrained(folder / "llama")  # fmt: skip
    STANDIN_FAMILIES["llada"].save(
        folder / "llada", vocab_size=8192, d_model=width, mlp_hidden_size=4 * width, n_layers=layers, n_heads=8
    )
    return {"llama": folder / "llama", "llada (stand-in)": folder / "llada"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--folder", help="a checkpoint of yours; its code is run, if it has any")
    parser.add_argument("--dtype", help="of the loaded weights; else the one they were saved in")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.dtype)))
        return
    with tempfile.TemporaryDirectory() as made:
        folders = {args.folder: args.folder} if args.folder else make(Path(made), args.megabytes)
        for name, folder in folders.items():
            command = [sys.executable, __file__, "--measure", str(folder)] + (["--dtype", args.dtype] if args.dtype else [])
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            shares = ", ".join(f"{key} {found[key] / found['weights']:.2f}" for key in ("allocated", "resident"))
            print(f"{name}: weights {found['weights'] / 1e6:.0f} MB; peak over weights: {shares}")


if __name__ == "__main__":
    main()
