# Two commands matter: `make report` and `make test`. Each sets up .venv by itself from pyproject.toml, with the
# versions of constraints.txt. Needed beforehand: make, and python3 >= 3.11 with its venv module.
#
#   PYTHON=python3.12     another interpreter for .venv
#   PROFILE=smoke|default|full    how much `make report` runs (on two cores 4 and 16 minutes; real corpora)
#   DATA=path             a corpus of recordings for `make result` (and for `make report`)
#   TORCH_INDEX=address   package index for the torch wheel only: the CPU one keeps CUDA wheels away (see README)
#   TORCH_FLAGS=...       any other pip options for the torch wheel

PYTHON ?= python3
PROFILE ?= default
DATA ?=
TORCH_INDEX ?=
TORCH_FLAGS ?=
PYTEST_FLAGS ?= -n auto --dist loadfile
LAB_FLAGS ?=

PY := .venv/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.PHONY: help report test test-all check lab result docs picture clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,9s/^# \{0,1\}//p' Makefile
	@echo "targets: report test test-all check lab result docs picture clean"

# --- environment: one stamp per set of packages, renewed when the pins or the dependencies change ---

.venv/stamp-base: $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "kwsbench needs python >= 3.11; '$(PYTHON)' is missing or older. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	$(PIP) setuptools
# torch first and by its exact pin, so that a CPU build that is already chosen is not replaced
	$(PIP) $(if $(TORCH_INDEX),-i "$(TORCH_INDEX)") $(TORCH_FLAGS) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --no-build-isolation -e .
	@touch $@

.venv/stamp-synth: .venv/stamp-base
	$(PIP) --only-binary espeakng-loader --no-build-isolation -e '.[synth]' || { \
	  echo "The embedded corpus needs espeakng-loader, which has no wheel for this platform." >&2; \
	  echo "Everything else works on recordings: make result DATA=path/to/speech_commands" >&2; exit 1; }
	@touch $@

.venv/stamp-%: .venv/stamp-base
	$(PIP) --no-build-isolation -e '.[$*]'
	@touch $@

# --- what people run ---

report: .venv/stamp-synth
	.venv/bin/kwsbench run --profile $(PROFILE) $(if $(DATA),--data "$(DATA)") --out reports
	@echo "open reports/index.html"

result: .venv/stamp-base
	@test -n "$(or $(DATA),$(KWSBENCH_SPEECH))" || { \
	  echo "which recordings? make result DATA=path/to/speech_commands, or set KWSBENCH_SPEECH" >&2; exit 1; }
	.venv/bin/kwsbench result --data "$(or $(DATA),$(KWSBENCH_SPEECH))"

test: .venv/stamp-synth .venv/stamp-test
	$(PY) -m pytest $(PYTEST_FLAGS) -m "not slow"

test-all: .venv/stamp-synth .venv/stamp-test
	$(PY) -m pytest $(PYTEST_FLAGS)

check: .venv/stamp-test .venv/stamp-check
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_floors.py
	@for f in $(NOTEBOOKS); do $(PY) -m nbstripout --verify "$$f" || { \
	  echo "$$f: outputs are not stripped; run: $(PY) -m nbstripout $$f" >&2; exit 1; }; done

# Loopback only, behind a random token (it prints the address to open).
lab: .venv/stamp-synth
	.venv/bin/kwsbench lab $(LAB_FLAGS)

# The API reference from the docstrings. Its pages ask for nothing off-site (no --math: that would load MathJax).
docs: .venv/stamp-docs
# Modules by name: a package with __all__ would hide its own.
	$(PY) -m pdoc --docformat google --no-show-source -o reports/api kwsbench $$($(PY) -c 'import kwsbench, pkgutil; \
	  print(*(m.name for m in pkgutil.walk_packages(kwsbench.__path__, "kwsbench.") if m.name != "kwsbench.cli"))')
	@echo "open reports/api/index.html"

# The README's picture, from a finished report.
picture: .venv/stamp-test
	$(PY) docs/picture.py reports/index.html docs/report.png

clean:
	rm -rf .venv build dist kwsbench.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
