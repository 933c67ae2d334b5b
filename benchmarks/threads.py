"""Training steps per second, one process alone and two at once, for several spin counts of libgomp.

    python benchmarks/threads.py

Why: see kwsbench/__init__.py. Prints a table; the figures depend on the machine and its load.
"""

import os
import subprocess
import sys

STEPS = """
import time, torch
from kwsbench.models.feedforward import Spotter, SpotterConfig
model = Spotter(SpotterConfig())
windows, labels = torch.randn(512, 31, 20), torch.zeros(512, dtype=torch.long)
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
for i in range(65):
    if i == 5:
        start = time.perf_counter()
    loss = torch.nn.functional.cross_entropy(model(windows), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(60 / (time.perf_counter() - start))
"""
SPINS = ("torch default", "0", "1000", "30000")


def rates(spin: str, processes: int) -> list[float]:
    """Steps per second of each of some processes that run at once."""
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    # An empty value is invalid and leaves libgomp at its default; unset, the package would set its own.
    environment["GOMP_SPINCOUNT"] = "" if spin.startswith("torch") else spin
    command = [sys.executable, "-c", STEPS]
    jobs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(processes)
    ]
    return [float(job.communicate()[0]) for job in jobs]


def main() -> None:
    print(f"{'GOMP_SPINCOUNT':18s}{'alone':>10s}{'two at once':>18s}   steps per second")
    for spin in SPINS:
        alone, both = rates(spin, 1), rates(spin, 2)
        print(f"{spin:18s}{alone[0]:10.0f}{both[0]:10.0f}{both[1]:8.0f}", flush=True)


if __name__ == "__main__":
    main()
