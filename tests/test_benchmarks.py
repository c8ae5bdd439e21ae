"""The plumbing of the benchmarks, on small sizes: that they run the notebooks' own functions. No time is asserted."""

import json
import os
import re
import subprocess
import sys
import types

import pytest
from conftest import NOTEBOOKS, PROJECT, lift
from notebook_code import code_cells, parameters_of

sys.path.insert(0, str(PROJECT / "benchmarks"))
HEAVY = ("unsloth", "trl", "lingua", "trackio")


def test_the_pdf_benchmark_runs_the_notebook_s_own_functions(tmp_path):
    command = [sys.executable, "benchmarks/pdf_pipeline.py", "--pages", "1000", "--skip-peers", "--output", tmp_path]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert (tmp_path / "pdf_pipeline.json").exists(), finished.stderr[-2000:]
    record = json.loads((tmp_path / "pdf_pipeline.json").read_text())
    results = record["results"]
    assert finished.returncode == bool(record["over"]), finished.stderr[-2000:]
    assert results["speed"]["pages"] == 20 and results["speed"]["chunks"] > 5
    assert [size["pages"] for size in results["memory"]] == [20, 200, 1000]
    assert all(len(size["samples"]) == 20 and size["peak_bytes"] > 0 for size in results["memory"])
    assert results["parallel"]["files"] == 8 and results["parallel"]["pages"] == 80
    assert [(again["pages"], again["readings"]) for again in results["again"].values()] == [(10, 1), (10, 0), (10, 1)]
    assert all(row[0] in finished.stdout for row in record["table"])


def test_the_page_says_of_signs_and_layout_model_what_the_record_says():
    results = json.loads((PROJECT / "benchmarks" / "results" / "pdf_layout.json").read_text())["results"]
    page = (PROJECT / "benchmarks" / "README.md").read_text()
    for one in results.values():
        right = sum(words > 0.9999 for _, words in one["cases"].values())
        manuals = " | ".join(f"{kept:.1%}, {ordered:.1%}" for kept, ordered, *_ in one["manuals"].values())
        assert f"| {right} of {len(one['cases'])} | {manuals} | {one['pages_a_second']:.1f} |" in page
    assert set(one["manuals"]) == {"bashref.pdf", "gnuplot.pdf", "zsh.pdf"}


# What is measured on a GPU: the arithmetic around it, and the committed records


RESULTS = PROJECT / "benchmarks" / "results"
RECORDS = sorted(RESULTS.glob("train_step_*.json"))


def entries_of(card):
    """Return {recipe: entry} of a record by its name."""
    report = json.loads((PROJECT / "benchmarks" / "results" / f"train_step_{card}.json").read_text())
    return {entry["recipe"]: entry for entry in report["results"]}


def test_the_tables_are_those_of_the_committed_records():
    """benchmarks/tables.py would write both pages as they are; what it writes comes from the records."""
    import tables
    import train_step

    for page in tables.PAGES:
        assert tables.fill(page.read_text()) == page.read_text(), f"{page.name}: run benchmarks/tables.py"
    marks = [mark for page in tables.PAGES for mark in re.findall(r"<!-- table: (\w+) -->", page.read_text())]
    assert sorted(marks) == sorted(tables.TABLES)
    lines = tables.training().splitlines()
    assert len([line for line in lines if line.startswith(tuple(f"| {model}" for model in train_step.SHAPES))]) == 26
    assert len(tables.memory().splitlines()) == 2 + 44 and len(tables.decoding().splitlines()) == 2 + 5
    sweep = json.loads((PROJECT / "benchmarks" / "results" / "learning_rates.json").read_text())
    page = (PROJECT / "benchmarks" / "README.md").read_text()
    assert f"{sweep['made']} of the {sweep['planned']} planned runs" in page and sweep["made"] == len(sweep["runs"])


def test_an_epoch_costs_what_the_speed_says():
    """Minutes and money are rows x mean tokens over the measured speed, at the stated price."""
    import epoch_cost

    report = {"results": [{"model": "m", "recipe": "r", "real": {"nonpadding_tokens_per_s": 500.0}},
                          {"model": "m", "recipe": "failed", "real": {"error": "no"}}]}  # fmt: skip
    assert epoch_cost.costs(report, {"m": 30.0}, 1000, 6.0) == [("m", "r", 1.0, 0.1)]


def test_an_epoch_of_the_real_data_sets():
    """An estimate scales words by bytes, and the template not."""
    import epoch_cost
    import train_step

    ours = train_step.lengths_of("gemma-2-9b")
    shortest, mean, longest = min(ours)[0], sum(tokens for tokens, _ in ours) / len(ours), max(ours)[0]
    assert shortest < mean < longest < epoch_cost.real_tokens("GSM8K, main") / 7473 < 3 * mean
    cmath = train_step.lengths_of("Qwen3-4B", ["cmath.jsonl"])
    assert epoch_cost.real_tokens("CMATH") == pytest.approx(1698 * sum(tokens for tokens, _ in cmath) / len(cmath))


