# The server as an image; docs/deployment.md says how it is built and run.
#
#   docker build -t gridwork .                                        CPU, PyTorch as the package index has it
#   docker build -t gridwork --build-arg TORCH_INDEX=URL .            CPU, PyTorch from an index with its CPU-only build
#   docker build -t gridwork:cuda --build-arg VARIANT=cuda .          NVIDIA GPUs
#
# Plain instructions alone, so that it builds with and without BuildKit.

ARG BASE=debian:bookworm-slim
# Debian's own Rust is too old. The image needs the same Debian as BASE, or an older one.
ARG RUST_IMAGE=rust:1-slim-bookworm

# --- Python and what else runs ------------------------------------------------------------------------------------

FROM ${BASE} AS runtime
ARG VARIANT=cpu
# On GPUs, Triton compiles its kernels and their callers when they are first used.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 python3 \
        $(test "$VARIANT" != cuda || echo gcc libc6-dev python3-dev) \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log /var/log/alternatives.log

# --- Python packages ----------------------------------------------------------------------------------------------

FROM runtime AS installer
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
COPY server/requirements-uv.lock /install/
RUN python3 -m venv /install/uv \
    && /install/uv/bin/pip install --quiet --require-hashes --only-binary :all: -r /install/requirements-uv.lock
# Certificates are those of BASE. The modules of installed packages do not change under their compiled form.
ENV PATH=/install/uv/bin:$PATH UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=300 UV_NO_CACHE=1 UV_LINK_MODE=copy UV_SYSTEM_CERTS=1 \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH
RUN uv venv --quiet --python /usr/bin/python3 /opt/gridwork
COPY server/requirements.lock deploy/docker/requirements.py deploy/docker/slim.py /install/

FROM installer AS torch
ARG VARIANT=cpu
# Index with PyTorch's CPU-only build, in the version of the lock.
ARG TORCH_INDEX=""
RUN python3 /install/requirements.py torch ${TORCH_INDEX:+--cpu-only} </install/requirements.lock >/install/torch.txt \
    && uv pip install --python /opt/gridwork --no-deps --compile-bytecode \
        $(if test -n "$TORCH_INDEX"; then echo "--index-url $TORCH_INDEX"; else echo --require-hashes; fi) \
        -r /install/torch.txt \
    && python3 /install/slim.py torch --variant "$VARIANT" --site "$(echo /opt/gridwork/lib/python3*/site-packages)" \
        --headers /install/include

FROM installer AS packages
ARG TORCH_INDEX=""
RUN python3 /install/requirements.py others ${TORCH_INDEX:+--cpu-only} </install/requirements.lock >/install/others.txt \
    && uv pip install --python /opt/gridwork --no-deps --compile-bytecode --require-hashes -r /install/others.txt \
    && python3 /install/slim.py others --site "$(echo /opt/gridwork/lib/python3*/site-packages)"

# --- Launcher and router ------------------------------------------------------------------------------------------

FROM ${RUST_IMAGE} AS programs
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ENV CARGO_HOME=/cargo CARGO_PROFILE_RELEASE_STRIP=symbols
WORKDIR /build
# The dependencies are a layer of their own: manifests with empty crates are enough to compile them.
COPY Cargo.toml Cargo.lock ./
COPY proto/Cargo.toml proto/
COPY model-files/Cargo.toml model-files/
COPY settings/Cargo.toml settings/
COPY router/edge/Cargo.toml router/edge/
COPY router/engine/Cargo.toml router/engine/
COPY router/Cargo.toml router/
COPY launcher/Cargo.toml launcher/
COPY testing/Cargo.toml testing/
COPY benchmarks/router-overhead/Cargo.toml benchmarks/router-overhead/
RUN for crate in proto model-files settings router/edge router/engine router launcher testing benchmarks/router-overhead; do \
        mkdir -p $crate/src/bin && touch $crate/src/lib.rs && echo 'fn main() {}' >$crate/src/main.rs; \
    done \
    && echo 'fn main() {}' | tee settings/src/bin/flags_page.rs launcher/build.rs >proto/build.rs \
    && cargo build --release --locked -p gridwork-launcher -p gridwork-router \
    && cargo metadata --format-version 1 --locked --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" >crates.json \
    && cd /cargo/registry/src/* && tar -cf /build/licences.tar \
        $(find . -mindepth 2 -maxdepth 2 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \))
COPY proto proto
COPY model-files model-files
COPY settings settings
COPY router router
COPY launcher launcher
# The commit, for `gridwork --env`.
ARG GIT_SHA=""
# cargo compares times, and the sources are older than the empty crates.
RUN find . -name target -prune -o -name '*.rs' -exec touch {} + \
    && cargo build --release --locked -p gridwork-launcher -p gridwork-router --bin gridwork --bin gridwork-router \
    && mkdir -p /opt/gridwork/bin && cp target/release/gridwork target/release/gridwork-router /opt/gridwork/bin/

# --- Gridwork's own Python and its kernels ------------------------------------------------------------------------

FROM torch AS kernels
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=packages /opt/gridwork /opt/gridwork
RUN python3 /install/requirements.py build </install/requirements.lock >/install/build.txt \
    && uv pip install --python /opt/gridwork --no-deps --require-hashes -r /install/build.txt \
    && mv /install/include "$(echo /opt/gridwork/lib/python3*/site-packages/torch)/include"
WORKDIR /build
COPY kernels kernels
RUN PYTHONPATH=kernels /opt/gridwork/bin/python kernels/build_cpu.py
COPY proto proto
COPY server server
COPY python python
COPY deploy/docker/own.py deploy/docker/
RUN /opt/gridwork/bin/python server/generate_proto.py \
    && /opt/gridwork/bin/python deploy/docker/own.py --out /own/opt/gridwork

# --- Bill of materials and licences -------------------------------------------------------------------------------

FROM runtime AS bill
COPY --from=torch /opt/gridwork /opt/gridwork
COPY --from=packages /opt/gridwork /opt/gridwork
COPY --from=programs /build/crates.json /build/licences.tar /bill/
COPY LICENSE deploy/docker/sbom.py /bill/
RUN /opt/gridwork/bin/python /bill/sbom.py --crates /bill/crates.json --licences /bill/licences.tar \
        --licence /bill/LICENSE --out /bill/gridwork

# --- The image ----------------------------------------------------------------------------------------------------

FROM runtime
RUN useradd --uid 1000 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin gridwork \
    && install -d -o gridwork -g gridwork /data
# From what changes least to what changes most.
COPY --from=torch /opt/gridwork /opt/gridwork
COPY --from=packages /opt/gridwork /opt/gridwork
COPY --from=bill /bill/gridwork /usr/share/doc/gridwork
COPY --from=kernels /own/opt/gridwork /opt/gridwork
COPY --from=programs /opt/gridwork/bin /opt/gridwork/bin

ENV PATH=/opt/gridwork/bin:$PATH \
    PORT=80 \
    HUGGINGFACE_HUB_CACHE=/data \
    HF_HOME=/data \
    HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=0.1.0
ARG GIT_SHA=""
LABEL org.opencontainers.image.title="Gridwork" \
      org.opencontainers.image.description="Serves any Hugging Face Transformers model at the speed of a hand-tuned engine" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_SHA}"
VOLUME /data
EXPOSE 80
# By number, so that Kubernetes' runAsNonRoot can tell.
USER 1000:1000
# The launcher gets SIGTERM itself, and reaps orphans: no other init is needed.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 CMD ["gridwork", "health"]
ENTRYPOINT ["gridwork"]
