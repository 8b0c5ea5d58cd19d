"""The seven techniques, alone and together: `python -m benchmarks.ablation` writes benchmarks/ablation.md.

Each is applied by `desat run --apply` to deep plain networks on MNIST that do not learn, and trained in full with
several seeds. Resumable: what is done is kept.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.progress import track

from benchmarks.tables import table
from desat.record.reader import Record

TABLE = Path(__file__).parent / "ablation.md"
SCRIPT = Path(__file__).parent / "scripts" / "deep_mnist.py"
DONE = Path("desat-runs/ablation.jsonl")
DATA = Path("../shared/data/mnist-10k")
SEEDS = (0, 1, 2)

PATIENTS = {
    "sigmoid": ("12 sigmoid layers", ["--kind", "sigmoid", "--depth", "12"]),
    "relu": ("24 ReLU layers, initialized by PyTorch's default", ["--kind", "relu", "--depth", "24"]),
    "exploding": ("12 ReLU layers, weights twice too large", ["--kind", "exploding", "--depth", "12"]),
    "lstm": ("LSTM over the rows of the image, last state", ["--kind", "lstm"]),
}
TECHNIQUES = {
    "activation": ["activation=relu"],
    "normalization": ["normalization=batch"],
    "initialization": ["initialization=he"],
    "clipping": ["clipping=1.0"],
    "optimizer": ["optimizer=adam"],
    "residual": ["residual=skip"],
    "attention": ["attention=pooling"],
}
TREATMENTS = {
    "none": [],
    **TECHNIQUES,
    "critical initialization": ["initialization=critical"],
    "all seven": [remedy for remedies in TECHNIQUES.values() for remedy in remedies],
    **{f"all but {name}": [r for other, rs in TECHNIQUES.items() if other != name for r in rs] for name in TECHNIQUES},
}
ACCURACY = re.compile(r"^validation accuracy: (\S+)$", re.MULTILINE)

Key = tuple[str, str, int]
"""Patient, treatment and seed."""


def train(key: Key, data: Path) -> dict[str, object]:
    """The accuracy that a patient reaches with a treatment, and at how many sites it changed something."""
    patient, treatment, seed = key
    apply = [word for remedy in TREATMENTS[treatment] for word in ("--apply", remedy)]
    with tempfile.TemporaryDirectory(prefix="desat-ablation-") as place:
        words = ["run", "--quiet", "--run-dir", f"{place}/run", *apply, str(SCRIPT), str(data)]
        words += [*PATIENTS[patient][1], "--seed", str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "desat", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
        with Record(f"{place}/run") as record:
            told = record.information.get("applied") or []
    found = ACCURACY.findall(done.stdout)
    changed = sum("left as it is" not in line for line in told)
    accuracy = float(found[-1]) if found else math.nan
    return {"key": list(key), "accuracy": accuracy, "changed": changed, "error": "" if found else done.stderr[-300:]}


def read_done() -> dict[Key, dict[str, object]]:
    lines = DONE.read_text().splitlines() if DONE.exists() else []
    results = [json.loads(line) for line in lines]
    return {(one["key"][0], one["key"][1], one["key"][2]): one for one in results}


def page(done: dict[Key, dict[str, object]], seeds: Sequence[int]) -> str:
    rows = [["treatment", *(title for title, _ in PATIENTS.values())]]
    for treatment in TREATMENTS:
        rows.append([treatment, *(_cell(done, patient, treatment, seeds) for patient in PATIENTS)])
    return (
        "\n".join(
            [
                "# Which technique heals what",
                "",
                "Written by `python -m benchmarks.ablation`: validation accuracy on MNIST (6,000 digits, 3 epochs, SGD "
                f"with momentum) as the mean of {len(seeds)} seeds, and their standard deviation. Each is applied to "
                "the unmodified script by `desat run --apply`; – where it found nothing that it could change.",
                "",
                *table(rows),
                "",
                *(f"- {name}: `{' '.join(remedies)}`" for name, remedies in TECHNIQUES.items()),
            ]
        )
        + "\n"
    )


def _cell(done: dict[Key, dict[str, object]], patient: str, treatment: str, seeds: Sequence[int]) -> str:
    ones = [done[patient, treatment, seed] for seed in seeds if (patient, treatment, seed) in done]
    if not ones or (treatment != "none" and not any(one["changed"] for one in ones)):
        return "–"
    values = [100 * float(str(one["accuracy"])) for one in ones]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}%{spread}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of MNIST's 10,000 test digits")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="seeds (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    options = parser.parse_args()
    seeds = range(options.seeds)
    done = read_done()
    keys = [(patient, treatment, seed) for seed in seeds for patient in PATIENTS for treatment in TREATMENTS]
    waiting = [key for key in keys if key not in done]
    DONE.parent.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(max(1, options.jobs))
    try:
        futures = [pool.submit(train, key, options.data) for key in waiting]
        for future in track(as_completed(futures), "training", total=len(waiting)):
            with DONE.open("a") as file:
                file.write(json.dumps(future.result()) + "\n")
    except KeyboardInterrupt:
        print("interrupted: what is done is kept, and the same command goes on", file=sys.stderr)
        return 130
    finally:
        pool.shutdown(cancel_futures=True)
    TABLE.write_text(page(read_done(), seeds))
    print(TABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
