# Two commands need nothing but Python 3.10-3.12 and the network: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt
DATA := data/shapes
RUNS := work_dirs

TEACHER := $(RUNS)/retinanet_r50_shapes
ALONE := $(RUNS)/retinanet_r18_shapes
DISTILLED := $(RUNS)/cskd_retina_r50_distill_r18_shapes
MODEL := $(DISTILLED)/student.onnx

.PHONY: help env demo test lint golden clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   from nothing to a distilled, exported and measured detector (about a quarter of an hour on two cores)"
	@echo "make test   the whole test suite"
	@echo "make lint   ruff and mypy"
	@echo "make golden the distilled step against the published code's values"

env: $(VENV)/.ready

# mmcv-full first: installed before torch it leaves its compiled operators out (cskd-train brings its own) and needs no
# compiler; with opencv-python-headless there already, it asks for no other OpenCV.
$(VENV)/.ready: requirements/constraints.txt requirements/dev.txt $(wildcard packages/*/pyproject.toml)
	@echo "installing into $(VENV) (about two minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "setuptools<81" wheel numpy opencv-python-headless
	@$(PIP) --use-pep517 --no-build-isolation mmcv-full
	@$(PIP) -r requirements/dev.txt -e packages/cskd-core -e packages/cskd-train -e "packages/cskd-deploy[ort,export]"
	@touch $@

test: env
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: env
	$(BIN)/python tests/golden/check.py tests/golden/golden.json

clean:
	rm -rf $(DATA) $(RUNS)
