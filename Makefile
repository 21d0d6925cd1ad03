# Needs make, a POSIX sh and a Python 3.11 to 3.13; everything else is installed into .venv, at the versions in constraints.txt.
# `make demo PYTHON=/path/to/python3.12` chooses the interpreter; `make train ARGS="--frozen_for=2epochs"` passes further flags.

VENV := .venv
RUN := $(VENV)/bin/python
LOGDIR ?= runs
ARGS ?=
QUICK := -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not extra and not browser and not docs"

.DEFAULT_GOAL := help
.PHONY: help demo train tensorboard check test test-slow test-browser test-docs coverage lint docs dist opponents constraints clean FORCE
# Two pips at once in one environment would damage it.
.NOTPARALLEL:

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-base ## install, then train and evaluate on drawn flowers, no data needed (2 to 4 minutes); results in runs/demo
	@rm -rf runs/demo
	$(RUN) -m trainer.main --flagfile=experiments/demo.flags --workdir=runs/demo $(ARGS)

train: $(VENV)/.installed-base ## the canonical experiment: InceptionV3 on tf_flowers (downloads both the first time)
	$(RUN) -m trainer.main --flagfile=experiments/flowers_inception_v3.flags $(ARGS)

tensorboard: $(VENV)/.installed-base ## show the runs under LOGDIR (default: runs) in the browser
	$(RUN) -m tensorboard.main --logdir "$(LOGDIR)"

check: lint test ## what continuous integration runs

test: $(VENV)/.installed-test ## the tests, without the slow ones
	$(RUN) -m pytest $(QUICK) $(ARGS)

test-slow: $(VENV)/.installed-slow ## the tests that take minutes, and those of extras
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or extra" $(ARGS)

test-browser: $(VENV)/.installed-browser ## the page of serve, in headless Chromium, which must be installed
	$(RUN) -m pytest -m browser $(ARGS)

test-docs: $(VENV)/.installed-test ## every command of the pages in docs/, with small pictures
	$(RUN) -m pytest -n 2 -m docs $(ARGS)

# In the processes of the tests themselves: what is killed on purpose has nothing left to tell.
coverage: $(VENV)/.installed-coverage ## `make test`, and which lines of trainer/ it ran
	$(RUN) -m pytest $(QUICK) --cov --cov-report=term:skip-covered $(ARGS)

lint: $(VENV)/.installed-lint ## ruff (rules and format), mypy, codespell
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m mypy --platform darwin trainer
	$(RUN) -m codespell_lib

docs: $(VENV)/.installed-docs ## build the site into site/; fails where docs/reference.md was not current, or a link is dead
	$(RUN) docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "The site: site/index.html"

opponents: $(VENV)/.python ## install the opponents on PyTorch of experiments/benchmarks/ into .venv-opponents
	$(RUN) -m venv $(VENV)-opponents
	$(VENV)-opponents/bin/python -m pip install --quiet --no-input --disable-pip-version-check \
	  -r experiments/benchmarks/opponents.txt

