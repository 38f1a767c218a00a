# The commands of daily work; `make` lists them.  CONTRIBUTING.md says when to use which.
PYTHON ?= .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help build test strict lint record check-record bench-quick step docs sanitize versions platforms packaging soak ci

help:            ## list the commands
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build:           ## compile optimc._core in place
	$(PYTHON) setup.py -q build_ext --inplace

test: build      ## run the tests
	$(PYTHON) -m pytest -q -n auto

strict:          ## compile with all warnings as errors
	OPTIMC_STRICT=1 $(PYTHON) setup.py -q build_ext --inplace --force

lint:            ## check style and types
	PYTHON=$(PYTHON) .ci/lint

record: build    ## write every generated file that is stale: stubs, tables, costs, hashes, golden files, speed
	$(PYTHON) tools/record.py

check-record: build    ## name the generated files that are stale
	$(PYTHON) tools/record.py --check

step: build      ## time the step path; compare before and after a change
	$(PYTHON) benchmarks/step.py

bench-quick: build     ## time the main cases beside other libraries, in two minutes
	$(PYTHON) -m benchmarks --quick

docs:            ## build the site in docs/_build/html, with every warning an error, and check it
	.ci/site

sanitize:        ## run the sanitizers and the leak loop
	.ci/sanitize

versions:        ## run the tests with the other versions of Python on this machine
	.ci/versions

platforms:       ## compare the bits of other compilers and machines
	.ci/platforms

packaging:       ## build sdist and wheel, and test them without the tree
	.ci/packaging

soak: build      ## run the long versions of the tests of processes, files and MPI; time the tutorials
	$(PYTHON) -m pytest --soak tests/process/test_processes.py tests/files tests/adapters/test_mpi.py \
	    tests/repo/test_notebooks.py

ci:              ## run everything that a change must pass
	bash .ci/run
