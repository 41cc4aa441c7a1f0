# Two commands need nothing but Python 3.11 and the network: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BENCH_ARGS ?=
PART ?=
# Test processes: a file of tests runs in one of them, so that its fixtures are made once.
JOBS ?= auto
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt
DATA := data/shapes
TEST := data/shapes_test
RUNS := work_dirs
DEMO := $(RUNS)/demo
# The demo's epochs follow from it and from what a step takes here.
BUDGET ?= 10m

.PHONY: help env demo test test-fast reliability lint docs golden bench gpu clean
.DELETE_ON_ERROR:

help:
	@echo "make env          the environment alone, in $(VENV); the other targets make it where they need it"
	@echo "make demo         from nothing to a distilled, exported and measured detector, in about ten minutes of training; BUDGET=1h for more"
	@echo "make test         the whole test suite"
	@echo "make test-fast    the part of it that takes about five minutes"
	@echo "make reliability  the long tests: kills, old versions, other Pythons, an emulated processor, all commands (two hours)"
	@echo "make lint         ruff and mypy"
	@echo "make docs         the documentation as a site in docs/_build/html; warnings are errors"
	@echo "make golden       the distilled step against the published code's values"
	@echo "make bench        what a distilled step costs against what it must cost (some minutes on a quiet machine)"
	@echo "make gpu          tests and benchmarks that need a GPU, by PYTHON as it is; PART=NAME runs one part"
	@echo "make clean        removes generated data and all runs"

env: $(VENV)/.ready

# mmcv-full first: built before torch is there it leaves its compiled operators out (cskd-train brings its own) and needs
# no compiler; with opencv-python-headless there already it asks for no other OpenCV. Its setup.py needs setuptools < 81.
$(VENV)/.ready: requirements/constraints.txt requirements/dev.txt $(wildcard packages/*/pyproject.toml)
	@echo "installing into $(VENV) (about two minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "setuptools<81" wheel numpy opencv-python-headless
	@$(PIP) --use-pep517 --no-build-isolation mmcv-full
	@$(PIP) $(PIP_ARGS) -r requirements/dev.txt -e packages/cskd-core -e packages/cskd-data -e packages/cskd-train -e "packages/cskd-deploy[ort,export]"
	@touch $@

demo: env
	@$(BIN)/cskd-train data shapes $(DATA) --size 128 128
	@$(BIN)/cskd-train data shapes $(TEST) --size 128 128 --images 1 --val-images 160 --seed 1
	@[ -d $(DEMO) ] || $(BIN)/cskd-train new $(DEMO) --data $(DATA)/annotations/train.json \
		--data $(DATA)/annotations/val.json --data $(TEST)/annotations/val.json --width 0.5 --size 128
	@$(BIN)/cskd-train distill $(DEMO) --budget $(BUDGET)

test: env
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-fast: env
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not reliability" $(PYTEST_ARGS)

reliability: env
	$(BIN)/python -m pytest -m reliability tests $(PYTEST_ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: env
	$(BIN)/python benchmarks/step.py --kinds $(BENCH_ARGS)

# No environment is made: a GPU machine brings its own torch.
gpu:
	$(PYTHON) benchmarks/gpu.py $(if $(PART),--parts $(PART))

golden: env
	$(BIN)/python tests/golden/check.py tests/golden/golden.json

clean:
	rm -rf $(DATA) $(TEST) $(RUNS) docs/_build
