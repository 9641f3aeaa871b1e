"""The command that makes datasets: synthesize."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sfd.cli.terminal import MAX_SEED, AsJson, AtOnce, Device, progress_bars, say, teller

NUMBERS = {"n": 1000, "seed": 0}


def synthesize(
    run: Annotated[str, typer.Argument(help="A run folder or a student's file.")],
    out: Annotated[str, typer.Argument(help="The dataset's folder.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[n=N] [seed=SEED]")] = None,
    labels: Annotated[str, typer.Option(help="Comma-separated labels, or 'all' retained.")] = "all",
    balance: Annotated[str | None, typer.Option(help="Parts: cat=2,dog=1 (default: even).")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Of a text-to-image student.")] = None,
    prompts: Annotated[str | None, typer.Option(help="A list: .txt, .csv or .yaml.")] = None,
    detector: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME=LABEL,... (default: the run's judges).")
    ] = None,
    private: Annotated[
        str | None, typer.Option(help="Images that none may come too near to.")
    ] = None,
    private_features: Annotated[
        str | None, typer.Option(help="What they are compared in (default: the suite's).")
    ] = None,
    private_quantile: Annotated[
        float | None,
        typer.Option(help="Share of them nearer to each other than is allowed (default .05)."),
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Images (default 1000).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="(default 0)")] = None,
    tries: Annotated[int, typer.Option(min=1, max=256, help="Of each place, at most.")] = 20,
    shard: Annotated[
        str | None, typer.Option(help="This process's share, such as 0/4 (default: a launch's).")
    ] = None,
    batch: AtOnce = None,
    folder: Annotated[int, typer.Option(min=1, help="Images between commits.")] = 1000,
    keep_quarantine: Annotated[
        bool, typer.Option("--keep-quarantine", help="Keep refused images, outside the dataset.")
    ] = False,
    c2pa: Annotated[
        tuple[str, str] | None, typer.Option(help="Sign every image: CHAIN.pem KEY.pem.")
    ] = None,
    webdataset: Annotated[str | None, typer.Option(help="Pack tar shards there too.")] = None,
    review: Annotated[int, typer.Option(min=0, help="Write a table of so many to look at.")] = 0,
    reviewed: Annotated[str | None, typer.Option(help="The table, filled.")] = None,
    usefulness: Annotated[
        tuple[str, str] | None, typer.Option(help="Real labelled images: TRAIN TEST.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw a safe synthetic dataset: an image folder, screened, with a card.

    The same command resumes; exit 3 if places stayed empty.
    """
    import json

    from sfd import devices, verbs
    from sfd.synthesis import webdataset as tars

    given = _numbers(words or [], {"n": n, "seed": seed})
    rank, size = (os.environ.get(name, d) for name, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    shard = shard or f"{rank}/{size}"
    where = str(devices.device_of(device))
    folder_of = Path(out).expanduser()
    if webdataset:
        tars.check_place(folder_of, Path(webdataset).expanduser())
    with progress_bars() as progress:
        _, report = verbs.synthesize_run(
            Path(run).expanduser(), folder_of, labels=labels, balance=balance,
            prompts=prompt or [], prompt_list=prompts, detectors=detector or [], private=private,
            private_features=private_features, private_quantile=private_quantile, tries=tries,
            c2pa=c2pa, shard=shard, batch=batch, size=folder, keep_refused=keep_quarantine,
            usefulness=usefulness, device=where, progress=progress, **given,
        )  # fmt: skip
        tell = teller(as_json)
        if report is None:
            tell(f"{out}: shard {shard} is done, others are not; the last one writes the card")
            if as_json:
                say(json.dumps({"folder": str(folder_of), "finished": False}))
            return
        if reviewed:
            report = verbs.add_review(folder_of, report, Path(reviewed))
        if webdataset:
            count = tars.write(folder_of, Path(webdataset).expanduser())
            tell(f"{webdataset}: {count} tar files")
    if review:
        tell(f"{verbs.write_review(folder_of, report, review)}: fill its column, then --reviewed")
    if as_json:
        say(json.dumps(report, indent=1))
    else:
        kept, refused = report["kept"], report["refused"]
        say(f"{kept:,} images kept, {refused:,} refused; {folder_of / 'README.md'}")
    raise typer.Exit(3 if report["unmet"] else 0)


def _numbers(words: list[str], asked: dict[str, int | None]) -> dict[str, int]:
    """`n=100000` and `seed=1`, said as a recipe's keys are, or as the options `asked`.

    Raises ValueError if one is said in two ways.
    """
    from sfd import content

    found = {key: value for key, value in asked.items() if value is not None}
    for word in words:
        key, _, value = word.partition("=")
        if key not in NUMBERS:
            raise ValueError(f"unknown key {key!r}{content.did_you_mean(key, NUMBERS)}")
        if not value.isdecimal() or (key == "n" and int(value) < 1) or int(value) > MAX_SEED:
            raise ValueError(f"{word}: give a whole number")
        if found.setdefault(key, int(value)) != int(value):
            raise ValueError(f"{key}: {found[key]} and {int(value)} are both given: give one")
    return NUMBERS | found
