"""`matchflow doctor`: what is wrong and what to do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from matchflow_cli import doctor_checks
from matchflow_cli.doctor_checks import Finding, Verdict
from matchflow_cli.output import console, text

STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def doctor(
    *,
    store: Annotated[Path | None, typer.Option(envvar="MATCHFLOW_STORE", help="Folder of the galleries.")] = None,
    bundle: Annotated[
        list[Path] | None, typer.Option(envvar="MATCHFLOW_BUNDLES", help="Folder of a bundle; again for more.")
    ] = None,
    host: Annotated[str, typer.Option(envvar="MATCHFLOW_HOST", help="Address of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="MATCHFLOW_PORT", help="Port of the server.")] = 50051,
    provider: Annotated[
        str, typer.Option(envvar="MATCHFLOW_PROVIDER", help="ONNX Runtime execution provider.")
    ] = "CPUExecutionProvider",
) -> None:
    """Check versions, execution provider, bundles, store and port: what is wrong and what to do.

    The exit status is 1 if something is FAIL.
    """
    out = console()
    worst = [show(out, finding) for finding in _examine(store, bundle or [], host, port, provider)]
    if Verdict.FAIL in worst:
        raise typer.Exit(1)


def _examine(store: Path | None, bundles: list[Path], host: str, port: int, provider: str) -> Iterator[Finding]:
    yield doctor_checks.check_python()
    yield from doctor_checks.check_packages()
    yield doctor_checks.check_provider(provider)
    yield from doctor_checks.check_bundles(bundles, provider)
    yield from doctor_checks.check_store(store)
    yield doctor_checks.check_port(host, port)


def show(out: Console, finding: Finding) -> Verdict:
    """Print one line and return its verdict."""
    advice = f" -> {text(finding.advice)}" if finding.advice else ""
    style = STYLES[finding.verdict]
    out.print(f"[{style}]{finding.verdict:<4}[/] {finding.subject:<9} {text(finding.found)}{advice}", soft_wrap=True)
    return finding.verdict
