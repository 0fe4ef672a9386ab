"""The Helm chart: rendered by Helm's own library, and checked against Kubernetes' schemas. No cluster is needed."""

from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

CHART = Path(__file__).resolve().parents[1] / "helm" / "gridwork"
NEWEST, OLDEST = "1.37", "1.27"
WITHOUT_SCHEMA = {"PodMonitor", "ScaledObject"}
"""Kinds of operators, which Kubernetes itself does not know."""

VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gpus": {"gpus": 2, "sharedMemory": "16Gi", "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]},
    "replicas": {"replicas": 3, "modelVolume": {"existingClaim": "models"}, "networkPolicy": {"enabled": True}},
    "keys": {"apiKeys": {"secret": "clients"}, "hubToken": {"secret": "hub"}, "args": ["--max-batch-size", "64"]},
    "tls": {"tls": {"secret": "certificate"}, "apiKeys": {"secret": "clients"}, "metricsPort": 9100},
    "everything": {
        "replicas": 2,
        "modelVolume": {"create": True, "storageClass": "fast"},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "autoscaling": {"enabled": True},
        "networkPolicy": {
            "enabled": True,
            "allowDownloads": False,
            "from": [{"podSelector": {"matchLabels": {"role": "gateway"}}}],
        },
        "env": [{"name": "LOG_LEVEL", "value": "debug"}],
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"disk": "fast"},
        "podAnnotations": {"team": "a"},
    },
}


def render(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Manifests by kind, as `helm template` would print them."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name="chat", namespace="models")
    documents = [each for name, text in files.items() if name.endswith(".yaml") for each in yaml.safe_load_all(text)]
    return {each["kind"]: each for each in documents if each}


def server(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod's specification and its container."""
    pod = render(values)["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    return pod, container


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", VALUES)
def test_manifests_have_the_form_that_kubernetes_wants(name: str, version: str) -> None:
    for kind, manifest in render(VALUES[name]).items():
        assert manifest["metadata"]["name"].startswith("chat-gridwork")
        if kind not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_helm_finds_nothing_to_complain_about(name: str) -> None:
    found = helm_python.lint(CHART, VALUES[name], strict=True)
    messages = [each for each in found["messages"] if "icon" not in str(each).lower()]
    assert messages == []


def test_a_wrong_field_is_noticed() -> None:
    manifest = render({})["Deployment"]
    manifest["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, NEWEST, strict=True)


def test_only_what_is_asked_for_is_there() -> None:
    assert set(render({})) == {"Deployment", "Service"}
    assert set(render(VALUES["everything"])) == {
        *("Deployment", "Service", "PersistentVolumeClaim", "PodMonitor", "ScaledObject"),
        *("PodDisruptionBudget", "NetworkPolicy"),
    }


def test_the_grace_period_covers_the_drain() -> None:
    pod, container = server({"drainSeconds": 300})
    args = container["args"]
    assert args[args.index("--graceful-termination-timeout") + 1] == "300"
    assert pod["terminationGracePeriodSeconds"] > 300 + int(container["lifecycle"]["preStop"]["exec"]["command"][1])


def test_probes_let_a_start_take_its_time_and_keep_requests_over_a_restart_of_a_shard() -> None:
    _, container = server({"startSeconds": 1000})
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 1000
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == startup["httpGet"]["path"] == "/health"


def test_the_server_has_no_rights_that_it_does_not_need() -> None:
    pod, container = server({})
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    written = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert written == {"/data", "/dev/shm", "/tmp"}


def test_gpus_are_asked_for_and_used() -> None:
    pod, container = server(VALUES["gpus"])
    assert container["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 2}
    assert container["args"][container["args"].index("--num-shard") + 1] == "2"
    [shared] = [each["emptyDir"] for each in pod["volumes"] if each["name"] == "shared-memory"]
    assert shared == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert "nvidia.com/gpu" not in server({})[1]["resources"]["limits"]


def test_keys_come_from_secrets_alone() -> None:
    pod, container = server(VALUES["keys"])
    assert secret_of(pod, container, "--api-key-file") == ("clients", "api-keys")
    sources = {each["name"]: each.get("valueFrom", {}).get("secretKeyRef") for each in container["env"]}
    assert sources["HF_TOKEN"] == {"name": "hub", "key": "token"}
    assert "API_KEY" not in sources


def test_tls_comes_from_a_secret_and_is_spoken_by_probes() -> None:
    pod, container = server(VALUES["tls"])
    assert secret_of(pod, container, "--tls-cert") == ("certificate", "tls.crt")
    assert secret_of(pod, container, "--tls-key") == ("certificate", "tls.key")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert "--tls-cert" not in server({})[1]["args"]
    assert server({})[1]["readinessProbe"]["httpGet"]["scheme"] == "HTTP"


def secret_of(pod: dict[str, Any], container: dict[str, Any], flag: str) -> tuple[str, str]:
    """The secret whose file a flag names, and the file's name. Only the server's group may read it."""
    path = Path(container["args"][container["args"].index(flag) + 1])
    [mount] = [each for each in container["volumeMounts"] if each["mountPath"] == str(path.parent)]
    [volume] = [each for each in pod["volumes"] if each["name"] == mount["name"]]
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    return volume["secret"]["secretName"], path.name


def test_metrics_have_a_port_without_keys() -> None:
    manifests = render(VALUES["everything"])
    [container] = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert variables["GRIDWORK_PROMETHEUS_PORT"] == str(ports["metrics"])
    [endpoint] = manifests["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    allowed = [port["port"] for rule in manifests["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]]
    assert sorted(allowed) == ["http", "metrics"]


def test_replicas_are_left_to_the_autoscaler() -> None:
    scaled = render(VALUES["everything"])
    assert "replicas" not in scaled["Deployment"]["spec"]
    assert scaled["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == scaled["Deployment"]["metadata"]["name"]
    assert render(VALUES["replicas"])["Deployment"]["spec"]["replicas"] == 3


def test_the_service_finds_all_replicas() -> None:
    manifests = render(VALUES["replicas"])
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Service"]["spec"]["selector"].items() <= labels.items()
    names = {port["name"] for port in server({})[1]["ports"]}
    assert {port["targetPort"] for port in manifests["Service"]["spec"]["ports"]} <= names


def test_the_scaled_metric_exists() -> None:
    query = render(VALUES["everything"])["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]
    metrics = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    name = query.split("(")[1].split("{")[0]
    assert f"`{name}`" in metrics