def test_the_page_s_sentences_are_what_was_measured():
    """Ratios and figures in the prose of benchmarks/README.md, and the padding that FlexAttention's blocks give."""
    import epoch_cost
    import train_step

    page = (PROJECT / "benchmarks" / "README.md").read_text()
    now, before, qwen = entries_of("h100_gpt-oss"), entries_of("h200_gpt-oss"), entries_of("h200_qwen3")
    four, sixteen, fastest, eights, peer = (now[name] for name in (
        "notebook, MXFP4, 4 rows", "notebook, MXFP4, 16 rows", "notebook, MXFP4, no checkpointing",
        "notebook, MXFP4, no checkpointing, padded to eights", "Cookbook, bf16"))  # fmt: skip

    def times(entry, other, part="even", figure="median_tokens_per_s"):
        return f"{entry[part][figure] / other[part][figure]:.1f}"

    learnt = ("real", "supervised_tokens_per_s")
    assert f"{times(four, peer)} times the Cookbook's tokens a second in {four['even']['peak_bytes'] / 2**30:.1f} GiB" in page  # fmt: skip
    assert f"without gradient checkpointing {times(fastest, peer)} times, in less memory" in page
    assert fastest["even"]["peak_bytes"] < peer["even"]["peak_bytes"]
    assert f"all experts cost {1 - now['MXFP4, all experts, no checkpointing']['even']['median_tokens_per_s'] / fastest['even']['median_tokens_per_s']:.0%}".replace("%", " %") in page  # fmt: skip
    one, few = (now[f"MXFP4, {rows}, embedding on the CPU"] for rows in ("one row", "4 rows"))
    assert (
        f"peaks at {one['even']['peak_bytes'] / 2**30:.1f} GiB, at {times(one, peer)} times the Cookbook's speed"
        in page
    )
    assert f"four at {few['even']['peak_bytes'] / 2**30:.1f} GiB, at {times(few, peer)} times" in page
    seconds = [f"{one['real']['seconds'] / one['real']['steps']:.1f} s" for one in (four, sixteen)]
    assert f"takes {seconds[0]} four at a time and {seconds[1]} all at once" in page
    assert f"makes {times(fastest, peer, *learnt)} times the Cookbook's supervised tokens" in page
    figures = [f"{one['real'][learnt[1]]:,.0f}" for one in (fastest, eights)]
    assert (
        f"{figures[1]} supervised tokens a second instead of {figures[0]}, {times(eights, peer, *learnt)} times" in page
    )
    gemma = entries_of("h100_gemma")
    ours, eager = gemma["notebook, NF4, 16 short rows"], gemma["plain TRL + PEFT, NF4, eager attention"]
    assert ours["even"]["peak_bytes"] < eager["even"]["peak_bytes"]
    assert f"makes {times(ours, eager)} times the tokens a second of plain TRL with PEFT (four rows)" in page
    assert f"{times(ours, eager, *learnt)} times the supervised tokens on short rows" in page
    split, split_fast = before["notebook, 4 bits"], before["notebook, 4 bits, no checkpointing"]
    assert f"made {times(split, before['Cookbook, bf16'])} and {times(split_fast, before['Cookbook, bf16'])} times" in page  # fmt: skip
    plain, packed, packed_fast = (qwen[name] for name in (
        "plain TRL + PEFT, NF4", "notebook, NF4, packed", "notebook, NF4, packed, no checkpointing"))  # fmt: skip
    assert f"make {times(packed, plain, *learnt)} times the supervised tokens a second" in page
    assert f"{times(packed_fast, plain, *learnt)} times without checkpointing" in page
    assert f"on full rows {times(packed, plain)} and {times(packed_fast, plain)} times" in page
    assert "gpt-oss expert LoRA on 48 projection list(s)" in json.loads(
        (RESULTS / "train_step_h200_gpt-oss.json").read_text()
    ).get("note", "")

    lengths = train_step.lengths_of("gpt-oss-20b")

    def padding(how, multiple, batch):
        steps = train_step.WARM_UP + peer["real"]["steps"]
        rows = [len(row["input_ids"]) for row in train_step.order(
            train_step.make_rows(lengths, 16 * steps, 49000, train_step.LENGTH), batch, how)][16 * train_step.WARM_UP:]  # fmt: skip
        padded = sum(batch * -(-max(rows[k : k + batch]) // multiple) * multiple for k in range(0, len(rows), batch))
        return 1 - sum(rows) / padded

    assert padding("random", 1, 4) == pytest.approx(peer["real"]["padding"])
    assert padding("like lengths", 128, 4) == pytest.approx(four["real"]["padding"])
    assert padding("like lengths", 128, 16) == pytest.approx(fastest["real"]["padding"])
    assert padding("like lengths", 8, 16) == pytest.approx(eights["real"]["padding"])
    assert f"{fastest['real']['padding']:.1%} of the tokens of our short rows".replace("%", " %") in page
    assert f"Padded to multiples of 8 it is {eights['real']['padding']:.1%}".replace("%", " %") in page
    mean = sum(length for length, _ in lengths) / len(lengths)
    assert round(epoch_cost.real_tokens("Multilingual-Thinking") / 1000 / mean) == 6  # "about six times as long"


def test_what_a_step_is_made_of():
    """The kinds of kernels take up what was recorded; the sentences under the table follow from it."""
    import train_step

    page = (PROJECT / "benchmarks" / "README.md").read_text()
    (entry,) = json.loads((RESULTS / "train_step_h100_gpt-oss_profile.json").read_text())["profiles"]
    taken, sizes = entry["profile"], entry["sizes"]
    kinds = train_step.kinds_of(taken["kernels"])
    assert sum(ms for ms, _ in kinds.values()) == pytest.approx(sum(ms for _, ms, _ in taken["kernels"]))
    step = 1000 * entry["even"]["seconds"] / entry["even"]["steps"]
    grouped, other = kinds["experts: grouped matrix products"][0], kinds["all other matrix products"][0]
    tokens, h, m = 4 * 2048, sizes["hidden_size"], sizes["intermediate_size"]
    operations = 2 * 2 * sizes["num_experts_per_tok"] * 3 * h * m * sizes["num_hidden_layers"] * tokens
    rate = operations / grouped / 1e9
    assert f"about {round(rate, -1):.0f} TFLOP/s, {rate / 774.4:.0%}".replace("%", " %") in page
    assert 0.34 < (grouped + other) / step < 0.38  # "little more than a third"
    assert 0.13 < 1 - taken["busy_ms"] / step < 0.155  # "a seventh"
    assert kinds["copies, additions, gathers, the optimiser"][0] > other
    assert 0.085 < kinds["experts: unpacking MXFP4"][0] / step < 0.105  # "a tenth"
    (adds,) = [k for k in taken["kernels"] if "CUDAFunctor_add<c10::BFloat16>" in k[0]]
    (copies,) = [k for k in taken["kernels"] if "bfloat16_copy_kernel" in k[0]]
    assert f"{adds[2]} single additions and {copies[2]} conversions between formats take {adds[1] + copies[1]:.0f} ms" in page  # fmt: skip
    assert f"{taken['launches']:,} launches a step" in page


PACKINGS = {"MXFP4": "mxfp4", "NF4": "bitsandbytes"}  # what a gpt-oss repository says of itself; the fused one nothing


def configuration_of(entry):
    """Return a model's configuration as step_bytes reads it, from an entry of a record."""
    import train_step

    config, held = types.SimpleNamespace(**entry["sizes"]), train_step.LOADS[entry["loaded"]][1]
    if "gemma-2" in entry["model"]:
        config.attn_logit_softcapping = 50.0
    if "gpt-oss" in entry["model"] and held in PACKINGS:
        config.quantization_config = {"quant_method": PACKINGS[held]}
    return config


def test_the_notebooks_predict_every_measured_peak(notebook_01):
    """step_bytes lies within 10 % of the peak of every LoRA step that was measured on a GPU, and the page says how far."""
    import train_step

    predict = lift(notebook_01, "packing", "layer_bytes", "step_bytes", without=HEAVY)["step_bytes"]
    ratios = []
    for record in (json.loads(path.read_text()) for path in RECORDS):
        points = [(entry, entry["even"], record["length"], "no checkpointing" not in entry["recipe"])
                  for entry in record["results"] if "even" in entry]  # fmt: skip
        points += [(entry, entry, entry["length"], entry["checkpointing"]) for entry in record["memory"]]
        for entry, figures, length, checkpointing in points:
            if train_step.LOADS[entry["loaded"]][0] == "unsloth" and "peak_bytes" in figures:
                held = entry["weights_bytes"] - 4 * entry["trained"]
                setting = (figures["batch"][0], length, checkpointing)
                predicted = predict(configuration_of(entry), held, entry["trained"], *setting)
                ratios.append(predicted / figures["peak_bytes"])
    assert len(ratios) == 59 and min(ratios) > 0.9 and max(ratios) < 1.1
    page = (PROJECT / "benchmarks" / "README.md").read_text()
    assert f"({len(ratios)} settings): predicted by measured between {min(ratios):.2f} and {max(ratios):.2f}" in page


def test_a_run_in_full_shape_stays_within_a_plan_of_padded_rows(notebook_01):
    """Rows of 271 tokens are padded to 384 there: with that length the peak is within 10 % of the plan."""
    from random_models import MXFP4, configuration

    predict = lift(notebook_01, "packing", "layer_bytes", "step_bytes", without=HEAVY)["step_bytes"]
    card = json.loads((PROJECT / "benchmarks" / "results" / "full_profile_h100.json").read_text())["01"]
    config, plan = configuration("gpt-oss-20b"), card["plan"]
    config.quantization_config = MXFP4
    padded = plan["longest_row"] + -plan["longest_row"] % 128
    held, adapter = card["phases"]["load"]["peak_bytes"], card["trainable_parameters"]["predicted"]
    predicted = predict(config, held, adapter, plan["batch"], padded, plan["checkpointing"])
    assert 1.0 <= predicted / card["phases"]["train ours"]["peak_bytes"] < 1.1


@pytest.mark.parametrize("number", ["01", "03"])
def test_on_a_gpu_a_plan_counts_padded_rows(number):
    """The cell that plans a step: there 271 tokens are 384, and on a CPU they are 271."""
    path = next(path for path in NOTEBOOKS if path.name.startswith(number))
    source = next(source for source in code_cells(path) if "= plan_training(" in source)
    for device, length in (("a GPU", 384), ("CPU", 271)):
        space = {"DEVICE": device, "lengths": [100, 271], "MAX_LENGTH": 2048}
        exec(source[source.index("longest =") : source.index("BATCH_SIZE, ")], space)
        assert space["longest"] == length


def test_the_notebooks_predict_what_a_model_takes(notebook_01):
    """weight_gib lies within 4 % of what every loaded model held on a GPU, packed or not."""
    import train_step
    from random_models import configuration

    space = lift(notebook_01, "PACKED", "packing", "weights_of", "weight_gib", without=HEAVY)
    space["DEVICE"], ratios = "a GPU", {}
    for entry in (entry for path in RECORDS for entry in json.loads(path.read_text())["results"]):
        library, held, _ = train_step.LOADS[entry["loaded"]]
        if library == "unsloth" and "trained" in entry:
            config = configuration(entry["model"])
            config.quantization_config = getattr(configuration_of(entry), "quantization_config", None)
            measured = (entry["weights_bytes"] - 4 * entry["trained"]) / 2**30
            ratios[entry["model"], held] = space["weight_gib"](config, held == "NF4") / measured
    assert len(ratios) == 6 and 0.96 < min(ratios.values()) and max(ratios.values()) < 1.04, ratios


def test_the_notebooks_plan_decoding_from_memory(notebook_01):
    """In the memory that a batch took, decode_batch would have allowed at most that batch, and not much less."""
    plan = lift(notebook_01, "packing", "layer_bytes", "decode_batch", without=HEAVY)["decode_batch"]
    taken = [one for path in RECORDS for one in json.loads(path.read_text()).get("decoding", [])]
    for one in taken:
        extra = one["peak_bytes"] - one["held_bytes"]
        rows = plan(configuration_of(one), extra / 0.8, one["prompt"], one["new"])
        assert 0.55 * one["rows"] <= rows <= one["rows"], (one["loaded"], one["rows"], rows)
    assert len(taken) == 5


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
    trained = {path.name[:2]: path for path in NOTEBOOKS if not path.name.startswith("05")}  # 05 uses what they made
    assert set(on_gpu.FEW) == set(trained)
    for number, path in trained.items():
        assert set(on_gpu.FEW[number]) <= set(parameters_of(path)), path.name
    import same_text

    assert set(same_text.STEPS) <= set(parameters_of(trained["01"]))


def test_the_page_tells_of_decoding_what_the_record_holds():
    [result] = json.loads((PROJECT / "benchmarks" / "results" / "generation_h100.json").read_text())["results"]
    page = (PROJECT / "benchmarks" / "README.md").read_text()
    dynamic, static = result["dynamic"], result["static"]
    assert result["model"] == "Qwen3-4B" and result["prompts"] == 40 and result["tokens"] == 150
    assert f"in {dynamic['seconds']:.1f} s on an H100" in page
    assert f"{dynamic['replies_per_s']} replies a second, and in {static['seconds']:.1f} s with" in page


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


@pytest.mark.long
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
    """Tokens/s in the notebooks' cost tables come from two sets of run cards."""
    record = json.loads((PROJECT / "benchmarks" / "results" / "rehearsals_cpu.json").read_text())
    sources = "".join(path.read_text() for path in NOTEBOOKS)
    for which, cards in record.items():
        speed = cards["01"]["tokens_trained"] / cards["01"]["phases"]["train ours"]["seconds"]
        words = "2 CPU cores with bfloat16" if which == "with bfloat16" else "2 CPU cores without"
        assert sources.count(f'SmolLM2-135M, {words}\\": {speed:.0f},') == 3


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
