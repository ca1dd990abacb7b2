"""The manifests under k8s/: both schemas, rules that the schemas miss, and names that the project must have."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "crds"
JOBS = ["rayjob-openvino-cpu", "rayjob-bloom-gpu", "rayjob-mixed"]
MANIFESTS = [*JOBS, "rayservice"]
IMAGES = {"hfray-openvino": "Dockerfile.openvino", "hfray-gpu": "Dockerfile.gpu"}


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((ROOT / "k8s" / f"{name}.yaml").read_text()))


def resource(name: str) -> dict:
    return next(d for d in documents(name) if d["apiVersion"] == "ray.io/v1")


def cluster_of(name: str) -> dict:
    spec = resource(name)["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def pod_templates(name: str) -> dict[str, dict]:
    cluster = cluster_of(name)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    submitter = resource(name)["spec"].get("submitterPodTemplate")
    return found | ({"submitter": submitter} if submitter else {})


# --- schemas ---------------------------------------------------------------------------------------------------


def as_json_schema(node):
    """An OpenAPI v3 structural schema as a JSON schema, as strict as kubectl: unknown keys are errors."""
    if isinstance(node, list):
        return [as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: as_json_schema(value) for key, value in node.items() if not key.startswith("x-")}
    if node.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out = {"anyOf": [{"type": "integer"}, {"type": "string"}]} | {k: v for k, v in out.items() if k != "anyOf"}
    open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and "type" in node and not open_ended:
        out["additionalProperties"] = False
    if node.get("nullable") and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    return out


def crd_errors(document: dict) -> list[str]:
    import jsonschema

    path = CRDS / f"ray.io_{document['kind'].lower()}s.yaml"
    versions = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    schema = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    properties = schema["properties"]
    properties["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    validator = jsonschema.Draft7Validator(as_json_schema(schema))
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(document)]


needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's CRDs are missing (../shared/crds)")


@needs_crds
@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_schema(name):
    assert crd_errors(resource(name)) == []


@needs_crds
def test_the_schema_check_finds_mistakes():
    document = copy.deepcopy(resource("rayjob-bloom-gpu"))
    document["spec"]["backofLimit"] = 3
    document["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] = "eight"
    found = " ".join(crd_errors(document))
    assert "backofLimit" in found
    assert "workerGroupSpecs.0.maxReplicas" in found


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_schema(name):
    validate = pytest.importorskip("kubernetes_validate")
    version = "1.33"
    for document in documents(name):
        if document["apiVersion"] != "ray.io/v1":
            validate.validate(document, version, strict=True)
    for part, template in pod_templates(name).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": part} | template.get("metadata", {})}
        validate.validate(pod | {"spec": template["spec"]}, version, strict=True)


# --- rules of KubeRay's validation beyond its schema ------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_job_rules(name):
    spec = resource(name)["spec"]
    assert spec["entrypoint"].strip()
    assert spec["submissionMode"] in {"K8sJobMode", "HTTPMode", "SidecarMode"}
    assert spec["shutdownAfterJobFinishes"] is True  # KubeRay refuses ttlSecondsAfterFinished without it
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["preRunningDeadlineSeconds"] > 0
    assert spec["backoffLimit"] >= 1
    assert "clusterSelector" not in spec  # KubeRay refuses it together with backoffLimit
    assert "deletionStrategy" not in spec  # KubeRay refuses it together with shutdownAfterJobFinishes
    assert len(resource(name)["metadata"]["name"]) <= 47
    assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", MANIFESTS)
def test_cluster_rules(name):
    import ray

    cluster = cluster_of(name)
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["maxReplicas"]
        assert group["labels"]
        assert "labels" not in group["rayStartParams"]  # labels belong in the group's own field
        assert len(group["groupName"]) <= 30
    for part, template in pod_templates(name).items():
        assert template["spec"]["restartPolicy"] == "Never", (
            part
        )  # version 2 of the autoscaler replaces pods, not containers
    values = [v for g in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]] for v in g["rayStartParams"].values()]
    assert all(isinstance(value, str) for value in values)


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_are_locked_down(name):
    locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert cluster_of(name)["autoscalerOptions"]["securityContext"] == locked
    for part, template in pod_templates(name).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, part
        assert spec["securityContext"]["runAsUser"] > 0
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert container["securityContext"] == locked, part
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= volumes
            assert "/tmp" in mounts, part  # the root file system is read-only
            assert container["resources"]["limits"] == container["resources"]["requests"] or part == "submitter"
            for variable in container["env"]:
                secret = re.search("KEY|TOKEN|SECRET", variable["name"])
                assert not (secret and "value" in variable), "the manifest contains a secret"


@pytest.mark.parametrize("name", MANIFESTS)
def test_only_the_head_has_a_kubernetes_token(name):
    for part, template in pod_templates(name).items():
        assert template["spec"].get("automountServiceAccountToken", True) is (part == "head"), part  # its autoscaler


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_network_policy_closes_rays_ports(name):
    (policy,) = [document["spec"] for document in documents(name) if document["kind"] == "NetworkPolicy"]
    assert policy["policyTypes"] == ["Ingress"]
    own = policy["podSelector"]["matchLabels"]
    for part, template in pod_templates(name).items():
        assert own.items() <= template["metadata"]["labels"].items(), part
    others = [rule for rule in policy["ingress"] if rule["from"] != [{"podSelector": {"matchLabels": own}}]]
    assert len(others) == len(policy["ingress"]) - 1
    opened = {port["port"] for rule in others for port in rule["ports"]}
    assert opened == ({8265, 8000} if name == "rayservice" else {8265})
    for rule in others:  # the dashboard, which starts jobs, is open to the operator alone
        operator = [peer["podSelector"].get("matchLabels") for peer in rule["from"]]
        operator_only = operator == [{"app.kubernetes.io/name": "kuberay-operator"}]
        assert operator_only or {port["port"] for port in rule["ports"]} == {8000}


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_pods_have_what_an_engine_needs(name):
    for part, template in pod_templates(name).items():
        if part == "submitter":
            continue
        spec, container = template["spec"], template["spec"]["containers"][0]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        env = {variable["name"]: variable for variable in container["env"]}
        shm = next(v for v in spec["volumes"] if v["name"] == mounts["/dev/shm"])
        assert shm["emptyDir"]["medium"] == "Memory"
        assert env["HFRAY_CACHE"]["value"] in mounts
        for key in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert env[key]["valueFrom"]["secretKeyRef"]["optional"] is True
        claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
        there = {d["metadata"]["name"] for d in documents(name) if d["kind"] == "PersistentVolumeClaim"}
        assert set(claims) <= there


# --- names of this project -----------------------------------------------------------------------------------


def job_settings(name: str):
    from hfray.config.batch import BatchSettings
    from hfray.config.compose import load_settings

    words = shlex.split(resource(name)["spec"]["entrypoint"])
    assert words[:2] == ["python", "-m"]
    assert importlib.util.find_spec(words[2]) is not None
    return load_settings(words[3:], {"jobs.batch": BatchSettings}[words[2]])


@pytest.mark.parametrize("name", JOBS)
def test_job_commands_compose(name):
    from hfray.cluster.pools import worker_gpus

    settings = job_settings(name)
    assert settings.input.path.startswith("s3://")  # not on a pod's disk
    assert settings.output.path.startswith("s3://")
    for pool in settings.pools.values():
        chosen = [
            group
            for group in cluster_of(name)["workerGroupSpecs"]
            if pool.workers.labels.items() <= group["labels"].items()
        ]
        (group,) = chosen
        low, high = pool.workers.bounds
        assert low == 1  # the pool starts with its first node and does not wait for all
        assert high == group["maxReplicas"]
        container = group["template"]["spec"]["containers"][0]
        limits = container["resources"]["limits"]
        assert int(limits["cpu"]) == pool.workers.cpus
        assert float(limits.get("nvidia.com/gpu", 0)) == worker_gpus(None, pool)
        assert container["image"].startswith("hfray-openvino:") == (pool.backend.name == "openvino")
        if "nvidia.com/gpu" in limits:
            tolerated = [t["key"] for t in group["template"]["spec"]["tolerations"]]
            assert "nvidia.com/gpu" in tolerated


def test_service_composes():
    from hfray.config.compose import load_settings
    from hfray.config.serve import ServeSettings
    from hfray.serve import proxy
    from hfray.serve.deployment import overrides

    config = yaml.safe_load(resource("rayservice")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, name = application["import_path"].split(":")
    server = importlib.import_module(module)
    assert callable(getattr(server, name))
    settings = load_settings(overrides(application["args"]), ServeSettings)
    groups = cluster_of("rayservice")["workerGroupSpecs"]
    (group,) = [g for g in groups if settings.workers.labels.items() <= g["labels"].items()]
    assert settings.serve.host == "0.0.0.0"
    variable = settings.serve.api_keys.removeprefix("env:")
    assert settings.workers.bounds == (group["minReplicas"], group["maxReplicas"])
    for part in pod_templates("rayservice").values():
        env = {v["name"]: v for v in part["spec"]["containers"][0]["env"]}
        assert "optional" not in env[variable]["valueFrom"]["secretKeyRef"]  # no keys, no service
        assert env[proxy.VARIABLE]["value"] == proxy.CALLBACK


@pytest.mark.parametrize("name", MANIFESTS)
def test_images_are_those_that_the_dockerfiles_make(name):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for template in pod_templates(name).values():
        for container in template["spec"]["containers"]:
            image, _, tag = container["image"].partition(":")
            assert tag == version
            assert f"-t {image}:{tag}" in (ROOT / "k8s" / IMAGES[image]).read_text()


@pytest.mark.parametrize("dockerfile", IMAGES.values())
def test_dockerfiles_name_what_exists(dockerfile):
    import ray

    text = (ROOT / "k8s" / dockerfile).read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.M):
        for path in line.split()[:-1]:
            assert (ROOT / path).exists(), path
    assert re.search(r"^ARG PYTHON_IMAGE=python:\S+$\nFROM \$\{PYTHON_IMAGE\}$", text, re.M)  # a digest can be given
    constraints = "constraints-gpu.txt" if dockerfile == "Dockerfile.gpu" else "constraints.txt"
    assert f" {constraints} " in re.search(r"^COPY (.*)$", text, re.M)[1]
    assert f"--constraint {constraints} " in re.search(r"^RUN pip install (.*)$", text, re.M)[1]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.search(r"^ARG EXTRAS=([\w,]+)$", text, re.M)[1].split(",")) <= extras.keys()
    assert f"=={ray.__version__}" in text
    assert re.search(r"^USER 1000$", text, re.M)
    assert "cuda" not in text.lower().replace("no cuda", "") or dockerfile == "Dockerfile.gpu"


def test_readme_names_what_exists():
    text = (ROOT / "k8s" / "README.md").read_text()
    for path in set(re.findall(r"\bk8s/[\w.-]+\.\w+", text)) | set(re.findall(r"\]\(([\w./-]+)\)", text)):
        assert (ROOT / path).exists() or (ROOT / "k8s" / path).exists(), path
    for module in set(re.findall(r"python -m (jobs\.\w+)", text)):
        assert importlib.util.find_spec(module) is not None, module
