"""The plumbing of the benchmarks, on small sizes: that they run the notebooks' own functions. No time is asserted."""

import json
import os
import re
import subprocess
import sys
import types

import pytest
from conftest import NOTEBOOKS, PROJECT, lift
from notebook_code import parameters_of

sys.path.insert(0, str(PROJECT / "benchmarks"))


def test_the_pdf_benchmark_runs_the_notebook_s_own_functions(tmp_path):
    command = [sys.executable, "benchmarks/pdf_pipeline.py", "--pages", "1000", "--skip-peers", "--output", tmp_path]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode in (0, 1), finished.stderr[-2000:]
    record = json.loads((tmp_path / "pdf_pipeline.json").read_text())
    results = record["results"]
    assert finished.returncode == bool(record["over"]), finished.stderr[-2000:]
    assert results["speed"]["pages"] == 20 and results["speed"]["chunks"] > 5
    assert [size["pages"] for size in results["memory"]] == [20, 200, 1000]
    assert all(len(size["samples"]) == 20 and size["peak_bytes"] > 0 for size in results["memory"])
    assert results["parallel"]["files"] == 8 and results["parallel"]["pages"] == 80
    assert [(again["pages"], again["readings"]) for again in results["again"].values()] == [(10, 1), (10, 0), (10, 1)]
    assert all(row[0] in finished.stdout for row in record["table"])


# What is measured on a GPU: the arithmetic around it, and the committed records


RECORDS = sorted((PROJECT / "benchmarks" / "results").glob("train_step_h200_*.json"))


def test_the_tables_are_those_of_the_committed_records():
    """Every figure of the tables in benchmarks/README.md comes from a record in benchmarks/results/."""
    import learning_rates
    import train_step

    page = (PROJECT / "benchmarks" / "README.md").read_text()
    sweep = json.loads((PROJECT / "benchmarks" / "results" / "learning_rates.json").read_text())
    assert f"{sweep['made']} of the {sweep['planned']} planned runs" in page and sweep["made"] == len(sweep["runs"])
    for name, entries in learning_rates.summarise(sweep["runs"]).items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        shown = [float(cell) for cell in line.split("|")[3:] if cell.strip()]
        assert shown == [round(entry["loss"]["median"], 3) for entry in entries.values() if "loss" in entry], name
    lines = [line for path in RECORDS for line in train_step.table_of(json.loads(path.read_text())).splitlines()]
    measured = [line for line in lines if line.startswith(tuple(f"| {model}" for model in train_step.SHAPES))]
    assert len(measured) == 14 and all(line in page for line in measured)
    grids = [train_step.memory_table_of(json.loads(path.read_text())) for path in RECORDS]
    points = [line for grid in grids for line in grid.splitlines() if line.startswith("| ")][1:]
    assert len(points) > 24 and all(line in page for line in points)


def test_an_epoch_costs_what_the_speed_says():
    """Minutes and money in the page are rows x mean tokens over the measured speed, at the stated price."""
    import epoch_cost
    import train_step

    page = (PROJECT / "benchmarks" / "README.md").read_text()
    means = {name: sum(whole for whole, _ in train_step.lengths_of(name)) / len(train_step.lengths_of(name))
             for name in train_step.SHAPES}  # fmt: skip
    lines = [line for path in RECORDS for line in epoch_cost.costs(json.loads(path.read_text()), means, 1000, 3.0)]
    assert len(lines) == 13
    for model, recipe, minutes, money in lines:
        assert f"| {model}, {recipe} | {minutes:.1f} | {money:.2f} |" in page
    report = {"results": [{"model": "m", "recipe": "r", "real": {"nonpadding_tokens_per_s": 500.0}},
                          {"model": "m", "recipe": "failed", "real": {"error": "no"}}]}  # fmt: skip
    assert epoch_cost.costs(report, {"m": 30.0}, 1000, 6.0) == [("m", "r", 1.0, 0.1)]


