"""Lints and renders the chart: with the `helm` on the PATH, or with Helm's SDK where there is none."""

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

import yaml

CHART = pathlib.Path(__file__).resolve().parent.parent / "jumping-vpn"
RELEASE, NAMESPACE = "vpn", "jump"
HELM = os.environ.get("HELM") or shutil.which("helm")


class Refused(Exception):
    """The chart refused the values; the text is what the operator reads."""


def name() -> str:
    """What renders."""
    return HELM or "helm-python-sdk"


def lint(values: dict) -> list[str]:
    """Everything that `helm lint --strict` finds wrong."""
    if HELM:
        with _file(values) as path:
            done = _helm("lint", "--strict", str(CHART), "-f", path)
        return [] if done.returncode == 0 else [done.stdout + done.stderr]
    from helm_python import chart

    report = chart.lint(CHART, values, strict=True, namespace=NAMESPACE)
    return report["errors"] + [m["error"] for m in report["messages"] if m["severity"] >= 2]


def render(values: dict, upgrade: bool = False) -> list[dict]:
    """Every manifest, as an install or an upgrade applies it.

    Raises Refused with the chart's sentence.
    """
    if HELM:
        with _file(values) as path:
            arguments = ["template", RELEASE, str(CHART), "-n", NAMESPACE, "-f", path]
            done = _helm(*arguments, *(["--is-upgrade"] if upgrade else []))
        if done.returncode:
            raise Refused(done.stderr)
        texts = [done.stdout]
    else:
        from helm_python import errors

        try:
            files = _chart().render(
                values, name=RELEASE, namespace=NAMESPACE, is_install=not upgrade, is_upgrade=upgrade
            )
        except errors.HelmError as error:
            raise Refused(str(error)) from error
        texts = [text for path, text in files.items() if path.endswith((".yaml", ".yml"))]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


@functools.cache
def _chart():
    from helm_python.chart import Chart

    return Chart.load(CHART)


class _file:
    """A values file that lives as long as the block."""

    def __init__(self, values: dict):
        self.values = values

    def __enter__(self) -> str:
        self.file = tempfile.NamedTemporaryFile("w", suffix=".yaml")
        yaml.safe_dump(self.values, self.file)
        self.file.flush()
        return self.file.name

    def __exit__(self, *_):
        self.file.close()


def _helm(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False)
