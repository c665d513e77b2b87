"""`mayfly image`: base images and their versions."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.bootstrap import open_images
from orchestrator.cli import output
from orchestrator.cli.bars import BuildBars
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Base images: build, list, promote, roll back.")
ImageName = Annotated[str, typer.Argument(metavar="IMAGE", help="A folder of images/, such as debian-12.")]


@app.command()
def build(
    image: ImageName,
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Do nothing when a version is promoted.")] = False,
) -> None:
    """Build a new version: root file system, playbook, saved, smoke-tested, promoted. The previous one stays."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_images(settings) as images:
            if if_missing:
                promoted = await images.promoted(image)
                if promoted is not None:
                    output.say(f"{image} version {promoted.version} is promoted already")
                    return
            with BuildBars() as bars:
                built = await images.build(image, bars)
            output.say(f"{image} version {built.version} is promoted")

    perform(work())


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Every version that the cloud holds."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_images(settings) as images:
            versions = await images.versions()
        if as_json:
            output.as_json([version.as_dict() for version in versions])
            return
        output.table(
            ("image", "version", "state", "template", "made"),
            ((v.image, v.version, v.state, v.template_id, output.ago(v.created_at)) for v in versions),
            empty="no image yet: mayfly image build debian-12",
        )

    perform(work())


@app.command()
def promote(image: ImageName, version: Annotated[int, typer.Argument(help="A version of mayfly image list.")]) -> None:
    """Boot new VMs from this version."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_images(settings) as images:
            await images.promote(image, version)
        output.say(f"{image} version {version} is promoted")

    perform(work())


@app.command()
def rollback(image: ImageName) -> None:
    """Boot new VMs from the previous version again."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_images(settings) as images:
            version = await images.rollback(image)
        output.say(f"{image} version {version.version} is promoted again")

    perform(work())
