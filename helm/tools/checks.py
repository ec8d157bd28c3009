"""What no schema says: things must match each other, and stay inside what Kubernetes and the programs accept."""

import re
import tomllib

WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"}
ENUMS = {
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "externalTrafficPolicy": {"Local", "Cluster"},
    "whenUnsatisfiable": {"ScheduleAnyway", "DoNotSchedule"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost", "Unconfined"},
    "hostPath.type": {"", "CharDevice", "Directory", "File", "Socket", "BlockDevice"},
    "target.type": {"Utilization", "Value", "AverageValue"},
    "helm.sh/hook": {"pre-install", "post-install", "pre-upgrade", "post-upgrade", "pre-delete", "post-delete", "test"},
    "helm.sh/hook-delete-policy": {"before-hook-creation", "hook-succeeded", "hook-failed"},
}
LIST_ENUMS = {
    "policyTypes": {"Ingress", "Egress"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
}
# The one capability that anything may add, and the parts that may.
CAPABILITIES = {"gateway": {"NET_ADMIN"}, "test": {"NET_ADMIN"}}


def wrong(documents: list[dict], given_secrets: set[str]) -> list[str]:
    """Every contradiction in one rendered release; `given_secrets` are the operator's own."""
    release = Release(documents, given_secrets)
    return [
        f"{label(document)}: {problem}"
        for document in documents
        for check in CHECKS
        for problem in check(document, release)
    ] + release.duplicates()


def label(document: dict) -> str:
    """Names a manifest for people."""
    return f"{document['kind']}/{document['metadata']['name']}"


def pod(document: dict) -> dict | None:
    """The pod template of a workload, or a bare pod itself."""
    match document["kind"]:
        case "Pod":
            return document
        case "CronJob":
            return document["spec"]["jobTemplate"]["spec"]["template"]
        case kind if kind in WORKLOADS:
            return document["spec"]["template"]
    return None


def containers(template: dict) -> list[dict]:
    """Every container, init containers too."""
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]


class Release:
    """What the manifests of a release offer each other."""

    def __init__(self, documents: list[dict], given_secrets: set[str]):
        self.documents = documents
        self.pods = [(d, p) for d in documents if (p := pod(d))]
        names = lambda kind: {d["metadata"]["name"] for d in documents if d["kind"] == kind}  # noqa: E731
        self.config_maps, self.accounts, self.roles = names("ConfigMap"), names("ServiceAccount"), names("Role")
        self.services = names("Service")
        issued = {d["spec"]["secretName"] for d in documents if d["kind"] == "Certificate"}
        # The job that makes certificates may write exactly the Secrets that its role names.
        written = {
            name
            for d in documents
            if d["kind"] == "Role"
            for rule in d["rules"]
            if "secrets" in rule["resources"]
            for name in rule.get("resourceNames", [])
        }
        self.secrets = given_secrets | names("Secret") | issued | written

    def selected(self, selector: dict) -> list[tuple[dict, dict]]:
        """Workloads whose pods carry these labels."""
        return [
            (d, p)
            for d, p in self.pods
            if selector and selector.items() <= p["metadata"].get("labels", {}).items()
        ]

    def duplicates(self) -> list[str]:
        seen, twice = set(), []
        for document in self.documents:
            key = label(document)
            twice += [f"{key}: there are two"] if key in seen else []
            seen.add(key)
        return twice


def selectors(document: dict, release: Release):
    """A selector selects one workload of the release: no more, no less."""
    spec, kind = document.get("spec", {}), document["kind"]
    if kind in {"Deployment", "StatefulSet", "DaemonSet"}:
        if [d for d, _ in release.selected(spec["selector"]["matchLabels"])] != [document]:
            yield "its selector does not select exactly its own pods"
        own = pod(document)["metadata"]["labels"].items()
        for spread in pod(document)["spec"].get("topologySpreadConstraints", []):
            if not spread["labelSelector"]["matchLabels"].items() <= own:
                yield "a topology spread constraint counts other pods"
    elif kind in {"Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "ServiceMonitor"}:
        selector = {
            "Service": lambda: spec["selector"],
            "NetworkPolicy": lambda: spec["podSelector"]["matchLabels"],
        }.get(kind, lambda: spec["selector"]["matchLabels"])()
        found = release.selected(selector)
        if len(found) != 1:
            yield f"its selector selects {len(found)} workloads"
            return
        named = {(p["name"], p.get("protocol", "TCP")) for c in containers(found[0][1]) for p in c.get("ports", [])}
        for wanted in wanted_ports(document):
            if wanted not in named:
                yield f"port {wanted[0]}/{wanted[1]} is no port of {label(found[0][0])}"
        for rule in spec.get("ingress", []) if kind == "NetworkPolicy" else []:
            for peer in rule.get("from", []):
                labels = peer.get("podSelector", {}).get("matchLabels")
                if labels and not release.selected(labels):
                    yield f"it lets in pods that do not exist: {labels}"


def wanted_ports(document: dict) -> list[tuple[str, str]]:
    """Ports by name that a manifest expects of the pods that it selects."""
    spec = document["spec"]
    match document["kind"]:
        case "Service":
            return [(p["targetPort"], p["protocol"]) for p in spec["ports"] if isinstance(p["targetPort"], str)]
        case "NetworkPolicy":
            return [(p["port"], p["protocol"]) for r in spec["ingress"] for p in r["ports"] if isinstance(p["port"], str)]
        case "PodMonitor":
            return [(e["port"], "TCP") for e in spec["podMetricsEndpoints"]]
    return []


def ports(document: dict, _release: Release):
    """Port numbers and names in range and without duplicates."""
    for path, key, value in walk(document):
        if key in {"containerPort", "port", "targetPort", "hostPort"} and isinstance(value, int):
            if not 1 <= value <= 65535:
                yield f"{path}: {value} is no port"
        if key == "nodePort" and not 30000 <= value <= 32767:
            yield f"{path}: {value} is outside 30000-32767"
    listed = [document["spec"]["ports"]] if document["kind"] == "Service" else []
    listed += [[p for c in containers(t) for p in c.get("ports", [])]] if (t := pod(document)) else []
    for group in listed:
        numbers = [(p.get("port", p.get("containerPort")), p.get("protocol", "TCP")) for p in group]
        names = [p["name"] for p in group]
        if len(set(numbers)) != len(numbers) or len(set(names)) != len(names):
            yield f"two ports are the same: {numbers} {names}"
        for long in (n for n in names if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?", n)):
            yield f"{long} is no port name"


def enums(document: dict, _release: Release):
    """Words that the schemas leave open."""
    for path, key, value in walk(document):
        for rule in (f"{path.split('.')[-2]}.{key}" if "." in path else key, key):
            for word in value.split(",") if rule in ENUMS and isinstance(value, str) else []:
                if word not in ENUMS[rule]:
                    yield f"{path}: {word!r} is none of {sorted(ENUMS[rule])}"
        if key in LIST_ENUMS and not set(value) <= LIST_ENUMS[key]:
            yield f"{path}: {value} has a word outside {sorted(LIST_ENUMS[key])}"
    if document["kind"] == "Service" and document["spec"].get("type", "ClusterIP") not in {"ClusterIP", "NodePort", "LoadBalancer"}:
        yield f"type {document['spec']['type']!r}"
    if document["kind"] == "Service" and "externalTrafficPolicy" in document["spec"] and document["spec"]["type"] == "ClusterIP":
        yield "externalTrafficPolicy is only for NodePort and LoadBalancer"


def scaling(document: dict, release: Release):
    """An autoscaler owns the replicas of its target: with `replicas` in the manifest, the next upgrade's server-side
    apply conflicts with it."""
    if document["kind"] != "HorizontalPodAutoscaler":
        return
    spec = document["spec"]
    target = [d for d in release.documents if label(d) == f"{spec['scaleTargetRef']['kind']}/{spec['scaleTargetRef']['name']}"]
    if len(target) != 1:
        yield "its target does not exist"
    elif "replicas" in target[0]["spec"]:
        yield "its target has replicas of its own"
    if not spec["metrics"] or spec["minReplicas"] > spec["maxReplicas"]:
        yield "it has no metrics, or its bounds contradict each other"


def updates(document: dict, _release: Release):
    """A pod on the host's network has the machine's ports: a second one beside it, as a surge makes, finds no place."""
    if document["kind"] == "Deployment" and pod(document)["spec"].get("hostNetwork"):
        rolling = document["spec"].get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxSurge") != 0 or not rolling.get("maxUnavailable"):
            yield "its update waits for a place that no machine has: maxSurge must be 0, and maxUnavailable above it"


def references(document: dict, release: Release):
    """Everything that is named exists."""
    template = pod(document)
    if document["kind"] == "StatefulSet" and document["spec"]["serviceName"] not in release.services:
        yield "its governing service does not exist"
    if document["kind"] == "RoleBinding":
        if document["roleRef"]["name"] not in release.roles:
            yield "its role does not exist"
        if not {s["name"] for s in document["subjects"]} <= release.accounts:
            yield "its subject does not exist"
    if not template:
        return
    spec = template["spec"]
    claims = {c["metadata"]["name"] for c in document["spec"].get("volumeClaimTemplates", [])}
    volumes = {v["name"]: v for v in spec.get("volumes", [])}
    mounted = {m["name"] for c in containers(template) for m in c.get("volumeMounts", [])}
    for path in sorted(twice_mounted(template)):
        yield f"two volumes are mounted as {path}"
    for missing in mounted - claims - volumes.keys():
        yield f"volume {missing} does not exist"
    for unused in (claims | volumes.keys()) - mounted:
        yield f"volume {unused} is mounted by nobody"
    for volume in volumes.values():
        if "configMap" in volume and volume["configMap"]["name"] not in release.config_maps:
            yield f"ConfigMap {volume['configMap']['name']} does not exist"
        if "secret" in volume and volume["secret"]["secretName"] not in release.secrets:
            yield f"nobody makes Secret {volume['secret']['secretName']}"
    if spec.get("serviceAccountName", "default") not in release.accounts | {"default"}:
        yield "its service account does not exist"
    for container in containers(template):
        if not re.fullmatch(r"[^\s:@]+(:[0-9]+/[^\s:@]+)?(:[\w.-]+|@sha256:[0-9a-f]{64})", container["image"]):
            yield f"image {container['image']!r} has neither tag nor digest"


def twice_mounted(template: dict) -> set[str]:
    """Paths at which one container mounts more than one volume."""
    paths = [[m["mountPath"] for m in c.get("volumeMounts", [])] for c in containers(template)]
    return {path for own in paths for path in own if own.count(path) > 1}


def privileges(document: dict, _release: Release):
    """Nothing is privileged, and only the parts that make a TUN device may add a capability."""
    if not (template := pod(document)):
        return
    spec, part = template["spec"], template["metadata"]["labels"]["app.kubernetes.io/component"]
    pod_context = spec.get("securityContext", {})
    if pod_context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if spec.get("automountServiceAccountToken") is not (part == "pki"):
        yield "automountServiceAccountToken must be off, but for the job that writes Secrets"
    if spec.get("hostPID") or spec.get("hostIPC"):
        yield "it shares the host's processes"
    for container in containers(template):
        context = container.get("securityContext", {})
        capabilities = context.get("capabilities", {})
        added = set(capabilities.get("add", []))
        seccomp = context.get("seccompProfile", {"type": "RuntimeDefault"})
        if not (seccomp["type"] == "RuntimeDefault" or seccomp["type"] == "Localhost" and seccomp.get("localhostProfile")):
            yield f"{container['name']} has no seccomp profile"
        if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']} may gain privileges"
        if capabilities.get("drop") != ["ALL"] or not added <= CAPABILITIES.get(part, set()):
            yield f"{container['name']} has capabilities {capabilities}"
        if not context.get("readOnlyRootFilesystem"):
            yield f"{container['name']} may write to its root file system"
        if not added and not (pod_context.get("runAsNonRoot") or context.get("runAsNonRoot")):
            yield f"{container['name']} runs as root"
        if "resources" in container and "limits" in container["resources"] and "requests" not in container["resources"]:
            yield f"{container['name']} has limits without requests"


def settings(document: dict, release: Release):
    """Configuration files are valid TOML, and the pod outlives the drain that they allow."""
    if document["kind"] != "ConfigMap":
        return
    for file, text in document["data"].items():
        if not file.endswith(".toml"):
            continue
        config = tomllib.loads(text)
        drain = config.get("drain", {}).get("deadline", "0s")
        for _, template in release.pods:
            mounts = [v for v in template["spec"].get("volumes", []) if v.get("configMap", {}).get("name") == document["metadata"]["name"]]
            grace = template["spec"].get("terminationGracePeriodSeconds", 30)
            if mounts and grace <= int(drain.removesuffix("s")):
                yield f"the grace period {grace} s is not above the drain deadline {drain}"


def names(document: dict, _release: Release):
    """Names that become DNS labels fit, and labels are short enough."""
    metadata = document["metadata"]
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", metadata["name"]):
        yield "its name is no DNS label"
    for key, value in metadata.get("labels", {}).items():
        if len(value) > 63:
            yield f"label {key} is too long"


def walk(value, path: str = ""):
    """Every (path, key, value) in a document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else key
            yield here, key, inner
            yield from walk(inner, here)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner, path)


CHECKS = [selectors, ports, enums, scaling, updates, references, privileges, settings, names]
