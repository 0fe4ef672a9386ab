"""deploy/compose.yaml and the files that it mounts. Nothing is started: the images are other projects'."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[1]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def mounted(service: str) -> dict[str, Path]:
    """Paths in a container, with the files of this folder that lie there."""
    found = {}
    for volume in SERVICES[service]["volumes"]:
        source, target = volume.split(":")[:2]
        if source.startswith("."):
            found[target] = DEPLOY / source
    return found


def settings(service: str, path: str) -> dict[str, Any]:
    """A mounted file of YAML."""
    return yaml.safe_load(mounted(service)[path].read_text())


def named_port(address: str) -> tuple[str, int]:
    """The service and the port of an address such as http://tempo:3200."""
    host, port = address.rpartition("//")[2].split(":")
    return host, int(port)


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_mounted_is_there(service: str) -> None:
    for path in mounted(service).values():
        assert path.exists(), path


@pytest.mark.parametrize("service", sorted(set(SERVICES) - {"server"}))
def test_images_of_others_have_a_version(service: str) -> None:
    assert re.fullmatch(r"[a-z./-]+:v?\d+\.\d+\.\d+", SERVICES[service]["image"])


def test_everything_is_asked_where_it_listens() -> None:
    tempo = settings("tempo", "/etc/tempo.yaml")
    collector = settings("collector", "/etc/otelcol-contrib/config.yaml")
    grafana = settings("grafana", "/etc/grafana/provisioning/datasources/gridwork.yaml")["datasources"]
    prometheus = settings("prometheus", "/etc/prometheus/prometheus.yaml")
    listening = {
        ("server", 80),
        ("prometheus", 9090),
        ("tempo", tempo["server"]["http_listen_port"]),
        ("tempo", int(tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].split(":")[1])),
        ("collector", int(collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].split(":")[1])),
    }
    asked = [each["url"] for each in grafana]
    asked += [collector["exporters"]["otlp"]["endpoint"], SERVICES["server"]["command"][-1]]
    asked += prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    for address in asked:
        assert named_port(address) in listening, address


def test_folders_of_rules_and_dashboards_are_the_mounted_ones() -> None:
    rules = settings("prometheus", "/etc/prometheus/prometheus.yaml")["rule_files"]
    assert [Path(rule).parent.as_posix() for rule in rules] == ["/etc/prometheus/rules"]
    assert "/etc/prometheus/rules" in mounted("prometheus")
    provider = settings("grafana", "/etc/grafana/provisioning/dashboards/gridwork.yaml")["providers"][0]
    assert provider["options"]["path"] in mounted("grafana")


def test_the_server_stops_only_after_its_drain() -> None:
    seconds = int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))
    flags = (DEPLOY.parent / "docs" / "flags.md").read_text()
    drain = re.search(r"GRACEFUL_TERMINATION_TIMEOUT` \| `(\d+)`", flags)
    assert drain is not None
    assert seconds > int(drain[1])


def test_compose_understands_the_file() -> None:
    if shutil.which("docker-compose"):
        command = ["docker-compose"]
    elif subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        command = ["docker", "compose"]
    else:
        pytest.skip("neither docker-compose nor docker compose is here")
    done = subprocess.run(
        [*command, "--file", DEPLOY / "compose.yaml", "config"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(SERVICES)
