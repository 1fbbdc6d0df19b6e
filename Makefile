# The user's and the developer's commands; each is a script in scripts/ that runs without make, too.
.DEFAULT_GOAL := help
.PHONY: help demo test unit lint molecule versions test-k8s bench docs sandbox clean

VENV := .venv/bin

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: ## a virtual cluster, provisioned through its jump host, and an all-reduce on it (about 4 minutes at first)
	@scripts/demo

test: ## everything that CI runs: linters, unit tests, tests on real sandboxes
	@scripts/test

unit: ## the unit tests only, no Docker needed
	@scripts/bootstrap unit
	@$(VENV)/python -m pytest tests/unit -n auto

lint: ## ruff, mypy --strict, ansible-lint (production profile)
	@scripts/bootstrap unit
	@scripts/lint

molecule: ## a whole fleet, and every role alone, by Molecule, on one sandbox
	@scripts/bootstrap test
	@scripts/molecule

versions: ## inventory and playbooks on every supported ansible-core whose Python is here (minutes; not part of make test)
	@scripts/versions

test-k8s: ## the live suite on the Kubernetes cluster that KUBECONFIG names (LAMBDACTL_TEST_IMAGE: any image with /bin/sh)
	@scripts/test-k8s

docs: ## the reference pages from the code, and docs/ as a site
	@scripts/bootstrap unit
	@scripts/docs

bench: ## measure against the usual tools, and write docs/benchmarks.md (RUNS=5 samples; about 35 minutes)
	@RUNS=$(or $(RUNS),5) scripts/bench

sandbox: ## bring the sandbox up, or repair it
	@scripts/bootstrap demo
	@$(VENV)/lambdactl sandbox up

clean: ## remove the sandbox and what was built here (not the Docker images)
	@if [ -x $(VENV)/lambdactl ]; then $(VENV)/lambdactl sandbox down || true; fi
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .ansible build dist site
