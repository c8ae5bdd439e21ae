# Two commands do everything: `make run` and `make test`. `make help` lists the rest.
PYTHON_HERE := .finetuning/bin/python
BOOTSTRAP := $(or $(shell command -v $${PYTHON:-python3} 2>/dev/null),python3)
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
export JUPYTER_PREFER_ENV_PATH := 1
# Threads that wait for each other sleep instead of spinning: as quick alone, several times as quick beside other work.
export GOMP_SPINCOUNT ?= 2000

NEWER ?= unsloth unsloth_zoo transformers trl peft datasets bitsandbytes

.DEFAULT_GOAL := help
.PHONY: help setup run distributed solutions serve gguf llama-server judge page book test test-long benchmark lab lint lock drift clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## make .finetuning, install the lock, build the rehearsal checkpoints (again: under 3 s)
	@"$(BOOTSTRAP)" tools/bootstrap.py

run: setup ## run every notebook headless; NOTEBOOK=01, "01 02" or a path; PROFILE=full for the real models
	@$(PYTHON_HERE) tools/run_notebooks.py "$$NOTEBOOK"

distributed: setup ## run one notebook as NPROC processes (default 2), a GPU or a share of the processor each; NOTEBOOK=01 NPROC=2
	@$(PYTHON_HERE) tools/distributed.py "$$NOTEBOOK" "$${NPROC:-2}"

serve: setup ## serve what a notebook saved, OpenAI's API on this machine: FOLDER=outputs/02_…; OPTIONS="--port 8001"
	@$(PYTHON_HERE) tools/serve.py "$$FOLDER" $(OPTIONS)

gguf: setup ## write what a notebook saved as GGUF for llama.cpp and Ollama: FOLDER=outputs/02_…; OPTIONS="--adapter"
	@$(PYTHON_HERE) tools/to_gguf.py "$$FOLDER" $(OPTIONS)

llama-server: setup ## build llama.cpp's server in outputs/llama-server, for what `make gguf` writes (minutes; needs cmake)
	@$(PYTHON_HERE) tools/to_gguf.py --build-server

judge: setup ## have lm-eval and evalscope ask what a notebook saved, tuned and base, and load it (minutes): FOLDER=outputs/02_…
	@$(PYTHON_HERE) tools/judge.py "$$FOLDER" $(OPTIONS)

solutions: setup ## run the solutions of all exercises headless (minutes each); one alone: make run NOTEBOOK=its path
	@$(PYTHON_HERE) tools/run_notebooks.py NoteBooks/solutions/*.ipynb

page: setup ## print each notebook's open page in figures: lines, first reply, first loss
	@$(PYTHON_HERE) tools/page.py

book: ## the notebooks as a book in outputs/book: HTML that opens from the disk and, where there is Chromium, one PDF
	@"$(BOOTSTRAP)" tools/book.py

test: setup ## all tests, with a short rehearsal of every notebook
	@$(PYTHON_HERE) -m pytest tests

test-long: setup ## what takes longer: whole rehearsals, killed set-ups and training, the full profile
	@REHEARSALS=whole $(PYTHON_HERE) -m pytest tests -m "long or whole"

benchmark: setup ## measure speed, memory, learning rates and the full profile on this machine's GPU (hours)
	@$(PYTHON_HERE) benchmarks/on_gpu.py

lab: setup ## JupyterLab in this environment; OPTIONS="--port 9999 --no-browser" go to it
	@$(PYTHON_HERE) -m jupyterlab --notebook-dir=. --LabApp.default_url=/lab/tree/NoteBooks $(AS_ROOT) $(OPTIONS)

lint: setup ## what the static tests check with ruff
	@$(PYTHON_HERE) -m ruff check . && $(PYTHON_HERE) -m ruff format --check .

lock: setup ## renew requirements.lock.txt from requirements.txt
	@$(PYTHON_HERE) tools/lock.py

drift: setup ## which claims about libraries a newer release would break; NEWER="trl peft" names packages, NEWER= tries the lock, offline
	@$(PYTHON_HERE) tools/drift.py $(if $(strip $(NEWER)),--newer $(NEWER))

clean: ## remove the environment and what the tools made in outputs/; says what stays
	@rm -rf .finetuning outputs/rehearsal outputs/executed outputs/stand-in-hub outputs/book outputs/*-env outputs/drift-env.txt outputs/drift-env.overrides.txt outputs/judge outputs/llama.cpp outputs/llama-server outputs/.setup.lock .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Removed the environment, the rehearsal checkpoints and the executed copies."
	@du -sh outputs/*/ 2>/dev/null | sed "1i Your runs stay (adapters, merged copies, run cards); remove one with rm -r and its folder:" || true
	@echo "Downloads stay in the caches, usually ~/.cache/uv, ~/.cache/pip, ~/.cache/huggingface; rm -r removes these too."