def test_an_epoch_of_the_real_data_sets():
    """The page's table is what the records give; an estimate scales words by bytes, and the template not."""
    import epoch_cost
    import train_step

    page = (PROJECT / "benchmarks" / "README.md").read_text()
    table = epoch_cost.real_table(epoch_cost.real_costs([json.loads(path.read_text()) for path in RECORDS], 3.0))
    assert len(table.splitlines()) == 9 and table in page
    ours = train_step.lengths_of("gemma-2-9b")
    shortest, mean, longest = min(ours)[0], sum(tokens for tokens, _ in ours) / len(ours), max(ours)[0]
    assert shortest < mean < longest < epoch_cost.real_tokens("GSM8K, main") / 7473 < 3 * mean
    cmath = train_step.lengths_of("Qwen3-4B", ["cmath.jsonl"])
    assert epoch_cost.real_tokens("CMATH") == pytest.approx(1698 * sum(tokens for tokens, _ in cmath) / len(cmath))


def test_what_padding_and_short_batches_cost(notebook_01):
    """Padding to FlexAttention's blocks gives the padding that was measured; two points give a batch's fixed cost."""
    import epoch_cost
    import train_step

    page = (PROJECT / "benchmarks" / "README.md").read_text()
    report = json.loads((PROJECT / "benchmarks" / "results" / "train_step_h200_gpt-oss.json").read_text())
    measured = {entry["recipe"]: entry for entry in report["results"]}
    lengths = train_step.lengths_of("gpt-oss-20b")

    def padding(how, multiple):
        steps = train_step.WARM_UP + train_step.MEASURED
        rows = [len(row["input_ids"]) for row in train_step.order(
            train_step.make_rows(lengths, 16 * steps, 49000, train_step.LENGTH), 4, how)][16 * train_step.WARM_UP:]  # fmt: skip
        padded = sum(4 * -(-max(rows[k : k + 4]) // multiple) * multiple for k in range(0, len(rows), 4))
        return 1 - sum(rows) / padded

    assert padding("random", 1) == pytest.approx(measured["Cookbook, bf16"]["real"]["padding"])
    assert padding("like lengths", 128) == pytest.approx(measured["notebook, 4 bits"]["real"]["padding"])
    assert f"multiples of 8 would give {padding('like lengths', 8):.1%}".replace("%", " %") in page
    assert f"no multiple {padding('like lengths', 1):.1%}".replace("%", " %") in page
    shown = {}
    for recipe in ("notebook, 4 bits", "notebook, 4 bits, no checkpointing", "Cookbook, bf16"):
        seconds, microseconds = train_step.cost_of_a_batch(measured[recipe])
        shown[recipe] = (seconds, microseconds / 1e6)
        for text in (page, notebook_01.read_text(encoding="utf-8")) if "no checkpointing" not in recipe else (page,):
            assert re.search(rf"{seconds:.2f} s (whatever its size, )?and {microseconds:.0f} µs", text), recipe
    (fixed, token), (slow_fixed, slow_token) = shown["notebook, 4 bits"], shown["Cookbook, bf16"]
    ratio = (slow_fixed + 32768 * slow_token) / (fixed + 32768 * token)
    assert f"about {round(32768 / (fixed + 32768 * token), -2):,.0f} tokens/s, {ratio:.1f} times the Cookbook's" in page
    assert f"{fixed + 16 * 256 * token:.1f} s instead of {4 * (fixed + 4 * 256 * token):.1f} s" in page
    assert (
        "Stacked gpt-oss expert LoRA on 48 projection list(s)" in report["note"] and "48 stacks for 24 layers" in page
    )
    memory = lift(notebook_01, "layer_bytes", "step_bytes", without=("unsloth", "trl", "lingua", "trackio"))
    entry = measured["notebook, 4 bits, no checkpointing"]
    short = [16, max(lengths)[0], False]  # all rows of a step at once: what "auto" tries first, and takes if it fits
    held = entry["weights_bytes"] - 4 * entry["trained"]
    predicted = memory["step_bytes"](types.SimpleNamespace(**entry["sizes"]), held, entry["trained"], *short)
    assert predicted < 0.9 * 78 * 2**30
    mean = sum(length for length, _ in lengths) / len(lengths)
    assert round(epoch_cost.real_tokens("Multilingual-Thinking") / 1000 / mean) == 6  # "about six times as long"


def test_the_notebooks_predict_every_measured_peak(notebook_01):
    """step_bytes lies within 15 % of the peak of every LoRA step that was measured on a GPU, and the page says how far."""
    predict = lift(notebook_01, "layer_bytes", "step_bytes", without=("unsloth", "trl", "lingua", "trackio"))[
        "step_bytes"
    ]
    ratios = []
    for record in (json.loads(path.read_text()) for path in RECORDS):
        points = [(entry, entry["even"], record["length"], "no checkpointing" not in entry["recipe"])
                  for entry in record["results"]]  # fmt: skip
        points += [(entry, entry, entry["length"], entry["checkpointing"]) for entry in record["memory"]]
        for entry, figures, length, checkpointing in points:
            if entry["loaded"] in ("4 bits", "bf16") and "peak_bytes" in figures:
                config = types.SimpleNamespace(**entry["sizes"])
                if "gemma-2" in entry["model"]:
                    config.attn_logit_softcapping = 50.0
                held = entry["weights_bytes"] - 4 * entry["trained"]
                predicted = predict(config, held, entry["trained"], figures["batch"][0], length, checkpointing)
                ratios.append(predicted / figures["peak_bytes"])
    assert len(ratios) == 32 and 0.85 < min(ratios) and max(ratios) < 1.15
    page = (PROJECT / "benchmarks" / "README.md").read_text()
    assert f"predicted by measured between {min(ratios):.2f} and {max(ratios):.2f}" in page


def test_the_rehearsals_table_is_that_of_its_record():
    """Seconds, peaks, parity and the figures of the four GPU rehearsals come from their run cards."""
    page = (PROJECT / "benchmarks" / "README.md").read_text()
    cards = json.loads((PROJECT / "benchmarks" / "results" / "rehearsals_h100.json").read_text())
    for number, card in cards.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {number} |")]
        _, _, seconds, peak, parity, result, _ = (cell.strip() for cell in line.split("|"))
        whole, passed = card["phases"]["whole notebook"], card["parity"].values()
        assert (seconds, peak) == (f"{whole['seconds']:.0f}", f"{whole['peak_bytes'] / 2**30:.1f}")
        assert parity == f"{sum(passed)} of {len(passed)} passed"
        metrics = {f"{when}.{name}": m["value"] for when in ("before", "after")
                   for name, m in card["metrics"][when].items() if isinstance(m, dict)}  # fmt: skip
        forms = {form.format(value) for value in metrics.values() for form in ("{:.0%}", "{:.1%}", "{:.1f}", "{:.3f}")}
        for figure in re.findall(r"-?\d+(?:\.\d+)?%?", result):
            assert figure in forms, (number, figure)
    ratios = {name: m["predicted_bytes"] / m["measured_bytes"] for name, m in cards["04"]["memory"].items()}
    assert all(f"{ratio:.2f}" in page for ratio in ratios.values())


def test_useful_weights_are_those_a_token_meets():
    """Without the table of embeddings where the head is another, and with four of gpt-oss's 32 experts."""
    for record in (json.loads(path.read_text()) for path in RECORDS):
        for entry in record["results"]:
            sizes, expected = entry["sizes"], entry["parameters"]
            if entry["model"] == "gpt-oss-20b":
                experts = 24 * 32 * 2880 * (2 * 2880 + 2880) + 24 * 32 * (2 * 2880 + 2880)
                assert entry["experts"] == experts
                expected -= sizes["vocab_size"] * sizes["hidden_size"] + experts * 28 // 32
            assert entry["useful"] == expected, entry["model"]


def test_learning_rates_summary():
    """A diverged run is counted and left out; the best rate by loss is that of the lowest median."""
    import learning_rates

    name = next(iter(learning_rates.SETTINGS))
    run = {"setting": name, "trained": 1, "exact_match": 0.1, "final_line": 1.0}
    records = [{**run, "rate": 1e-4, "seed": seed, "loss": loss} for seed, loss in ((1, 0.5), (2, 0.7), (3, 0.6))]
    records += [
        {**run, "rate": 1e-3, "seed": 1, "loss": 0.65},
        {"setting": name, "trained": 1, "rate": 1e-3, "seed": 2, "diverged": "The loss became nan"},
    ]
    summary = learning_rates.summarise(records)[name]
    assert summary[1e-4]["loss"] == {"median": 0.6, "mean": pytest.approx(0.6), "low": 0.5, "high": 0.7}
    assert (summary[1e-3]["runs"], summary[1e-3]["diverged"]) == (2, 1)
    assert learning_rates.best(summary)[0] == 1e-4
    jobs = learning_rates.jobs()
    assert len(jobs) == len(set(jobs)) == 5 * 3 * len(learning_rates.SETTINGS)


def test_one_command_measures_everything_on_a_gpu():
    """`make benchmark` calls scripts with options that they have; without a GPU it says so in one sentence."""
    command = [sys.executable, "benchmarks/on_gpu.py"]
    refused = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    assert refused.returncode == 1 and refused.stderr.strip().splitlines()[-1].startswith(
        "on_gpu: PyTorch finds no GPU"
    )
    import on_gpu

    steps, helps = on_gpu.steps(), {}
    for words in steps.values():
        own = words[1 : words.index("--")] if "--" in words else words[1:]
        for option in [word for word in own if word.startswith("--")]:
            if own[0] not in helps:
                asked = [sys.executable, own[0], "--help"]
                helps[own[0]] = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
            assert option in helps[own[0]], (own[0], option)
        assert (PROJECT / own[0]).is_file()
    assert len(helps) == 2 and [name for name in steps if name.startswith("full")] == [f"full_{n}" for n in on_gpu.FEW]
    for path in NOTEBOOKS:
        assert set(on_gpu.FEW[path.name[:2]]) <= set(parameters_of(path)), path.name


def test_a_benchmark_step_that_fails_stops_nothing(tmp_path, monkeypatch, capsys):
    import on_gpu
    import torch

    monkeypatch.setattr(on_gpu, "RECORDS", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    say = [sys.executable, "-c", "print('measured')"]
    monkeypatch.setattr(on_gpu, "steps", lambda: {"bad": [sys.executable, "-c", "raise SystemExit(3)"], "good": say})
    monkeypatch.setattr(sys, "argv", ["on_gpu.py"])
    assert on_gpu.main() == 1
    assert (tmp_path / "good.log").read_text() == "measured\n"
    table = capsys.readouterr().out
    assert re.search(r"bad +\d+  exit status 3, see its log", table) and re.search(r"good +\d+  ended well", table)


def test_adapters_are_compared_reply_by_reply(tmp_path):
    """Two processes give the same text for an adapter that is no zero; a reply that differs is counted and placed."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = "outputs/rehearsal/gpt-oss"
    model = AutoModelForCausalLM.from_pretrained(PROJECT / base)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(tmp_path / "adapter")
    command = [sys.executable, "benchmarks/same_text.py", "--devices", "cpu", "cpu", "--adapters", tmp_path / "adapter"]
    command += ["--prompts", "2", "--tokens", "3", "--output", tmp_path]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "adapter | 2 of 2 | – |" in finished.stdout
    (found,) = json.loads((tmp_path / "same_text.json").read_text())["adapters"].values()
    assert found == {"replies": 2, "same": 2, "first_difference": []}
    import same_text

    other = {"0: cuda": [[5, 6, 7], [1, 2], [3]], "1: cpu": [[5, 9, 7], [1, 2], [3, 4]]}
    assert same_text.compare(other) == {"replies": 3, "same": 1, "first_difference": [1, 1]}


def test_train_step_rows():
    """Rows have the lengths and the supervised shares asked for, cut at the limit; like lengths come together."""
    import train_step

    rows = train_step.make_rows([(10, 4), (300, 20)], 40, 1000, 128)
    assert {len(row["input_ids"]) for row in rows} == {10, 128}
    for row in rows:
        learnt = [label for label in row["labels"] if label != -100]
        assert len(learnt) == {10: 4, 128: 20}[len(row["input_ids"])] and row["input_ids"][-len(learnt) :] == learnt
    ordered = train_step.order(rows, 4, "like lengths")
    mixed = sum(len({len(row["input_ids"]) for row in ordered[k : k + 4]}) > 1 for k in range(0, 40, 4))
    assert mixed <= 1 and sorted(map(str, ordered)) == sorted(map(str, rows))


def test_the_training_benchmark_makes_its_steps(tmp_path):
    """On a tiny shape the notebook's recipe is measured; one that needs a GPU says so, and the status tells."""
    command = [sys.executable, "benchmarks/train_step.py", "--tiny", "--models", "Qwen3-4B", "--steps", "1"]
    command += ["--recipes", "PEFT, bf16", "NF4, packed", "--output", tmp_path]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=environment)
    record = json.loads((tmp_path / "train_step-tiny.json").read_text())
    plain, packed, without_checkpointing = record["results"]
    assert without_checkpointing["trained"] == packed["trained"]  # one load serves both
    assert [entry["length"] for entry in record["memory"]] == [64, 128]
    assert finished.returncode == 1 and "needs a GPU" in plain["error"], finished.stderr[-2000:]
    assert packed["trained"] > 0 and packed["useful"] == packed["parameters"]  # the tied table is the output head too
    assert packed["even"]["padding"] == 0 and packed["even"]["tokens_per_s"] > 0
    assert 0 < packed["real"]["supervised_tokens_per_s"] < packed["real"]["nonpadding_tokens_per_s"]
    assert all(one["recipe"] in finished.stdout for one in record["results"])


def test_speeds_on_a_cpu_are_those_of_its_record():
    """Tokens/s in the notebooks' cost tables and minutes in the README come from two sets of run cards."""
    record = json.loads((PROJECT / "benchmarks" / "results" / "rehearsals_cpu.json").read_text())
    sources = "".join(path.read_text() for path in NOTEBOOKS)
    for which, cards in record.items():
        speed = cards["01"]["tokens_trained"] / cards["01"]["phases"]["train ours"]["seconds"]
        words = "2 CPU cores with bfloat16" if which == "with bfloat16" else "2 CPU cores without"
        assert sources.count(f'SmolLM2-135M, {words}\\": {speed:.0f},') == 3
    minutes = [round(card["phases"]["whole notebook"]["seconds"] / 60) for card in record["with bfloat16"].values()]
    readme = (PROJECT / "README.md").read_text()
    assert f"took {minutes[0]}, {minutes[1]}, {minutes[2]} and {minutes[3]} minutes" in readme
    memory = [f"{one['measured_bytes'] / 2**20:,.0f}" for one in
              (record["with bfloat16"]["04"]["memory"][method] for method in ("lora", "qlora", "full"))]  # fmt: skip
    assert f"{memory[0]}, {memory[1]} and {memory[2]} MiB" in readme


@pytest.mark.long
def test_a_run_over_learning_rates_is_notebook_04_s_own(notebook_04):
    """Two steps of one setting, by the notebook's cells: the rank is the setting's, the loss moved, replies were scored."""
    code = "import json, sys; sys.path.insert(0, 'benchmarks'); import learning_rates as runs; runs.STEPS = 2; "
    code += "nb = runs.prepare(); nb['held_out'] = nb['held_out'][:2]; nb['MAX_NEW_TOKENS'] = 4; "
    code += "print('RECORD', json.dumps(runs.run(nb, 'LoRA, r = 1, all layers', 1e-3, 1)))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    record = json.loads(next(line for line in finished.stdout.splitlines() if line.startswith("RECORD"))[7:])
    assert (record["trained"], record["steps"], record["rate"]) == (305280, 2, 1e-3)
    assert record["loss"] != record["loss_before"] and 0 <= record["exact_match"] <= 1
