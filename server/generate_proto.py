"""Generates the Python side of the contract, from `proto/` into `gridwork_server/_proto`."""

import sys
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "proto" / "gridwork" / "shard" / "v1"
OUTPUT = HERE / "gridwork_server" / "_proto"


def main() -> int:
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "__init__.py").write_text('"""Generated from the contract; not for editing."""\n')
    arguments = [
        *("protoc", f"--proto_path={SOURCE}", f"--python_out={OUTPUT}", f"--pyi_out={OUTPUT}"),
        *(f"--grpc_python_out={OUTPUT}", "shard.proto"),
    ]
    if protoc.main(arguments) != 0:
        return 1
    # The generated module imports its sibling by a bare name.
    stub = OUTPUT / "shard_pb2_grpc.py"
    text = stub.read_text()
    stub.write_text(text.replace("import shard_pb2 as", "from gridwork_server._proto import shard_pb2 as"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
