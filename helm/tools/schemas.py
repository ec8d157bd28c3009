"""Validates manifests against Kubernetes' own schemas (PyPI `kubernetes-validate`, strict) and those of crds/."""

import functools
import json
import pathlib

import jsonschema
import kubernetes_validate
from kubernetes_validate import utils

CRDS = pathlib.Path(__file__).resolve().parent / "crds"
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}

# The definitions of a version are megabytes; the package reads them again for each manifest.
utils.schema_contents = functools.cache(utils.schema_contents)


def versions(first: str, last: str) -> list[str]:
    """Every Kubernetes version from `first` to `last`, such as 1.29 to 1.36."""
    minor = lambda version: int(version.split(".")[1])  # noqa: E731
    return [f"1.{n}" for n in range(minor(first), minor(last) + 1)]


@functools.cache
def _crd(kind: str) -> dict | None:
    path = CRDS / f"{kind.lower()}.json"
    return json.loads(path.read_text()) if path.exists() else None


def wrong(document: dict, kubernetes: str) -> str | None:
    """What the API server of this version would not take, or None."""
    if crd := _crd(document["kind"]):
        schema = {
            "type": "object",
            "required": ["spec"],
            "additionalProperties": False,
            "properties": {
                "apiVersion": {"const": crd["apiVersion"]},
                "kind": {},
                "metadata": METADATA,
                "spec": crd["spec"],
            },
        }
        found = jsonschema.Draft202012Validator(schema).iter_errors(document)
        return next((f"{error.json_path}: {error.message}" for error in found), None)
    try:
        kubernetes_validate.validate(document, kubernetes, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return error.message
    return None
