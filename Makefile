# CONTRIBUTING.md's commands by name; tests/test_project_files.py holds the two equal.
.PHONY: help install format lint types test slow interruptions soak saving precision threads versus scaling rollout templates fuzz ci mutation figures links

help:
	@grep '# make ' CONTRIBUTING.md

install:
	pip install -c constraints.txt -e '.[dev]'

format:
	ruff format .

lint:
	ruff check .

types:
	mypy
	mypy --config-file tests/mypy.ini

test:
	python -m pytest -n 2

slow:
	python -m pytest -m slow

interruptions:
	python tests/interruptions.py benchmarks/results/interruptions.json

soak:
	python tests/soak.py benchmarks/results/soak.json

saving:
	python -m benchmarks.saving benchmarks/results/saving.json --model HuggingFaceTB/SmolLM2-135M --data piqa

precision:
	python -m benchmarks.precision benchmarks/results/precision.json --model HuggingFaceTB/SmolLM2-135M --data piqa

threads:
	python -m benchmarks.threads benchmarks/results/threads.json --model HuggingFaceTB/SmolLM2-135M --data piqa

versus:
	python -m benchmarks.versus_trl benchmarks/results/versus_trl.json --model HuggingFaceTB/SmolLM2-135M --data piqa

scaling:
	python -m benchmarks.scaling benchmarks/results/scaling.json --model HuggingFaceTB/SmolLM2-135M --data piqa
	python -m benchmarks.scaling benchmarks/results/scaling.json --draw

rollout:
	python -m benchmarks.rollout_speed benchmarks/results/rollout_speed.json --model HuggingFaceTB/SmolLM2-135M --data piqa

templates:
	ALIGNMENT_CASES=50000 python -m pytest tests/test_templates.py

fuzz:
	ALIGNMENT_CASES=20000 python -m pytest tests/test_fuzz.py

ci:
	bash .ci/run

mutation:
	pip install -c constraints.txt -e '.[mutation]'
	python -m mutmut run --max-children 2
	python -m benchmarks.mutation benchmarks/results/mutation.json

figures:
	python -m benchmarks.figures

links:
	python -m benchmarks.links --fix
