"""The command line: parsing only. Every command calls one function of the package."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kwsbench import completion

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Corpora: fetch, generate, check.")
app.add_typer(data_app, name="data")

# What a user can cause; anything else is a defect and keeps its traceback.
USER_ERRORS = (ValueError, OSError, RuntimeError, FloatingPointError)


@data_app.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help="speech-commands (the public v0.02 archive, 2.4 GB)")],
    out: Annotated[Path, typer.Option(help="folder that receives the corpus")] = Path("data"),
) -> None:
    """Download a public corpus: resumable, checksum verified, unpacked safely.

    Example: kwsbench data fetch speech-commands
    """
    from kwsbench.data.fetch import fetch

    print(fetch(name, out))


@data_app.command("synth")
def synth_command(
    size: Annotated[str, typer.Option(help="smoke, default or full", autocompletion=completion.profiles)] = "default",
    out: Annotated[Path, typer.Option(help="folder that receives the corpus")] = Path("data"),
    workers: int = 2,
) -> None:
    """Generate the embedded synthetic corpus (needs the extra kwsbench[synth]).

    Example: kwsbench data synth --size smoke
    """
    from kwsbench.data.synth import RECIPES, synthesize

    if size not in RECIPES:
        raise ValueError(f"unknown size {size!r}; choose one of {sorted(RECIPES)}")
    corpus = synthesize(RECIPES[size], out, workers)
    print(corpus.root)
    print(corpus.summary())


@data_app.command("check")
def check_command(
    path: Path,
    keyword: Annotated[
        list[str] | None, typer.Option(help="must be there in every split", autocompletion=completion.keywords)
    ] = None,
) -> None:
    """Open a corpus, refuse what cannot serve, and say what is in it.

    Example: kwsbench data check data/speech_commands_v0.02 --keyword happy
    """
    from kwsbench.data.corpora import open_corpus

    print(open_corpus(path, tuple(keyword or ())).summary())


@app.command("report")
def report_command(
    profile: Annotated[str, typer.Option(help="smoke, default or full")] = "default",
    out: Annotated[Path, typer.Option(help="folder that receives index.html")] = Path("reports"),
    notebooks: Annotated[Path, typer.Option(help="folder of notebooks")] = Path("notebooks"),
    data: Annotated[str, typer.Option(help="corpus folder; without it the embedded corpus")] = "",
    root: Annotated[Path, typer.Option(help="where corpora, features and models are kept")] = Path("runs"),
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE for the notebooks")] = None,
) -> None:
    """Run the notebooks and render the report. Exit status 1 if a notebook failed.

    Example: kwsbench report --profile smoke
    """
    from kwsbench.reports.notebooks import read_notebook, run_all
    from kwsbench.reports.page import write_report
    from kwsbench.reports.parameters import declared_parameters, parse_parameters
    from kwsbench.reports.status import RunStatus

    paths = sorted(notebooks.glob("0*.ipynb"))
    if not paths:
        raise ValueError(f"no notebooks 0*.ipynb in {notebooks.resolve()}; name their folder with --notebooks")
    declared = [d for path in paths for d in declared_parameters(read_notebook(path), path.name)]
    given = parse_parameters(declared, param or [], "the notebooks")
    # Kernels work in the notebooks' folder, and pages show the value: relative, it means the same on any machine.
    given.setdefault("root", os.path.relpath(root, notebooks))
    if data:
        given["data"] = str(Path(data).resolve())

    def show(_: RunStatus) -> None:
        write_report(out)

    statuses = run_all(paths, out, profile, given, after_each=show)
    print(write_report(out))
    sys.exit(any(status.state != "passed" for status in statuses))


@app.command("result")
def result_command(
    data: Annotated[Path, typer.Option(envvar="KWSBENCH_SPEECH", help="corpus folder")],
    keyword: Annotated[str, typer.Option(help="the word to spot", autocompletion=completion.keywords)] = "happy",
    profile: Annotated[str, typer.Option(help="smoke, default or full", autocompletion=completion.profiles)] = "full",
    seeds: Annotated[str, typer.Option(help="comma-separated; the profile's own if empty")] = "",
    bits: Annotated[str, typer.Option(help="comma-separated weight widths")] = "8,5,4,2,1",
    batchnorm: Annotated[
        str,
        typer.Option(help="unfolded (8-bit codes, as the paper) or folded", autocompletion=completion.batchnorm_forms),
    ] = "unfolded",
    root: Annotated[Path, typer.Option(help="where models and features are kept")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder that receives result.json, result.md, det.png")] = Path(
        "reports/result"
    ),
    workers: int = 2,
) -> None:
    """The result table on recordings: float, post-training, two-stage training, integer inference.

    Example: kwsbench result --data data/speech_commands_v0.02 --keyword happy
    """
    from kwsbench.arithmetic.codebook import check_bits
    from kwsbench.files import check_writable
    from kwsbench.quantizers.attach import WeightPlan
    from kwsbench.reports.pictures import det_picture
    from kwsbench.training.experiment import System, open_experiment
    from kwsbench.training.result import markdown, run_result

    widths = [check_bits(b) for b in _integers(bits, "--bits")]
    given_seeds = _integers(seeds, "--seeds") if seeds else []
    if any(seed < 0 for seed in given_seeds):
        raise ValueError(f"--seeds takes integers from 0, got {seeds!r}")
    if batchnorm not in ("unfolded", "folded"):
        raise ValueError(f"--batchnorm must be unfolded or folded, got {batchnorm!r}")
    check_writable(out)
    experiment = open_experiment(root, str(data), keyword, profile, batchnorm, workers=workers)
    chosen = given_seeds or list(experiment.spec.profile.seeds)
    print(markdown(run_result(experiment, chosen, widths, out)))
    systems = [System("float"), System("control"), *(System("stage_two", 0, WeightPlan("tanh", b)) for b in widths)]
    curves = {s.label: [experiment.curve(replace(s, seed=seed)) for seed in chosen] for s in systems}
    det_picture(curves, out / "det.png", experiment.spec.frr)


@app.command("doctor")
def doctor_command(
    root: Annotated[Path, typer.Option(help="the folder of results, looked at for room, writing and locks")] = Path(
        "runs"
    ),
    jobs: Annotated[int, typer.Option(min=0, help="jobs meant to run at once; 0: one")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="the findings as JSON")] = False,
) -> None:
    """What is missing here, why it matters, and how to mend it. Exit status 1 if something needed is missing.

    Example: kwsbench doctor --jobs 2
    """
    from kwsbench import doctor

    findings = doctor.examine(doctor.Setting(root, jobs))
    print(doctor.as_json(findings) if as_json else doctor.as_text(findings))
    sys.exit(any(finding.state == "missing" for finding in findings))


def _integers(text: str, option: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes comma-separated integers, got {text!r}") from None
    if len(set(values)) < len(values):
        raise ValueError(f"{option} names an integer twice, got {text!r}")
    return values


def main() -> None:
    """Entry point: a user's mistake is one line and exit status 2, a defect keeps its traceback."""
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except USER_ERRORS as error:
        if not str(error):
            raise
        print(f"kwsbench: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