dist: $(VENV)/.installed-release ## build the sdist and, from it, the wheel into dist/, and check them
	rm -rf build dist
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(RUN) -m build
	$(RUN) -m twine check --strict dist/*

# Versions already in constraints.txt are kept while setup.py allows them; UPGRADE=--upgrade takes the newest of everything,
# UPGRADE="--upgrade-package tensorflow" of one. uv (https://docs.astral.sh/uv) is needed for this target only.
constraints: ## resolve setup.py anew into constraints.txt, for Python 3.11 and later (needs uv)
	uv pip compile setup.py --all-extras --universal --python-version 3.11 $(UPGRADE) \
	  --no-emit-index-url --no-emit-find-links --annotation-style line \
	  --custom-compile-command "make constraints" --quiet --output-file constraints.txt

clean: ## remove .venv and the tools' caches; runs/ is kept
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find setup.py trainer tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment --------------------------------------------------------------------------------------------------

CANDIDATES := python3 python3.12 python3.13 python3.11
# ensurepip is asked for because Debian's python3 lacks it until python3-venv is installed. The base executable is what is
# printed: the name may be a shim, or the python of the very .venv that is about to be removed.
USABLE := import sys, ensurepip, venv; (3, 11) <= sys.version_info < (3, 14) or sys.exit(1); print(sys._base_executable)
# Where .venv was when it was made, and with which interpreter: a moved checkout or a changed system Python shows.
BASE := import sys; print(*sys.version_info[:2], sys.base_prefix)
IDENTITY := $(BASE); print(sys.prefix)
STAMPS := $(addprefix $(VENV)/.installed-,base test slow browser coverage lint docs release)

# Runs at every call and leaves the file alone while .venv is sound, so that nothing after it is made again. The file is
# written last: an environment whose making was interrupted does not pass.
$(VENV)/.python: FORCE
	@if test -f $@ && test "$$($(RUN) -c '$(IDENTITY)' 2>/dev/null)" = "$$(cat $@)" && { test -z "$(PYTHON)" || \
	  test "$$("$(PYTHON)" -c '$(BASE)' 2>/dev/null)" = "$$($(RUN) -c '$(BASE)')"; }; then exit 0; fi; \
	base=; for python in $(if $(PYTHON),"$(PYTHON)",$(CANDIDATES)); do \
	  if base=$$("$$python" -c '$(USABLE)' 2>/dev/null); then break; fi; \
	done; \
	if test -z "$$base"; then \
	  echo "make: no Python 3.11, 3.12 or 3.13 with venv and ensurepip: tried $(or $(PYTHON),$(CANDIDATES))." \
	    "Install one (Debian, Ubuntu: python3-venv, too) or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	if test -e $(VENV); then echo "Replacing $(VENV): incomplete, moved, or made with another interpreter"; fi; \
	echo "Making $(VENV) with $$base"; \
	rm -rf $(VENV) && "$$base" -m venv $(VENV) && $(RUN) -c '$(IDENTITY)' >$@

$(VENV)/.installed-base: DONE := $(VENV)/.installed-base
$(VENV)/.installed-test: EXTRAS := [test]
$(VENV)/.installed-test: DONE := $(VENV)/.installed-base $(VENV)/.installed-test
$(VENV)/.installed-slow: EXTRAS := [test,test-slow]
$(VENV)/.installed-slow: DONE := $(VENV)/.installed-base $(VENV)/.installed-test $(VENV)/.installed-slow
$(VENV)/.installed-browser: EXTRAS := [test,browser]
$(VENV)/.installed-browser: DONE := $(VENV)/.installed-base $(VENV)/.installed-test $(VENV)/.installed-browser
$(VENV)/.installed-coverage: EXTRAS := [test,coverage]
$(VENV)/.installed-coverage: DONE := $(VENV)/.installed-base $(VENV)/.installed-test $(VENV)/.installed-coverage
$(VENV)/.installed-lint: EXTRAS := [test,lint]
$(VENV)/.installed-lint: DONE := $(VENV)/.installed-base $(VENV)/.installed-test $(VENV)/.installed-lint

$(VENV)/.installed-docs: EXTRAS := [docs]
$(VENV)/.installed-docs: DONE := $(VENV)/.installed-base $(VENV)/.installed-docs
$(VENV)/.installed-release: EXTRAS := [release]
$(VENV)/.installed-release: DONE := $(VENV)/.installed-base $(VENV)/.installed-release

# pip's -c does not reach the environments in which sdists are built; its variables do (the second since pip 25.3).
$(STAMPS): $(VENV)/.python setup.py pyproject.toml constraints.txt
	@echo "Installing hub-trainer$(EXTRAS) and what it needs into $(VENV) (the first time this takes minutes)"
	@rm -f $(STAMPS)
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	  $(RUN) -m pip install --quiet --no-input --disable-pip-version-check -e ".$(EXTRAS)"
	@touch $(DONE)
