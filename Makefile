# `make demo` and `make test` start from a bare checkout; what is done already is skipped.
PYTHON ?= python3
VENV ?= .venv
# The documentation has an environment of its own, so that nothing else has to be installed for it, nor it for anything else.
DOCS_VENV ?= .venv-docs
# Processes that share the tests; each takes about 2 GB of memory.
WORKERS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP_OPTIONS := --disable-pip-version-check --quiet
PIP := $(BIN)/python -m pip $(PIP_OPTIONS)
# Tests of the viewer need a display: the one at hand, a virtual one, or at least Qt's own without OpenGL.
DISPLAY_RUN := $(if $(DISPLAY)$(WAYLAND_DISPLAY),,$(if $(shell command -v xvfb-run),xvfb-run -a -s "-screen 0 1280x1024x24",env QT_QPA_PLATFORM=offscreen))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint check format docs build clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(VENV)/.weights ## .venv with the pinned dependencies, this checkout and the default weights

demo: $(VENV)/.weights ## pseudo-masks of real images, a trained checkpoint, its recall before and after, in demo/
	$(BIN)/python -m unsam_mm demo --out demo

test: $(VENV)/.weights ## the whole test suite (WORKERS=2 processes, more options in PYTEST_ARGS)
	OMP_NUM_THREADS=1 $(DISPLAY_RUN) $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.project ## ruff and the plugin manifest
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/npe2 validate napari_unsam/napari.yaml

check: lint ## lint, then the tests that take less than five seconds
	@$(MAKE) test PYTEST_ARGS="-m 'not slow' $(PYTEST_ARGS)"

format: $(VENV)/.project ## put the code in ruff's form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(DOCS_VENV)/.dependencies ## the documentation in site/; fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict
	@! grep -rE --include='*.html' '<(script|link|img|iframe)[^>]* (src|href)="?(https?:)?//' site || \
		{ echo 'These pages load something from another host'; exit 1; }
	@echo 'Open site/index.html, or run: python3 -m http.server --directory site (the search needs a server)'

build: $(VENV)/.project ## sdist and wheel in dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

clean: ## remove what builds and tests leave behind; .venv and demo/ stay
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .coverage
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove the environments as well
	rm -rf $(VENV) $(DOCS_VENV)

# Debian's Python may lack ensurepip: then the pip at hand fills the new environment.
$(BIN)/python $(DOCS_VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(@D)/.. || { \
		$(PYTHON) -m venv --clear --without-pip $(@D)/.. && $(PYTHON) -m pip --python $@ install --quiet pip; }

# --no-deps: the file names every package, so no resolver can add a CUDA build of torch or a second OpenCV.
# pip builds onedl-mmcv in isolation, away from torch, and so leaves out the compiled ops that nothing here needs.
$(VENV)/.dependencies: constraints.txt | $(BIN)/python
	@echo 'Installing the pinned dependencies into $(VENV), about two minutes'
	$(PIP) install -c constraints.txt pip
	$(PIP) install --no-deps -r constraints.txt
	@touch $@

$(VENV)/.project: $(VENV)/.dependencies setup.cfg pyproject.toml unsam_mm/_mim_build.py
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.weights: $(VENV)/.project unsam_mm/weights.py
	$(BIN)/python -m unsam_mm weights fetch dinov2_vits14
	@touch $@

$(DOCS_VENV)/.dependencies: constraints-docs.txt | $(DOCS_VENV)/bin/python
	$(DOCS_VENV)/bin/python -m pip $(PIP_OPTIONS) install --no-deps -r constraints-docs.txt
	@touch $@
