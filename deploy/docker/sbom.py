"""Writes the image's bill of materials (`sbom.spdx.json`, SPDX 2.3) and the licences of the crates in its programs.

Runs inside the image: it lists the Debian packages that dpkg knows, the Python packages of this environment, and the
crates that launcher and router are linked from (`cargo metadata`). Licences of Debian's packages lie in
/usr/share/doc, those of Python packages in their `.dist-info`.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

PROGRAMS = {"gridwork-launcher", "gridwork-router"}
NO_ASSERTION = "NOASSERTION"


@dataclass(frozen=True)
class Package:
    kind: str
    """The type of its package URL: deb, pypi or cargo."""
    name: str
    version: str
    licence: str = NO_ASSERTION
    """An SPDX expression."""

    @property
    def identifier(self) -> str:
        """Its name inside the document."""
        return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", f"{self.kind}-{self.name}-{self.version}")

    def as_spdx(self) -> dict[str, Any]:
        """The package as the document has it."""
        vendor = "debian/" if self.kind == "deb" else ""
        return {
            "SPDXID": self.identifier,
            "name": self.name,
            "versionInfo": self.version,
            "downloadLocation": NO_ASSERTION,
            "filesAnalyzed": False,
            "licenseConcluded": NO_ASSERTION,
            "licenseDeclared": self.licence,
            "copyrightText": NO_ASSERTION,
            "externalRefs": [
                {
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": f"pkg:{self.kind}/{vendor}{quote(self.name)}@{quote(self.version)}",
                }
            ],
        }


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crates", type=Path, required=True, help="output of `cargo metadata`")
    parser.add_argument("--licences", type=Path, required=True, help="archive of licence files, by folders of crates")
    parser.add_argument("--licence", type=Path, required=True, help="licence of Gridwork itself")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    crates = sorted(linked_crates(json.loads(args.crates.read_text())), key=lambda crate: crate.identifier)
    packages = [*debian_packages(), *python_packages(), *crates]
    args.out.mkdir(parents=True)
    (args.out / "sbom.spdx.json").write_text(json.dumps(document(packages), indent=1) + "\n")
    shutil.copyfile(args.licence, args.out / "LICENSE")
    without = copy_licences(args.licences, crates, args.out / "crates")
    print(f"{len(packages)} packages, {len(crates)} of them crates; without a licence file: {', '.join(without)}")
    return 0


def debian_packages() -> Iterator[Package]:
    """Packages that dpkg has installed. Their licences are prose, in /usr/share/doc."""
    command = ["dpkg-query", "--show", "--showformat=${Package}\t${Version}\n"]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        name, version = line.split("\t")
        yield Package("deb", name, version)


def python_packages() -> list[Package]:
    """Packages of the environment that this runs in."""
    found = []
    for each in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower()
        licence = str(each.metadata.json.get("license_expression", NO_ASSERTION))
        found.append(Package("pypi", name, each.version, licence))
    return sorted(set(found), key=lambda package: package.identifier)


def linked_crates(described: dict[str, Any]) -> Iterator[Package]:
    """Crates from the registry that the programs contain; not those that only built or tested them."""
    packages = {each["id"]: each for each in described["packages"]}
    needs = {
        node["id"]: [each["pkg"] for each in node["deps"] if any(kind["kind"] is None for kind in each["dep_kinds"])]
        for node in described["resolve"]["nodes"]
    }
    found: set[str] = set()
    pending = [each["id"] for each in described["packages"] if each["name"] in PROGRAMS]
    while pending:
        if (crate := pending.pop()) not in found:
            found.add(crate)
            pending += needs[crate]
    for each in (packages[crate] for crate in found):
        if each["source"] is not None:
            licence = (each["license"] or NO_ASSERTION).replace(" / ", " OR ").replace("/", " OR ")
            yield Package("cargo", each["name"], each["version"], licence)


def document(packages: Iterable[Package]) -> dict[str, Any]:
    """The document that describes an image with these packages."""
    packages = list(packages)
    image = {
        "SPDXID": "SPDXRef-image",
        "name": "gridwork",
        "downloadLocation": NO_ASSERTION,
        "filesAnalyzed": False,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": "Apache-2.0",
        "copyrightText": NO_ASSERTION,
        "primaryPackagePurpose": "CONTAINER",
    }
    references = sorted({name for each in packages for name in re.findall(r"LicenseRef-[A-Za-z0-9.-]+", each.licence)})
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "gridwork",
        "documentNamespace": f"urn:uuid:{uuid.uuid4()}",
        "creationInfo": {
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: gridwork-sbom"],
        },
        "packages": [image, *(each.as_spdx() for each in packages)],
        "relationships": [
            relationship("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
            *(relationship("SPDXRef-image", "CONTAINS", each.identifier) for each in packages),
        ],
        "hasExtractedLicensingInfos": [
            {"licenseId": name, "extractedText": "See the licence files of the packages that name it."}
            for name in references
        ],
    }


def relationship(of: str, kind: str, to: str) -> dict[str, str]:
    """One edge of the document."""
    return {"spdxElementId": of, "relationshipType": kind, "relatedSpdxElement": to}


def copy_licences(archive: Path, crates: list[Package], out: Path) -> list[str]:
    """Unpacks the licence files of these crates; returns the names of crates without any."""
    wanted = {f"{crate.name}-{crate.version}" for crate in crates}
    found = set()
    with tarfile.open(archive) as files:
        for file in files:
            folder = Path(file.name).parts[-2]
            if folder in wanted and file.isreg() and (content := files.extractfile(file)) is not None:
                found.add(folder)
                (out / folder).mkdir(parents=True, exist_ok=True)
                (out / folder / Path(file.name).name).write_bytes(content.read())
    return sorted(wanted - found)


if __name__ == "__main__":
    sys.exit(main())
