# make demo [QUICK=1] [START=speechssl_tiny]   the whole line on real speech: pre-train, four tasks, report/index.html
# make test             the test suite
# make k2               an environment for the decoder k2, .venv-k2: see docs/k2.md
# Each target only makes the environment if there is none and calls a documented command.
PYTHON ?= python3
VENV ?= .venv
STAMP = $(VENV)/.installed
K2_VENV ?= .venv-k2
K2_PACKAGES = k2==1.23.4 torch==1.13.1 numpy==1.26.4 safetensors==0.4.5 jiwer==4.0.0

.PHONY: demo test lint env k2 clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile | head -4

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

k2: $(K2_VENV)/.installed

# k2's last release wants Python 3.10, which uv finds or fetches. Its wheels for 3.6 to 3.10 all bear the tag
# py3-none-any, and of these uv takes the one for 3.10, where pip takes that for 3.9; the last line sees that it loads.
$(K2_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(K2_VENV)/uv
	$(K2_VENV)/uv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
	PYENV_VERSION="$$(pyenv latest 3.10 2>/dev/null)" UV_SYSTEM_CERTS=1 \
		$(K2_VENV)/uv/bin/uv venv --allow-existing --python 3.10 $(K2_VENV)
	UV_SYSTEM_CERTS=1 $(K2_VENV)/uv/bin/uv pip install --python $(K2_VENV)/bin/python $(K2_PACKAGES)
	$(K2_VENV)/bin/python -c "import k2"
	touch $@

clean:
	rm -rf exp report
