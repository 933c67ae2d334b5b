"""The command line: parsing only. Every command calls one function of the package."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kwsbench import completion

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Corpora: fetch, generate, check.")
app.add_typer(data_app, name="data")
runs_app = typer.Typer(no_args_is_help=True, help="Runs of sweeps and reports: list, compare, prune.")
app.add_typer(runs_app, name="runs")

# What a user can cause; anything else is a defect and keeps its traceback.
USER_ERRORS = (ValueError, OSError, RuntimeError, FloatingPointError)


@data_app.command("fetch")
def fetch_command(
    name: Annotated[
        str,
        typer.Argument(
            help="speech-commands (v0.02, 2.4 GB), speech-commands-v0.01 (1.5 GB), librispeech-dev-clean, -test-clean "
            "(0.3 GB), -train-clean-100 (6.4 GB), -train-clean-360 (23 GB)"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder that receives the corpus")] = Path("data"),
) -> None:
    """Download a public corpus: resumable, checksum verified, unpacked safely.

    Example: kwsbench data fetch speech-commands

    Example: kwsbench data fetch librispeech-dev-clean
    """
    from kwsbench.data.fetch import fetch

    print(fetch(name, out))


@data_app.command("synth")
def synth_command(
    size: Annotated[str, typer.Option(help="smoke, default or full", autocompletion=completion.profiles)] = "default",
    out: Annotated[Path, typer.Option(help="folder that receives the corpus")] = Path("data"),
    workers: Annotated[int, typer.Option(help="clips worked on at once")] = 2,
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


@app.command("run")
def run_command(
    chosen: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NOTEBOOKS]...",
            help="paths, or names in the folder of notebooks",
            autocompletion=completion.notebooks,
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="smoke, default or full", autocompletion=completion.profiles)
    ] = "default",
    out: Annotated[Path, typer.Option(help="folder that receives index.html")] = Path("reports"),
    notebooks: Annotated[Path, typer.Option(help="folder of notebooks; all of NN_*.ipynb below 90 by default")] = Path(
        "notebooks"
    ),
    data: Annotated[str, typer.Option(help="corpus folder; without it the embedded corpus")] = "",
    root: Annotated[Path, typer.Option(help="where corpora, features and models are kept")] = Path("runs"),
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE for the notebooks")] = None,
) -> None:
    """Run notebooks and render their report. Exit status 1 if a notebook failed.

    Example: kwsbench run --profile smoke

    Example: kwsbench run 04_stage_two.ipynb -p bits=4,2 --out reports/narrow
    """
    from kwsbench.reports.notebooks import read_notebook, run_all
    from kwsbench.reports.page import write_report
    from kwsbench.reports.parameters import declared_parameters, parse_parameters
    from kwsbench.reports.reproduce import find_notebooks
    from kwsbench.reports.status import RunStatus

    paths = find_notebooks(chosen or [], notebooks)
    declared = [d for path in paths for d in declared_parameters(read_notebook(path), path.name)]
    given = parse_parameters(declared, param or [], "the notebooks")
    if any(d.name == "root" for d in declared):
        # Kernels work in their notebook's folder, and pages show the value: relative, it means the same on any machine.
        folders = {path.resolve().parent for path in paths}
        given.setdefault("root", os.path.relpath(root, folders.pop()) if len(folders) == 1 else str(root.resolve()))
    if data:
        given["data"] = str(Path(data).resolve())

    def show(_: RunStatus) -> None:
        write_report(out)

    statuses = run_all(paths, out, profile, given, after_each=show)
    print(write_report(out))
    sys.exit(any(status.state != "passed" for status in statuses))


@app.command("report")
def report_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="folders of runs, of reports or sweeps, or names of runs in --of", autocompletion=completion.runs
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="folder that receives the pages and the runs they show")] = None,
    single_file: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="one file with everything in it")
    ] = None,
    of: Annotated[Path, typer.Option(help="report in which names of runs are looked up")] = Path("reports"),
) -> None:
    """Render finished runs to share: a folder of pages, or one self-contained file. Two runs are set side by side.

    Example: kwsbench report sweeps/widths --out shared

    Example: kwsbench report 03_stage_one 04_stage_two --single-file two.html
    """
    from kwsbench.reports.page import page_sizes
    from kwsbench.reports.run_folder import find_runs
    from kwsbench.reports.sharing import share_folder
    from kwsbench.reports.sharing import single_file as write_single_file

    if out is None and single_file is None:
        raise ValueError("where to? give --out FOLDER or --single-file FILE.html")
    folders = find_runs(runs, of)
    compare = (folders[0], folders[1]) if len(folders) == 2 else None
    if out is not None:
        index = share_folder(folders, out, compare)
        for name, size in page_sizes(out).items():
            print(f"{size / 1000:8.1f} kB  {name}")
        print(index)
    if single_file is not None:
        print(write_single_file(folders, single_file, compare))


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
    workers: Annotated[int, typer.Option(help="clips worked on at once")] = 2,
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
    given_seeds = _seeds(seeds)
    if batchnorm not in ("unfolded", "folded"):
        raise ValueError(f"--batchnorm must be unfolded or folded, got {batchnorm!r}")
    check_writable(out)
    experiment = open_experiment(root, str(data), keyword, profile, batchnorm, workers=workers)
    chosen = given_seeds or list(experiment.spec.profile.seeds)
    print(markdown(run_result(experiment, chosen, widths, out)))
    systems = [System("float"), System("control"), *(System("stage_two", 0, WeightPlan("tanh", b)) for b in widths)]
    curves = {s.label: [experiment.curve(replace(s, seed=seed)) for seed in chosen] for s in systems}
    det_picture(curves, out / "det.png", experiment.spec.frr)


@app.command("neighbours")
def neighbours_command(
    data: Annotated[str, typer.Option(help="corpus folder; without it the embedded corpus")] = "",
    keyword: Annotated[str, typer.Option(help="the word to spot", autocompletion=completion.keywords)] = "computer",
    profile: Annotated[
        str, typer.Option(help="smoke, default or full", autocompletion=completion.profiles)
    ] = "default",
    methods: Annotated[
        str, typer.Option(help="comma-separated; the profile's own if empty", autocompletion=completion.methods)
    ] = "",
    bits: Annotated[str, typer.Option(help="comma-separated weight widths; the profile's own if empty")] = "",
    seeds: Annotated[str, typer.Option(help="comma-separated; the profile's own if empty")] = "",
    ablations: Annotated[
        bool, typer.Option("--ablations", help="bit allocation, quantization frequency, scale per row as well")
    ] = False,
    finished: Annotated[
        bool, typer.Option("--finished", help="only what is trained already, whatever is missing")
    ] = False,
    root: Annotated[Path, typer.Option(help="where models and features are kept")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder that receives neighbours.json and neighbours.md")] = Path(
        "reports/neighbours"
    ),
    workers: Annotated[int, typer.Option(help="clips worked on at once")] = 2,
) -> None:
    """The General Quantizer beside tanh, linear, LSQ, S8BQAT and absolute cosine: one table, and a paired comparison.

    Trains what is not under --root yet; a killed command goes on where it was.

    Example: kwsbench neighbours --profile smoke
    """
    from kwsbench.arithmetic.codebook import check_bits
    from kwsbench.files import check_writable
    from kwsbench.training.experiment import open_experiment
    from kwsbench.training.neighbours import ablations_of, chosen, markdown, run_neighbours, systems_of

    widths = [check_bits(b) for b in _integers(bits, "--bits")] if bits else []
    given_seeds = _seeds(seeds)
    menu = chosen(profile, [m.strip() for m in methods.split(",") if m.strip()], widths)
    check_writable(out)
    experiment = open_experiment(root, data, keyword, profile, workers=workers)
    seed_list = given_seeds or list(experiment.spec.profile.seeds)
    systems = [s for seed in seed_list for s in systems_of(seed, menu)]
    variants = [a for seed in seed_list for a in ablations_of(experiment, seed)] if ablations else []
    if finished:
        systems = [s for s in systems if experiment.has_model(s)]
        variants = [a for a in variants if experiment.has_model(a.system)]
    print(markdown(run_neighbours(experiment, systems, variants, out)))


@app.command("recognise")
def recognise_command(
    task: Annotated[
        str,
        typer.Option(
            help="commands (recorded words strung together), sentences (embedded synthesizer) or librispeech; if "
            "empty, commands with --data and sentences without",
            autocompletion=completion.tasks,
        ),
    ] = "",
    data: Annotated[str, typer.Option(help="folder of recorded words, or LibriSpeech's")] = "",
    words: Annotated[str, typer.Option(help="comma-separated; of commands: all recorded often enough if empty")] = "",
    profile: Annotated[
        str, typer.Option(help="smoke, default or full", autocompletion=completion.profiles)
    ] = "default",
    encoders: Annotated[
        str, typer.Option(help="comma-separated", autocompletion=completion.encoders)
    ] = "lstm,conformer",
    seeds: Annotated[str, typer.Option(help="comma-separated; the profile's own if empty")] = "",
    bits: Annotated[str, typer.Option(help="comma-separated weight widths of the general quantizer")] = "5,4,2,1",
    root: Annotated[Path, typer.Option(help="where models and features are kept")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder that receives recognition.json and recognition.md")] = Path(
        "reports/recognition"
    ),
    workers: Annotated[int, typer.Option(help="voices synthesized at once")] = 2,
) -> None:
    """The table of word error rates: float, 8-bit training, post-training, few bits and a mix, for two encoders.

    Resumable: the same command goes on where it was.

    Example: kwsbench recognise --profile smoke

    Example: kwsbench recognise --data data/speech_commands_v0.02 --words yes,no,up,down --encoders lstm
    """
    from kwsbench.arithmetic.codebook import check_bits
    from kwsbench.files import check_writable
    from kwsbench.training.recognition import ENCODERS, open_recognition
    from kwsbench.training.wer_table import markdown, run_table

    widths = [check_bits(b) for b in _integers(bits, "--bits")]
    given_seeds = _seeds(seeds)
    chosen = _names(encoders)
    if not chosen or not set(chosen) <= set(ENCODERS):
        raise ValueError(f"--encoders takes some of {', '.join(ENCODERS)}, got {encoders!r}")
    task = task or ("commands" if data else "sentences")
    check_writable(out)
    recognition = open_recognition(root, task, data, _names(words), profile, workers=workers)
    run_seeds = given_seeds or list(recognition.spec.profile.seeds)
    command = f"kwsbench recognise --task {task}" + (" --data <corpus>" if data else "")
    command += (f" --words {words}" if words else "") + f" --profile {profile} --encoders {','.join(chosen)}"
    command += f" --seeds {','.join(map(str, run_seeds))} --bits {bits}"
    print(markdown(run_table(recognition, chosen, run_seeds, widths, out, command)))


@app.command("search")
def search_command(
    data: Annotated[str, typer.Option(help="corpus folder; without it the embedded corpus")] = "",
    task: Annotated[
        str,
        typer.Option(
            help="twelve, words with commas between, or one keyword; if empty, twelve with --data and computer without",
            autocompletion=completion.clip_tasks,
        ),
    ] = "",
    profile: Annotated[
        str, typer.Option(help="tiny, smoke, default or full", autocompletion=completion.clip_profiles)
    ] = "default",
    strategies: Annotated[
        str, typer.Option(help="comma-separated", autocompletion=completion.strategies)
    ] = "proxyless,random,optuna",
    front: Annotated[
        str, typer.Option(help="mfcc10 to mfcc40, lfbe10 to lfbe80, raw, sinc", autocompletion=completion.fronts)
    ] = "mfcc10",
    target: Annotated[
        float, typer.Option(min=0, help="operations per clip, in millions; 0: the profile's own choice")
    ] = 0.0,
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0",
    root: Annotated[Path, typer.Option(help="where clips, features and searches are kept")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder that receives search.json and search.md")] = Path("reports/search"),
    workers: Annotated[int, typer.Option(help="voices synthesized at once")] = 2,
) -> None:
    """Search a network: differentiably, and at equal cost at random and by Optuna (network and bits together).

    What is found is printed as a notation, for `kwsbench pareto --network`. Resumable: the same command goes on.

    Example: kwsbench search --profile smoke

    Example: kwsbench search --data data/speech_commands_v0.02 --task twelve --front raw --target 13.6 --profile full
    """
    from kwsbench.files import check_writable
    from kwsbench.models.space import front_of
    from kwsbench.training.clip_experiment import open_clips
    from kwsbench.training.clip_search import SEARCHES, STRATEGIES, ClipSearch, markdown, run_search

    chosen, run_seeds = _names(strategies), _seeds(seeds)
    front_of(front)  # a mistyped one is refused before any work
    if not chosen or not set(chosen) <= set(STRATEGIES):
        raise ValueError(f"--strategies takes some of {', '.join(STRATEGIES)}, got {strategies!r}")
    check_writable(out)
    experiment = open_clips(root, data, task, profile, workers=workers)
    searches = [ClipSearch(experiment, SEARCHES[profile], front, target * 1e6, seed) for seed in run_seeds or [0]]
    command = (
        f"kwsbench search{_clip_options(data, experiment.spec.task.name, profile)} --strategies {','.join(chosen)}"
    )
    command += f" --front {front}" + (f" --target {target!r}" if target else "")
    command += f" --seeds {','.join(map(str, run_seeds or [0]))}"
    print(markdown(run_search(searches, chosen, out, command)))


@app.command("pareto")
def pareto_command(
    data: Annotated[str, typer.Option(help="corpus folder; without it the embedded corpus")] = "",
    task: Annotated[
        str,
        typer.Option(
            help="twelve, words with commas between, or one keyword; if empty, twelve with --data and computer without",
            autocompletion=completion.clip_tasks,
        ),
    ] = "",
    profile: Annotated[
        str, typer.Option(help="tiny, smoke, default or full", autocompletion=completion.clip_profiles)
    ] = "default",
    network: Annotated[
        list[str] | None, typer.Option(help="notation of a network, as `kwsbench search` prints it; repeat for several")
    ] = None,
    menu: Annotated[
        str, typer.Option(help="comma-separated networks beside those, like MFCC,raw,DS-CNN; the profile's if empty")
    ] = "",
    bits: Annotated[str, typer.Option(help="comma-separated fixed widths; the profile's own if empty")] = "",
    ways: Annotated[
        str,
        typer.Option(
            help="comma-separated quantizations: control, untrained, fixed, width, diffq, mixed; all if empty, and "
            "float always"
        ),
    ] = "",
    seeds: Annotated[str, typer.Option(help="comma-separated; the profile's own if empty")] = "",
    root: Annotated[Path, typer.Option(help="where clips, features and models are kept")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder that receives pareto.json, .md and .png")] = Path("reports/pareto"),
    workers: Annotated[int, typer.Option(help="voices synthesized at once")] = 2,
) -> None:
    """Accuracy against weights, operations and bytes: networks in float, at fixed widths and at widths that they learn.

    Trains what is not under --root yet; a killed command goes on where it was.

    Example: kwsbench pareto --profile smoke --menu MFCC,raw

    Example: kwsbench pareto --data data/speech_commands_v0.02 --network "raw w40 7e2s 7e2 7e2 5e1 h72" --profile full
    """
    from kwsbench.arithmetic.codebook import check_bits
    from kwsbench.files import check_writable
    from kwsbench.reports.pictures import pareto_picture
    from kwsbench.training.clip_experiment import open_clips
    from kwsbench.training.pareto import markdown, networks_of, quantizations_of, run_pareto

    widths = [check_bits(b) for b in _integers(bits, "--bits")] if bits else []
    given_seeds, notations = _seeds(seeds), network or []
    columns = quantizations_of(profile, widths, _names(ways))
    networks_of(profile, ("a", "b"), notations, _names(menu))  # a mistyped one is refused before any work
    check_writable(out)
    experiment = open_clips(root, data, task, profile, workers=workers)
    networks = networks_of(profile, experiment.spec.task.labels, notations, _names(menu))
    run_seeds = given_seeds or list(experiment.spec.profile.seeds)
    command = f"kwsbench pareto{_clip_options(data, experiment.spec.task.name, profile)}"
    command += "".join(f' --network "{text}"' for text in notations) + (f" --menu {shlex.quote(menu)}" if menu else "")
    command += (
        (f" --bits {bits}" if bits else "")
        + (f" --ways {ways}" if ways else "")
        + f" --seeds {','.join(map(str, run_seeds))}"
    )
    result = run_pareto(experiment, networks, columns, run_seeds, out, command)
    pareto_picture(result["summary"], out / "pareto.png")
    print(markdown(result))


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


@app.command("sweep")
def sweep_command(
    spec: Annotated[
        Path, typer.Argument(help="what to run: see docs/howto/sweep.md", autocompletion=completion.sweeps)
    ],
    jobs: Annotated[int | None, typer.Option(help="runs at once; half the cores if not said")] = None,
    threads: Annotated[int | None, typer.Option(help="threads of each run; the cores divided by the jobs")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the results; sweeps/NAME if not said")] = None,
    root: Annotated[Path | None, typer.Option(help="where artifacts are kept; runs if not said")] = None,
    timeout_minutes: Annotated[float | None, typer.Option(help="for one run; by profile if not said")] = None,
    scheduler: Annotated[str, typer.Option(help="address of a Dask scheduler, tcp://host:port")] = "",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="repeat runs that failed before")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check the file, print the plan, run nothing")] = False,
) -> None:
    """Run notebooks over many parameters, each run once; a killed sweep goes on where it was.

    Exit status 1 if a run failed.

    Example: kwsbench sweep notebooks/sweep_example.yaml --jobs 2
    """
    import signal

    from kwsbench.reports.page import write_report
    from kwsbench.sweeps.pool import LocalPool, Pool, default_jobs
    from kwsbench.sweeps.spec import Overrides, read_sweep
    from kwsbench.sweeps.sweep import run_sweep, summary

    plan = read_sweep(spec, Overrides(out, root, jobs, threads, timeout_minutes), dry_run)
    if dry_run:
        print(plan.describe())
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if scheduler:
        from kwsbench.sweeps.cluster import ClusterPool

        pool: Pool = ClusterPool(scheduler, plan.out, plan.jobs, plan.threads)
    else:
        pool = LocalPool(plan.jobs or default_jobs(), plan.threads)
    statuses = run_sweep(plan, pool, retry_failed, lambda: write_report(plan.out))
    print(summary(plan, statuses))
    print(plan.out / "index.html")
    sys.exit(any(status.state != "passed" for status in statuses))


@runs_app.command("list")
def runs_list_command(
    folder: Annotated[Path, typer.Argument(help="a sweep's folder, or a folder of those")] = Path("sweeps"),
    condition: Annotated[
        list[str] | None, typer.Option("--where", help="NAME=VALUE; also != < <= > >=; repeat it for several")
    ] = None,
    columns: Annotated[str, typer.Option(help="comma-separated; basics, parameters and key figures if empty")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="as CSV")] = False,
) -> None:
    """What was run, with which parameters, and what came of it.

    Example: kwsbench runs list sweeps/widths --where bits=5 --where state=passed --columns run,seed,fdr
    """
    from kwsbench.sweeps import runs

    if as_json and as_csv:
        raise ValueError("--json or --csv, not both")
    found, problems = runs.find_runs(folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    names, rows = runs.table(runs.where(found, condition or []), [c.strip() for c in columns.split(",") if c.strip()])
    writer = runs.as_json if as_json else runs.as_csv if as_csv else runs.as_text
    print(writer(names, rows).rstrip("\n"))


@runs_app.command("compare")
def runs_compare_command(
    first: Annotated[
        str,
        typer.Argument(help="folder of a run, or the beginning of its name", autocompletion=completion.run_names),
    ],
    second: Annotated[str, typer.Argument(help="the other one", autocompletion=completion.run_names)],
    folder: Annotated[Path, typer.Option(help="where names are looked up")] = Path("sweeps"),
) -> None:
    """Two runs side by side: what was given, what came out, and the first layer in which they differ.

    Example: kwsbench runs compare 04_stage_two-1f3a 04_stage_two-9c07 --folder sweeps/widths
    """
    from kwsbench.reports.comparison import compare_runs
    from kwsbench.sweeps.runs import find_run

    print(compare_runs(find_run(first, folder), find_run(second, folder)).as_text())


@runs_app.command("prune")
def runs_prune_command(
    folder: Annotated[Path, typer.Argument(help="a sweep's folder, or a folder of those")],
    state: Annotated[
        list[str] | None,
        typer.Option(help="passed, failed, 'timed out', interrupted, running", autocompletion=completion.states),
    ] = None,
    condition: Annotated[list[str] | None, typer.Option("--where", help="NAME=VALUE, as in `runs list`")] = None,
    keep_code: Annotated[str, typer.Option(help="spare runs of this code: current, or the hash of `runs list`")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it, only what would go is printed")] = False,
) -> None:
    """Delete runs: in a state, under conditions, of other code. Prints them; deletes only with --yes.

    A run on which a process works is never touched. Models, features and corpora (under --root) stay, and so do the
    kept sources of notebooks.

    Example: kwsbench runs prune sweeps/widths --state failed --keep-code current
    """
    from kwsbench.reports.page import write_report
    from kwsbench.sweeps import runs

    found, _ = runs.find_runs(folder)
    chosen = runs.prunable(found, state or [], condition or [], keep_code)
    for run in chosen:
        print(f"{run.folder}  {run.status.state}")
    if not yes:
        print(f"{len(chosen)} of {len(found)} runs would be deleted; add --yes to do it. Artifacts stay in any case.")
        return
    deleted, busy = runs.prune(chosen)
    for out in sorted({run.out for run in deleted}):
        write_report(out)
    left = f"; {len(busy)} left, a process works on them" if busy else ""
    print(f"{len(deleted)} runs deleted{left}. Artifacts and kept sources of notebooks were not touched.")


@app.command("lab")
def lab_command(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: the first free one from 8888")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open it in the browser")] = True,
    root: Annotated[Path, typer.Option(help="where the explorers look for models and scores")] = Path("runs"),
    notebooks: Annotated[Path, typer.Option(help="folder of notebooks")] = Path("notebooks"),
) -> None:
    """JupyterLab on the explorers: this machine only, behind a token, nothing asked of other machines.

    Example: kwsbench lab --no-browser
    """
    from kwsbench.lab import lab

    lab(notebooks, root, port, browser)


@app.command("train")
def train_command(
    kind: Annotated[
        str,
        typer.Argument(help="float, control, stage_one, stage_two or post_training", autocompletion=completion.kinds),
    ],
    method: Annotated[str, typer.Option(help="weight quantizer", autocompletion=completion.methods)] = "tanh",
    bits: Annotated[int, typer.Option(help="weight width, 1 to 8")] = 5,
    per_row: Annotated[bool, typer.Option("--per-row", help="one scale per row")] = False,
    seed: Annotated[int, typer.Option(min=0, help="of the training")] = 0,
    data: Annotated[str, typer.Option(help="corpus folder; without it the embedded corpus")] = "",
    keyword: Annotated[str, typer.Option(help="the word to spot", autocompletion=completion.keywords)] = "computer",
    profile: Annotated[
        str, typer.Option(help="smoke, default or full", autocompletion=completion.profiles)
    ] = "default",
    root: Annotated[Path, typer.Option(help="where models and features are kept")] = Path("runs"),
) -> None:
    """Train one system, and what it starts from. Ctrl-C writes a checkpoint; the same command goes on from it.

    Example: kwsbench train stage_two --bits 2 --profile smoke
    """
    from kwsbench.quantizers.attach import WeightPlan
    from kwsbench.training.background import Job, train_job
    from kwsbench.training.experiment import System

    weights = None if kind in ("float", "control") else WeightPlan(method, bits, per_row)
    job = Job(str(root), System(kind, seed, weights), data, keyword, profile)
    train_job(job)
    print(f"{job.system.label}, seed {seed}: trained, under {root}")


def _clip_options(data: str, task: str, profile: str) -> str:
    return (" --data <corpus>" if data else "") + f" --task {task} --profile {profile}"


def _seeds(text: str) -> list[int]:
    seeds = _integers(text, "--seeds") if text else []
    if any(seed < 0 for seed in seeds):
        raise ValueError(f"--seeds takes integers from 0, got {text!r}")
    return seeds


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _integers(text: str, option: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes comma-separated integers, got {text!r}") from None
    if len(set(values)) < len(values):
        raise ValueError(f"{option} names an integer twice, got {text!r}")
    return values


def main() -> None:
    """Entry point: a user's mistake is one line and exit status 2, Ctrl-C one line and 130, a defect keeps its
    traceback."""
    try:
        app()
    except SystemExit as error:
        # Typer makes a silent exit of Ctrl-C; commands that speak for themselves exit on their own.
        if isinstance(error.__context__, typer.Exit) and isinstance(error.__context__.__cause__, KeyboardInterrupt):
            print("interrupted; run the same command again to go on", file=sys.stderr)
        raise
    except USER_ERRORS as error:
        if not str(error):
            raise
        print(f"kwsbench: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
