"""The command line: parse, load the configuration, call one function, print."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmm4rec.errors import ConfigError, Mmm4RecError

if TYPE_CHECKING:
    from mmm4rec.checkpoint import Checkpoint
    from mmm4rec.config import Config
    from mmm4rec.official_files import OfficialReport
    from pipeline.datamodule import Stage

FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class _Commands(TyperGroup):
    """Turns what a user can cause into one line and a non-zero exit."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            _fail(str(error), 2)
        except Mmm4RecError as error:
            _fail(str(error), 1)
        except KeyboardInterrupt:
            _fail("interrupted; the same command carries on from here", 130)
        except Exception as error:
            problem = _disk_problem(error)
            if problem is None:
                raise
            _fail(problem, 1)


def _disk_problem(error: Exception) -> str | None:
    """Say what a user can do about an error of the file system; None for any other error."""
    if _is_disk_full(error):
        where = getattr(error, "__notes__", [""])[0]  # "while writing ..."
        return (
            f"the disk is full {where}".rstrip() + "; nothing half-written was kept. "
            "Next: free some space, then the same command carries on"
        )
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE and error.filename:
        return f"{error.filename}: {error.strerror}. Next: name a folder that you may write to"
    return None


def _is_disk_full(error: Exception) -> bool:
    # polars and safetensors raise errors of their own that end in the operating system's number.
    return any(
        getattr(error, "errno", None) == code or f"(os error {code})" in str(error) for code in FULL
    )


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Transferable multi-modal sequential recommendation (MMM4Rec, arXiv 2506.02916).\n\n"
    "Try it: mmm4rec demo. In earnest: prepare each domain, pretrain on some, finetune on "
    "another, then evaluate and recommend.",
)

Domains = Annotated[
    list[str],
    typer.Option("--domain", help="Amazon category, short or full name; repeat for several."),
]
Domain = Annotated[str, typer.Option("--domain", help="A prepared domain.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Holds raw/, work/ and prepared/; data by default.")
]
RunsDir = Annotated[Path, typer.Option(help="Where runs are written.")]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="A preset: a YAML file, or the name of one of ours.")
]
Overrides = Annotated[
    list[str], typer.Option("--set", help="section.key=value, over the preset; repeat for several.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and only that.")]
Ckpt = Annotated[Path, typer.Option(help="Folder of a finished run, or its .safetensors file.")]


@app.command()
def prepare(
    domain: Domains,
    source: Annotated[
        str | None,
        typer.Option(help="Folder or base URL of the raw files; otherwise they are downloaded."),
    ] = None,
    data_dir: DataDir = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            help="siglip-base, clip, bert, minilm, hashing, a hub id, a local path; source: the "
            "features that come with the set; none."
        ),
    ] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            help="siglip-base, clip, vit, pixels, a hub id, a local path; source: the features "
            "that come with the set; none."
        ),
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(help="Amazon Reviews release of the raw files: 2018 (default) or 2023."),
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Fetch no image.")] = False,
    require_image: Annotated[
        bool, typer.Option("--require-image", help="Leave out items without an image.")
    ] = False,
    retry: Annotated[
        str | None,
        typer.Option(help="temporary: ask again for images that failed for the time being."),
    ] = None,
    allow_private_hosts: Annotated[
        bool,
        typer.Option("--allow-private-hosts", help="Also fetch images from your own network."),
    ] = False,
    max_bad_lines: Annotated[
        int | None,
        typer.Option(
            min=0, help="Malformed lines per file that are set aside, not fatal; 0 by default."
        ),
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Encode a random sample again and compare.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched; write nothing.")
    ] = False,
    config: ConfigFile = None,
    set_: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Turn raw files into a prepared domain: tables, images, features, data card."""
    from pipeline.build import prepare_domain
    from pipeline.card import format_card
    from pipeline.dry_run import plan_domain

    if retry not in (None, "temporary"):
        raise ConfigError(f"--retry {retry}: allowed is temporary")
    shortcuts = {
        "data.data_dir": data_dir,
        "prepare.release": release,
        "prepare.require_image": require_image or None,
        "prepare.max_bad_lines": max_bad_lines,
        "features.text": text_encoder,
        "features.image": image_encoder,
        "images.enabled": False if no_images else None,
        "images.allow_private_hosts": allow_private_hosts or None,
    }
    settings = _load("prepare", config, _overrides(shortcuts, set_))
    if dry_run:
        plans = [plan_domain(name, settings, source=source) for name in domain]
        _print_plans(plans, as_json)
        return
    cards = []
    for name in domain:
        manifest = prepare_domain(
            name,
            settings,
            source=source,
            retry_temporary=retry == "temporary",
            audit=audit,
            echo=_say(as_json),
        )
        cards.append(manifest.card)
        if not as_json:
            typer.echo(format_card(manifest.card))
    if as_json:
        typer.echo(json.dumps(cards, indent=2))


@app.command()
def pretrain(
    domain: Domains,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    config: ConfigFile = None,
    set_: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Train on several prepared domains with in-batch cross-entropy."""
    settings = _load("pretrain", config, _overrides({"data.data_dir": data_dir}, set_))
    _fit(settings, domain, "pretrain", runs_dir, None, as_json)


