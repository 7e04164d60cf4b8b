# Two commands do everything:  make demo   make test
# They need python3 (3.11 or later), make and PyPI; everything lands in .venv and .tools here.
PYTHON ?= python3
TOOLS := .tools
UV := $(TOOLS)/bin/uv
RUN := .venv/bin
export UV_PYTHON_DOWNLOADS := never
export OPENBLAS_NUM_THREADS := 1

.PHONY: demo test test-thorough test-pages test-slow setup lint docs notebook benchmark clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   train on real stars, infer held-out ones, write demo/report.html (five CPU minutes)"
	@echo "make test   run the tests (six minutes on 2 cores)"
	@echo "make test-thorough   those that take seconds each: laws over many stars, a browser (three minutes)"
	@echo "make test-pages   run every command and all code of the pages and the notebook (three minutes)"
	@echo "make test-slow   those marked slow: long chains, kills, a second model"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation site, docs/_build/html/index.html"
	@echo "make notebook   run docs/first_hour.ipynb and keep what it shows (three CPU minutes)"

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "xpbayes needs Python 3.11 or later; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'

setup: $(UV)
	@$(UV) sync --quiet --frozen --python $(TOOLS)/bin/python

demo: setup
	$(RUN)/xpbayes demo --out demo
	@echo "open demo/report.html"

# Where a container forbids bytecode, every process of a test would compile all its libraries anew.
test test-thorough test-pages test-slow: export PYTHONDONTWRITEBYTECODE :=
test: setup
	$(RUN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(if $(MARK),-m "$(MARK)")

test-thorough: setup
	$(RUN)/python -m pytest --numprocesses 2 --dist loadfile -m thorough

test-pages: setup
	$(RUN)/python -m pytest --numprocesses 2 --dist worksteal -m pages

test-slow: setup
	$(RUN)/python -m pytest --numprocesses 2 --dist loadfile -m slow

lint: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

docs: $(UV)
	@$(UV) sync --quiet --frozen --group docs --python $(TOOLS)/bin/python
	$(RUN)/python -m sphinx -W --keep-going --quiet -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

notebook: $(UV)
	@$(UV) sync --quiet --frozen --group docs --python $(TOOLS)/bin/python
	$(RUN)/python scripts/run_notebook.py

benchmark: setup
	$(RUN)/python benchmarks/first_light.py

clean:
	rm -rf .venv .tools build dist demo docs/_build *.egg-info
