# What a newcomer types. Each target makes .venv first where it is missing or older than the pins.
# Override on the command line: PYTHON=python3.12, PYTEST_FLAGS="-x tests/ps", PIP_FLAGS="--index-url ...".

PYTHON       ?= python3
PIP_FLAGS    ?=
PYTEST_FLAGS ?= -n 2 --dist loadgroup --no-loadscope-reorder --durations=10
FAULTS       ?= 200
CHAOS_FLAGS  ?=
BIN          := .venv/bin
BENCHMARKS   := $(sort $(wildcard benchmarks/*.py))

.PHONY: demo test test-slow chaos check format bench proto clean

demo: .venv/.installed  ## train DeepFM on a generated click log through two Ray shards
	$(BIN)/weir train configs/demo.yaml

test: .venv/.installed
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-slow: .venv/.installed  ## what the default run leaves out, too
	$(BIN)/python -m pytest -m "slow or not slow" $(PYTEST_FLAGS)

chaos: .venv/.installed  ## faults against a cluster: make chaos FAULTS=400 CHAOS_FLAGS="--mode replicated --json"
	$(BIN)/python -m tests.chaos.runner --faults $(FAULTS) $(CHAOS_FLAGS)

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.bench  ## every claim, at most three minutes each
	set -e; for script in $(BENCHMARKS); do echo "$$script"; $(BIN)/python "$$script" --quick; done

proto: .venv/.installed
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=ps/wire --pyi_out=ps/wire proto/*.proto

clean:  ## caches and builds; .venv stays
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find ps workers tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# -e: sources stay here. constraints.txt pins everything; where torch comes from is pip's own configuration.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

.venv/.bench: .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt -e '.[bench]'
	touch $@
