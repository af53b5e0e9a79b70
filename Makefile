## make demo   set up everything and run the main job
## make test   set up and run the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests run in so many processes. They wait now and then, so one more than the two cores that they are meant for.
WORKERS ?= 3

# torch's compiler is never used; left on, it makes every import of megatron-core seconds slower.
export TORCHDYNAMO_DISABLE := 1
# No model hub is ever asked: the models of demo, tests and benchmarks are made in code.
export HF_HUB_OFFLINE := 1

.PHONY: setup demo test crash schedules fuzz lint bench sdk-versions gpu clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^## //p' Makefile
	@echo 'make crash  kill processes at random while tenants train, KILLS=200 times, and compare'
	@echo 'make schedules  ten thousand random crowds of adapters, each compared with itself alone'
	@echo 'make fuzz   a hundred thousand hostile inputs for every reader: some minutes'
	@echo 'make lint   format, lint, types'
	@echo 'make bench  measurements, as tables'
	@echo 'make sdk-versions  try the versions of the tinker SDK that this server is tested with'
	@echo 'make gpu    the tests and measurements that need a CUDA device'

setup: $(STAMP)

$(STAMP): pyproject.toml requirements/cpu.lock requirements/cuda.lock requirements/install.sh
	./requirements/install.sh $(VENV) $(PYTHON)
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

# In the order of tests/conftest.py. xdist's own ends with the files of one test, of which some take minutes.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not gpu" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Processes are killed while tenants train. Others every time, and KILLS=... so many; SEED=... draws them again,
# CHAOS=... (a seed) disturbs messages, too.
crash: setup
	@OMP_NUM_THREADS=1 TINKER_TELEMETRY=0 $(BIN)/python tests/crash/driver.py $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED)) $(if $(CHAOS),--chaos $(CHAOS))

# Others every time. SEED=... plays one of them again and tells it in full; COUNT=... plays so many.
schedules: setup
	@OMP_NUM_THREADS=1 $(BIN)/python tests/trainer_actor/schedules/many.py $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT))

# Others every time. SEED=... says which; KIND=... and CASE=... play one of them again and tell it in full.
fuzz: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz/fuzz.py $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT)) $(if $(KIND),--kind $(KIND)) $(if $(CASE),--case $(CASE))

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python bench/bus.py
	$(BIN)/python bench/journal.py --celery
	$(BIN)/python bench/http_futures.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/load.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/recovery.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/sampler.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/train.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/swap.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/memory.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/sim.py

sdk-versions: setup
	OMP_NUM_THREADS=1 $(BIN)/python bench/sdk_versions.py

gpu: setup
	$(BIN)/pytest -m gpu
	$(BIN)/python examples/demo.py
	$(BIN)/python bench/sampler.py
	$(BIN)/python bench/gpu.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis
