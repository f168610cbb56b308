# Each target sets the environment up first; a second time that takes no time.
PYTHON ?= python3
SETUP = $(PYTHON) scripts/setup.py --extras
export NO_MKDOCS_2_WARNING = 1
.PHONY: demo test lint docs

demo: # train on handwritten digits, sample and score them: see runs/digits/report.html
	$(SETUP) cli
	.venv/bin/flowmatch train sklearn:digits --condition target --out runs/digits --overwrite
	.venv/bin/flowmatch sample runs/digits -n 100 --out runs/digits/samples.csv
	.venv/bin/flowmatch evaluate runs/digits

test: # everything that has to pass before a change lands
	$(SETUP) dev,docs
	.venv/bin/python scripts/gate.py

lint: # the checks that take seconds
	$(SETUP) dev,docs
	.venv/bin/python scripts/gate.py lint types imports

docs: # the site, in site/index.html
	$(SETUP) docs
	.venv/bin/mkdocs build --strict
