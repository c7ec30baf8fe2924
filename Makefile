# make install     what a user needs, into .venv; `rm -r .venv` starts afresh
# make demo        the whole job on the bundled generator and 200 real photos
# make test        the tests; also: check, slow, notebooks, docs, docs-test
# make wheel       a wheel, the same bytes from the same commit; also: wheel-test
# make audit       known flaws of the code and of what it needs; also: sbom, licenses, lock
#
# Another build of torch (CUDA, ROCm): make install TORCH="torch==2.13.0 --index-url ..." as its site says.

TORCH ?= torch==2.13.0
PYTHON ?= $(shell for name in python3.11 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: install demo test check slow notebooks docs docs-test wheel wheel-test audit sbom licenses lock

install: .venv/installed

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "latentseg needs Python 3.11 or newer: make install PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) -e ".[app]"
	touch $@

# .venv/with-dev, .venv/with-docs, ...: the same with an extra of pyproject.toml.
.venv/with-%: .venv/installed
	$(PIP) -e ".[app,$*]"
	touch $@

demo: install
	$(BIN)/latentseg run pets64 runs/demo --preset quick --eval tests/data/pets
	@echo "The report: runs/demo/report.html"

test: .venv/with-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: .venv/with-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

slow: .venv/with-dev
	$(BIN)/python -m pytest -m slow

notebooks: .venv/with-dev
	$(BIN)/python -m pytest -m slow tests/test_notebooks.py

# The site shows pages of the whole repository; in build/pages their links lead where they do there.
docs: .venv/with-docs
	rm -rf build/pages && mkdir -p build/pages/tests/data/pets
	cp -r README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md LICENSE docs examples build/pages
	cp tests/data/pets/NOTICE.md build/pages/tests/data/pets
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-test: .venv/with-dev
	$(BIN)/python -m pytest -m slow tests/test_shown_commands.py

wheel: .venv/with-dev
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --wheel

wheel-test: wheel
	.ci/wheel-test

audit: .venv/with-audit
	.ci/audit

sbom: .venv/with-audit
	@mkdir -p build
	$(BIN)/uv export --frozen --no-config --quiet --preview-features sbom-export \
		--format cyclonedx1.5 --extra app --extra export --extra networks --extra diffusion --extra metrics \
		-o build/sbom.json

licenses: .venv/with-audit .venv/with-export
	@mkdir -p build
	$(BIN)/python .ci/licenses.py > build/licenses.md && mv build/licenses.md docs/licenses.md

# Without this machine's settings, so that the lock names public addresses only.
lock: .venv/with-audit
	$(BIN)/uv lock --no-config --default-index https://pypi.org/simple --upgrade-package $(TORCH)
