# make install, demo, test, check, slow. Everything lives in .venv; `rm -r .venv` starts afresh.
# Another build of torch (CUDA, ROCm): make install TORCH="torch==2.13.0 --index-url ..." as its site says.

TORCH ?= torch==2.13.0
PYTHON ?= $(shell for name in python3.11 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin

.PHONY: install demo test check slow

install: .venv/installed

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "latentseg needs Python 3.11 or newer: make install PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: install
	$(BIN)/latentseg run pets64 runs/demo --preset quick --eval tests/data/pets
	@echo "The report: runs/demo/report.html"

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: install
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

slow: install
	$(BIN)/python -m pytest -m slow