@app.command()
def finetune(
    domain: Domain,
    ckpt: Annotated[
        Path | None,
        typer.Option(help="Run folder or .safetensors to start from; without it, from scratch."),
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    config: ConfigFile = None,
    set_: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Train on one domain with full-catalogue cross-entropy, and test the best epoch."""
    from mmm4rec.checkpoint import read_checkpoint
    from mmm4rec.config import architecture

    checkpoint = read_checkpoint(ckpt) if ckpt else None
    base = architecture(checkpoint.config) if checkpoint else None
    settings = _load("finetune", config, _overrides({"data.data_dir": data_dir}, set_), base)
    _fit(settings, [domain], "finetune", runs_dir, checkpoint, as_json)


@app.command()
def evaluate(
    ckpt: Ckpt,
    domain: Domain,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    set_: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Rank the last item of every user among the whole catalogue."""
    from mmm4rec.checkpoint import read_checkpoint
    from mmm4rec.run_folder import new_run_folder
    from mmm4rec.runner import evaluate as run_evaluation
    from mmm4rec.runner import load_model
    from pipeline.datamodule import SequenceDataModule

    checkpoint = read_checkpoint(ckpt)
    settings = _trained_settings(checkpoint, data_dir, set_)
    data = SequenceDataModule.from_config(settings, [domain], "finetune")
    run = run_evaluation(
        settings,
        load_model(checkpoint, data.catalogue),
        data,
        new_run_folder(runs_dir / "evaluate" / data.domains[0], checkpoint.sha256[:10]),
        described={
            "checkpoint": str(checkpoint.path),
            "trained": checkpoint.training,
            "fidelity": settings.fidelity,
        },
    )
    _print_results(run.results, run.folder, as_json)


@app.command()
def recommend(
    ckpt: Ckpt,
    domain: Domain,
    user: Annotated[str | None, typer.Option(help="A user of the domain.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Or item names (asins), oldest first, comma-separated.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    now: Annotated[
        datetime | None,
        typer.Option(help="The moment of recommending, UTC, for models that read it; else now."),
    ] = None,
    exclude_history: Annotated[
        bool, typer.Option("--exclude-history", help="Leave out what was bought before.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Print the best next items of a user, or of a history, with their titles and scores."""
    from mmm4rec.checkpoint import read_checkpoint
    from mmm4rec.recommend import recommend as rank_items
    from mmm4rec.runner import load_model
    from pipeline.datamodule import SequenceDataModule
    from pipeline.prepared import find_history, load_names

    checkpoint = read_checkpoint(ckpt)
    settings = _trained_settings(checkpoint, data_dir, [])
    data = SequenceDataModule.from_config(settings, [domain], "finetune")
    model = load_model(checkpoint, data.catalogue)
    names = load_names(settings.data.data_dir, data.domains[0])
    item_ids, timestamps = find_history(data.sequences, names, user=user, history=history)
    found = rank_items(
        model,
        item_ids,
        timestamps,
        max_len=settings.model.max_len,
        query_time=_moment(settings, now),
        top_k=top_k,
        exclude_history=exclude_history,
    )
    rows: list[dict[str, Any]] = [
        {
            "rank": place,
            "asin": names.asins[r.item_id],
            "title": names.titles[r.item_id],
            "score": round(r.score, 4),
        }
        for place, r in enumerate(found, start=1)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    last = ", ".join(names.titles[item][:40] for item in item_ids[-3:])
    typer.echo(f"after {len(item_ids)} items, the last: {last}")
    for row in rows:
        typer.echo(f"{row['rank']:>3}  {row['score']:>8.3f}  {row['asin']}  {row['title'][:70]}")


@app.command()
def describe(
    domain: Domains,
    max_len: Annotated[int, typer.Option(min=2, help="Items that a model would read.")] = 20,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say what the timestamps of a prepared domain are like, and what they may be worth."""
    from pipeline.describe import describe_domain, format_statistics

    described = [describe_domain(_data_folder(data_dir), name, max_len) for name in domain]
    if as_json:
        typer.echo(json.dumps([statistics.as_dict() for statistics in described], indent=2))
        return
    for statistics in described:
        typer.echo(format_statistics(statistics))


@app.command("probe-time")
def probe_time(
    ckpt: Ckpt,
    domain: Domain,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, help="Of the gaps that are drawn.")] = 0,
    set_: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Ask whether a model uses time, and whether it is worth it: true gaps against others."""
    from experiments.probe_time import probe_time as probe
    from mmm4rec.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(ckpt)
    settings = _trained_settings(checkpoint, data_dir, set_)
    folder = _study_folder(runs_dir, "probe-time", domain, checkpoint, [*set_, f"seed={seed}"])
    found = probe(checkpoint, settings, domain, folder, seed, _say(as_json))
    typer.echo(json.dumps(found.results, indent=2) if as_json else found.text)


@app.command()
def truncation(
    ckpt: Ckpt,
    domain: Domain,
    last: Annotated[
        list[int] | None, typer.Option(min=1, help="How many items; repeat. All by default.")
    ] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = Path("runs"),
    set_: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Rank with only the last k items of each history, and draw what is kept."""
    from experiments.studies.truncation import truncation_curve
    from mmm4rec.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(ckpt)
    settings = _trained_settings(checkpoint, data_dir, set_)
    lengths = last or list(range(1, checkpoint.config.model.max_len + 1))
    folder = _study_folder(runs_dir, "truncation", domain, checkpoint, set_)
    found = truncation_curve(settings, checkpoint, domain, lengths, folder, _say(as_json))
    if as_json:
        typer.echo(json.dumps(found.results, indent=2))
        return
    typer.echo(found.text)
    typer.echo(f"written to {folder}")


@app.command("add-features")
def add_features(
    domain: Domain,
    modality: Annotated[str, typer.Option(help="Name of the further stream, for example audio.")],
    file: Annotated[Path, typer.Option(help="Parquet: asin and one column of lists of floats.")],
    encoder: Annotated[
        str | None, typer.Option(help="What made the vectors, where several domains share it.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Add a further modality to a prepared domain; data.modalities names what a model reads."""
    from pipeline.added_features import add_feature_column

    added = add_feature_column(
        _data_folder(data_dir), domain, modality, file, encoder=encoder, echo=_say(as_json)
    )
    if as_json:
        typer.echo(added.model_dump_json(indent=2))
        return
    typer.echo(f"{added.modality}: {added.present} items, width {added.width}")
    typer.echo(f"Next: --set 'data.modalities=[text,image,{added.modality}]'")


@app.command()
def reproduce(
    tables: Annotated[list[str], typer.Argument(help="table5, table6, main, studies, or a study.")],
    world: Annotated[
        str, typer.Option(help="amazon: the paper's domains; mini: the miniature of the demo.")
    ] = "amazon",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of everything that is trained.")] = 1,
    domain: Annotated[
        list[str] | None, typer.Option(help="Only this downstream domain; repeat for several.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Holds data/, runs/ and reports/.")] = Path(),
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be run and how long; write nothing.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; one for each GPU by default.")
    ] = None,
    set_: Overrides = [],  # noqa: B006
) -> None:
    """Make the paper's tables and our studies, beside the published numbers, with a verdict."""
    from experiments.reproduce import reproduce as run_tables

    run_tables(
        tables,
        world=world,
        seeds=seeds,
        folder=folder,
        plan=plan,
        jobs=jobs,
        domains=domain,
        settings=set_,
        echo=typer.echo,
    )


@app.command("import-official")
def import_official(
    file: Annotated[Path, typer.Argument(help="A checkpoint file of the authors' code.")],
    config: Annotated[Path, typer.Option(help="Their settings, YAML or JSON.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder or .safetensors to write.")],
    domain: Annotated[
        str | None,
        typer.Option(help="A prepared domain, whose items the file's item tables are of."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Turn the authors' weights into a checkpoint of ours, without running what they pickled."""
    from mmm4rec.official_files import import_official as import_file
    from mmm4rec.settings import load_config
    from pipeline.datamodule import SequenceDataModule

    catalogue = None
    if domain:
        settings = load_config(None, _overrides({"data.data_dir": data_dir}, []))
        data = SequenceDataModule.from_config(settings, [domain], "finetune")
        catalogue, domain = data.catalogue, data.domains[0]
    _print_report(import_file(file, config, out, catalogue=catalogue, domain=domain), as_json)


@app.command("export-official")
def export_official(
    ckpt: Annotated[Path, typer.Argument(help="Folder of a run, or its .safetensors file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    light: Annotated[
        bool, typer.Option("--light", help="Without optimizer, epoch and score.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model of `fidelity: official` in the layout of the authors' code."""
    from mmm4rec.official_files import export_official as export_file

    _print_report(export_file(ckpt, out, layout="light" if light else "full"), as_json)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Everything is written here.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of everything that is trained.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Build a miniature Amazon and take it from raw files to recommendations, in minutes."""
    from experiments.demo import run_demo

    report = run_demo(folder, seeds=seeds, echo=_say(as_json))
    typer.echo(json.dumps(report.results, indent=2) if as_json else report.text)


def _load(
    verb: str, preset: str | None, overrides: list[str], base: dict[str, Any] | None = None
) -> Config:
    from experiments.presets import find_preset
    from mmm4rec.settings import load_config, merge_settings, read_preset

    settings = merge_settings(read_preset(find_preset(verb)), base or {})
    return load_config(find_preset(preset) if preset else None, overrides, base=settings)


def _overrides(shortcuts: dict[str, Any], given: list[str]) -> list[str]:
    """Put the named options behind `--set`, so that they win."""
    return [
        *given,
        *(f"{k}={json.dumps(v, default=str)}" for k, v in shortcuts.items() if v is not None),
    ]


def _data_folder(given: Path | None) -> Path:
    from mmm4rec.config import DataConfig

    return given or DataConfig().data_dir


def _moment(settings: Config, now: datetime | None) -> int | None:
    """Return the moment of recommending in Unix seconds; None for a model that does not read it."""
    if settings.data.query_time == "none":
        if now is not None:
            raise ConfigError(
                "--now: this model was trained with data.query_time=none and does not read it. "
                "Next: leave it out, or train with --set data.query_time=now"
            )
        return None
    return int((now.replace(tzinfo=UTC) if now else datetime.now(UTC)).timestamp())


def _study_folder(
    runs_dir: Path, study: str, domain: str, checkpoint: Checkpoint, given: list[str]
) -> Path:
    """Name a folder by what goes in: the same command writes to the same place, no other does."""
    from pipeline.domains import name_domain

    named = json.dumps([checkpoint.sha256, given])
    digest = hashlib.sha256(named.encode()).hexdigest()[:10]
    return runs_dir / study / name_domain(domain).name / digest


def _trained_settings(checkpoint: Checkpoint, data_dir: Path | None, given: list[str]) -> Config:
    from mmm4rec.settings import load_config

    overrides = _overrides({"data.data_dir": data_dir}, given)
    settings = load_config(None, overrides, base=checkpoint.config.as_dict())
    trained, asked = checkpoint.config.data.query_time, settings.data.query_time
    if asked != trained:
        raise ConfigError(
            f"data.query_time is {asked}, but {checkpoint.path} was trained with {trained}. "
            f"Next: leave it out, or train with --set data.query_time={asked}"
        )
    return settings


def _fit(
    settings: Config,
    domains: list[str],
    stage: Stage,
    runs_dir: Path,
    checkpoint: Checkpoint | None,
    as_json: bool,
) -> None:
    from mmm4rec.runner import fit
    from pipeline.datamodule import SequenceDataModule

    run = fit(
        settings,
        SequenceDataModule.from_config(settings, domains, stage),
        stage=stage,
        runs_dir=runs_dir,
        checkpoint=checkpoint,
        echo=_say(as_json),
        progress=sys.stderr.isatty() and not as_json,
    )
    _print_results(run.results, run.folder, as_json)


def _print_report(report: OfficialReport, as_json: bool) -> None:
    typer.echo(json.dumps(asdict(report), indent=2, default=str) if as_json else str(report))


def _print_plans(plans: list[dict[str, Any]], as_json: bool) -> None:
    from pipeline.dry_run import format_plan

    if as_json:
        typer.echo(json.dumps(plans, indent=2))
        return
    for plan in plans:
        typer.echo(format_plan(plan))


def _say(as_json: bool) -> Any:
    """Progress goes to stderr when stdout is for the result alone."""
    return lambda line: typer.echo(line, err=as_json)


def _print_results(results: dict[str, Any], folder: Path, as_json: bool) -> None:
    from mmm4rec.run_folder import is_main_process

    if not is_main_process():
        return
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **results}, indent=2))
        return
    if "best_epoch" in results:
        typer.echo(
            f"best epoch {results['best_epoch']} of {results['epochs']}, "
            f"{results['monitor']} {results['best_validation']:.4f}, "
            f"{results['seconds_to_best']:.1f} s to it"
        )
    for name, measured in results.get("test", {}).items():
        low, high = measured["interval"]
        typer.echo(f"test {name:<10} {measured['value']:.4f}  [{low:.4f}, {high:.4f}]")
    typer.echo(f"written to {folder}")


def run() -> None:
    """Run the command line."""
    app()
