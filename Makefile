# make demo [QUICK=1] [START=speechssl_tiny]   the whole line on real speech: pre-train, four tasks, report/index.html
# make test             the test suite
# Each target only makes the environment if there is none and calls a documented command.
PYTHON ?= python3
VENV ?= .venv
STAMP = $(VENV)/.installed

.PHONY: demo test lint env clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile | head -3

env: $(STAMP)

$(STAMP): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	# uv installs in a third of pip's time; where it can't (an index that only pip knows), pip does the same.
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
	UV_SYSTEM_CERTS=1 $(VENV)/bin/uv pip install --python $(VENV)/bin/python -c constraints.txt -e ".[dev]" || \
		$(VENV)/bin/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash recipes/demo/run.sh $(if $(QUICK),--quick) $(if $(START),--start=$(START))

test: $(STAMP)
	$(VENV)/bin/python -m pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf exp report
