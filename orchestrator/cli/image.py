"""`mayfly image`: base images and their versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.bootstrap import open_images
from orchestrator.cli import output
from orchestrator.cli.bars import BuildBars
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.provisioning.versions import ImageVersion

app = typer.Typer(no_args_is_help=True, help="Base images: build, list, promote, roll back.")
ImageName = Annotated[str, typer.Argument(metavar="IMAGE", help="A folder of images/, such as debian-12.")]


@app.command()
def build(
    image: ImageName,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing when a version of this very definition is promoted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a new version: root file system, playbook, saved, smoke-tested, promoted. The previous one stays."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_images(settings) as images:
            if if_missing:
                promoted = await images.up_to_date(image)
                if promoted is not None:
                    _say(promoted, "is promoted already", as_json)
                    return
            with BuildBars() as bars:
                built = await images.build(image, bars)
            _say(built, "is promoted", as_json)

    perform(work())


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Every version that the cloud holds."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_images(settings, start_cloud=False) as images:
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
def promote(
    image: ImageName,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="A version of mayfly image list.")],
    as_json: AsJson = False,
) -> None:
    """Boot new VMs from this version."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_images(settings) as images:
            promoted = await images.promote(image, version)
        _say(promoted, "is promoted", as_json)

    perform(work())


@app.command()
def rollback(image: ImageName, as_json: AsJson = False) -> None:
    """Boot new VMs from the previous version again."""
    settings = Settings.from_environment()

    async def work() -> None:
        async with open_images(settings) as images:
            version = await images.rollback(image)
        _say(version, "is promoted again", as_json)

    perform(work())


def _say(version: ImageVersion, what: str, as_json: bool) -> None:
    if as_json:
        output.as_json(version.as_dict())
    else:
        output.say(f"{version.image} version {version.version} {what}")
