"""Broken manifests: each must be found, or the checks themselves have stopped working."""

import copy

import checks
import schemas


def _first(documents: list[dict], kind: str, part: str = "gateway") -> dict:
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["labels"]["app.kubernetes.io/component"] == part)


def _spec(document: dict) -> dict:
    return checks.pod(document)["spec"]


def _container(documents: list[dict], kind: str = "Deployment", part: str = "gateway") -> dict:
    return _spec(_first(documents, kind, part))["containers"][0]


MUTATIONS = {
    "a selector that selects nothing": lambda d: _first(d, "Service")["spec"]["selector"].update(x="y"),
    "a workload that selects another's pods": lambda d: _first(d, "Deployment")["spec"]["selector"]["matchLabels"].pop(
        "app.kubernetes.io/component"
    ),
    "a service port that no container has": lambda d: _first(d, "Service")["spec"]["ports"][0].update(targetPort="udpp"),
    "the right port with the wrong protocol": lambda d: _first(d, "Service")["spec"]["ports"][0].update(protocol="TCP"),
    "a port out of range": lambda d: _first(d, "Service")["spec"]["ports"][0].update(port=0),
    "a port name that is too long": lambda d: _container(d)["ports"][0].update(name="sixteen-letters-x"),
    "a misspelt pull policy": lambda d: _container(d).update(imagePullPolicy="ifNotPresent"),
    "a misspelt field": lambda d: _container(d).update(readinesProbe={}),
    "an unknown field of a custom resource": lambda d: _first(d, "PodMonitor")["spec"].update(namespaceselector={}),
    "replicas that the autoscaler owns": lambda d: _first(d, "Deployment")["spec"].update(replicas=2),
    "a volume that nobody makes": lambda d: _container(d)["volumeMounts"].append({"name": "x", "mountPath": "/x"}),
    "a Secret that nobody makes": lambda d: _spec(_first(d, "Deployment"))["volumes"].append(
        {"name": "x", "secret": {"secretName": "x"}}
    ),
    "a privileged container": lambda d: _container(d)["securityContext"].update(privileged=True),
    "one capability too many": lambda d: _container(d)["securityContext"]["capabilities"]["add"].append("NET_RAW"),
    "a capability where none belongs": lambda d: _container(d, part="control")["securityContext"]["capabilities"].update(
        add=["NET_ADMIN"]
    ),
    "a container without a seccomp profile": lambda d: _container(d)["securityContext"].update(
        seccompProfile={"type": "Unconfined"}
    ),
    "a seccomp profile without a path": lambda d: _container(d)["securityContext"].update(
        seccompProfile={"type": "Localhost"}
    ),
    "two volumes in one place": lambda d: _container(d)["volumeMounts"].append(_container(d)["volumeMounts"][0]),
    "an image without a tag": lambda d: _container(d).update(image="gateway"),
    "a grace period below the drain": lambda d: _spec(_first(d, "Deployment")).update(terminationGracePeriodSeconds=20),
    "an update that no machine has room for": lambda d: _spec(_first(d, "Deployment")).update(hostNetwork=True),
    "two manifests of one name": lambda d: d.append(copy.deepcopy(_first(d, "Service"))),
    "a label value that is a number": lambda d: _first(d, "Service")["metadata"]["labels"].update(x=1),
}


def missed(documents: list[dict], secrets: set[str]) -> list[str]:
    """The mutations that neither a schema nor a check finds."""
    found_nothing = []
    for name, mutate in MUTATIONS.items():
        broken = copy.deepcopy(documents)
        mutate(broken)
        if not any(schemas.wrong(d, "1.36") for d in broken) and not checks.wrong(broken, secrets):
            found_nothing.append(name)
    return found_nothing
