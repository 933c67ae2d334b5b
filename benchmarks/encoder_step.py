"""Time and memory of an encoder step on packed weights at 8, 5, 4, 2 and 1 bits and a mix, as ratios to 8 bits.

    python benchmarks/encoder_step.py [--out docs/results-latency.md] [--processes 3] [--rounds 30]
    python benchmarks/encoder_step.py --recognizers 8-bit=A.safetensors mixed=B.safetensors --base 8-bit

Without recognizers, three sizes with drawn weights: 2 layers of 128, 3 of 512, 5 of 1024 (the last does not fit a
second-level cache at any width above 1 bit). "mixed": encoder layers in turn at 5 and at 1 bit.

Predicted from bytes, and from times of single products, before a whole step was measured (warm caches):

- 5 x 1024: memory decides; a ratio is a little above that of the bytes: 5 bits 0.65, 4 bits 0.5, 2 bits 0.3, 1 bit 0.2.
- 3 x 512: the same while 8 bits leave the second-level cache (2 MB) and the narrow ones fit it: 2 and 1 bits at 0.25.
- 2 x 128: everything fits. A fixed cost per step (gates, calls from Python) and decoding, which takes more
  instructions than 8 bits do: ratios of 0.8 (1 bit) to 1.3 (5 bits). The target of 0.68 is missed there.

Target: time at most 0.68, memory at most 0.69 of 8 bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kwsbench.files import write_text
from kwsbench.integer.drawn import draw_recognizer
from kwsbench.integer.recognizer import Recognizer, load_recognizer
from kwsbench.reports.tables import markdown_table
from kwsbench.resources.latency import CONDITIONS, machine, step_table, time_in_processes

SIZES = {"2 x 128": (128,) * 2, "3 x 512": (512,) * 3, "5 x 1024": (1024,) * 5}
TIME_TARGET, BYTES_TARGET = 0.68, 0.69


def drawn(layers: tuple[int, ...]) -> dict[str, Recognizer]:
    """Drawn recognizers by name."""
    mixed = [bits for n in range(len(layers)) for bits in [(5, 1)[n % 2]] * 2] + [5] * 6
    widths = {"8 bits": 8, "5 bits": 5, "4 bits": 4, "2 bits": 2, "1 bit": 1, "mixed 5 and 1": mixed}
    return {name: draw_recognizer(layers, bits=bits) for name, bits in widths.items()}


def section(title: str, recognizers: dict[str, Recognizer], base: str, processes: int, rounds: int) -> str:
    """A table of both conditions."""
    rows = []
    for condition in CONDITIONS:
        times = time_in_processes(recognizers, processes, rounds, condition)
        for row in step_table(recognizers, times, base):
            met = row["time_ratio"] <= TIME_TARGET and row["bytes_ratio"] <= BYTES_TARGET
            spread = f"{row['time_ratio']:.2f} ({row['time_ratio_low']:.2f}-{row['time_ratio_high']:.2f})"
            rows.append(
                {
                    "caches": condition,
                    "encoder": row["recognizer"],
                    "step, µs": row["step_us"],
                    "time ratio": spread,
                    "encoder bytes": row["encoder_bytes"],
                    "bytes ratio": f"{row['bytes_ratio']:.2f}",
                    "target met": "" if row["recognizer"] == base else met,
                }
            )
    return f"## {title}\n\n{markdown_table(rows, {key: key for key in rows[0]})}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write; else it is printed")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30, help="of each process")
    parser.add_argument("--recognizers", nargs="+", metavar="NAME=FILE", help="saved recognizers instead of drawn ones")
    parser.add_argument("--base", help="the name all are compared with")
    options = parser.parse_args()
    if options.recognizers:
        pairs = [entry.partition("=") for entry in options.recognizers]
        given = {name: load_recognizer(file) for name, _, file in pairs}
        groups, base = {"Saved recognizers": given}, options.base or next(iter(given))
    else:
        groups, base = {title: drawn(layers) for title, layers in SIZES.items()}, "8 bits"
    about = machine()
    lines = [
        "# Time of an encoder step on packed weights\n",
        f"Measured by `python benchmarks/encoder_step.py` on {about['processor']} ({about['kernels']}), one thread, "
        f"{options.processes} processes of {options.rounds} rounds in turns. Processor time; ratios to {base} within a "
        "round: median (5%-95%). Hot: steps follow each other. Cold: 32 MB of other memory read before each step: all, "
        "Python too, comes from beyond the second-level cache. Bytes: matrices and constants of the encoder "
        f"as they lie in memory. Target: time {TIME_TARGET}, bytes {BYTES_TARGET} of 8 bits.\n",
    ]
    for title, recognizers in groups.items():
        lines.append(section(title, recognizers, base, options.processes, options.rounds))
        print(lines[-1], flush=True)
    if options.out:
        write_text(options.out, "\n".join(lines))


if __name__ == "__main__":
    main()
