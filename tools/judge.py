"""Let others judge what a notebook saved: `make judge FOLDER=outputs/02_qwen3_emoji_math`.

    python tools/judge.py FOLDER [--limit 30] [--record]

The server of tools/serve.py answers; lm-eval and evalscope ask it notebook 02's held-out sums (data/held_out_skills.jsonl,
`mawps` and `cmath`), tuned and base. One table holds their scores beside the notebook's: `notebook` is the run card's
figure, `ours` the notebook's own reading of the replies that lm-eval got, `lm-eval` its exact match of the last number,
`evalscope` Rouge-L's recall of it. Below stands what makes them differ, read off the replies. Then evalscope loads the
tuned model with 1, 4 and 16 clients.

Both judges live in an environment of their own (outputs/judge-env, requirements-judge.txt) and are kept off the network.
Everything goes to outputs/judge/NAME; --record also writes the load test to benchmarks/results/serving_cpu.json.
"""

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bootstrap import SetupError, own_environment  # noqa: E402
from notebook_code import lift  # noqa: E402
from saved import PROJECT, SavedError, find_saved, messages_of, name_of, read_json, record_of, shown  # noqa: E402
from serve import start, stop  # noqa: E402

OWN = PROJECT / "outputs" / "judge-env"
MADE = PROJECT / "outputs" / "judge"
REQUIREMENTS = PROJECT / "requirements-judge.txt"
NOTEBOOK = PROJECT / "NoteBooks" / "02_qwen3_emoji_math.ipynb"
HELD_OUT = "data/held_out_skills.jsonl"
RECORD = PROJECT / "benchmarks" / "results" / "serving_cpu.json"
KINDS = ("mawps", "cmath")
SCORER = ("exact_match given_answer last_new latex_number numbers_given numbers_in value_of parse_number ARABIC CHINESE "
          "MEASURE NUMBER MARK CONCLUSION CHECKING ASIDE SENTENCE HIDDEN RowError clean_text field as_number "
          "fill_placeholders").split()  # fmt: skip
HEAVY = {"unsloth", "torch", "trl", "transformers", "peft", "bitsandbytes", "datasets", "pandas", "matplotlib"}
LAST_NUMBER = {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"}  # gsm8k's
WHOLE_NUMBER = {"regex_pattern": "-?[0-9]+(?:[.,][0-9]+)*", "group_select": -1}  # Rouge would keep a full stop
STOPS = ["Question:", "</s>", "<|im_end|>"]  # gsm8k's
LOAD = {1: 8, 4: 16, 16: 32}  # clients at a time: requests in all
REPLY = 32  # tokens of a reply in the load test, at most
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}


def scorer():
    """Return notebook 02's own functions: its `exact_match`, `given_answer` and what fills in a sum."""
    return lift(NOTEBOOK, *SCORER, without=HEAVY)


def questions(record, limit, ours):
    """Return {kind: [{"question", "system", "answer"}]}: the first `limit` held-out sums, put as the training put them."""
    found = {kind: [] for kind in KINDS}
    for line in (PROJECT / HELD_OUT).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["source"] not in found or len(found[row["source"]]) == limit:
            continue
        if row["source"] == "mawps":
            numbers = [ours["as_number"](number) for number in row["Numbers"].split()]
            text, answer = ours["fill_placeholders"](row["Question"], numbers), ours["as_number"](row["Answer"])
        else:
            text, answer = row["question"], row["golden"]
        texts = {message["role"]: message["content"] for message in messages_of(record, text)}
        found[row["source"]].append({"question": texts["user"], "system": texts.get("system", ""), "answer": answer})
    return found


def budget_of(record, kind):
    """Return the tokens that a reply to this kind of question may have: the notebook's own budget, else 64."""
    budget = record["decoding"].get("max_new_tokens", 64)
    return budget.get(kind, 64) if isinstance(budget, dict) else budget


def task(kind, file, budget):
    """Return lm-eval's task on the sums of one kind: gsm8k's settings, without examples."""
    return {
        "task": f"sums_{kind}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": STOPS, "do_sample": False, "temperature": 0.0, "max_gen_toks": budget},
        "filter_list": [{"name": "last-number", "filter": [LAST_NUMBER, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True,
                         "ignore_punctuation": False, "regexes_to_ignore": [",", r"\$", r"\.$"]}],
    }  # fmt: skip


def call(command, folder):
    """Run a judge in a folder, off the network; SavedError with its last words if it fails."""
    log = folder / "log.txt"
    with log.open("w") as file:
        result = subprocess.run(
            list(map(str, command)), cwd=folder, env={**os.environ, **OFFLINE}, stdout=file, stderr=subprocess.STDOUT
        )
    if result.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise SavedError(f"{Path(command[0]).name} failed: {(lines or ['it said nothing'])[-1][:200]} ({shown(log)})")


def one_file(folder, pattern):
    """Return the newest file of a judge below a folder; SavedError where it wrote none."""
    found = sorted(folder.rglob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SavedError(f"There is no {pattern} below {shown(folder)}: the judge wrote none. Its log.txt says why.")
    return found[-1]


def lm_eval(programs, address, model, rows, budgets, folder):
    """Ask with lm-eval; return {kind: [{"reply", "read", "right"}]}, a sum each."""
    for kind, sums in rows.items():
        file = folder / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sums), encoding="utf-8")
        (folder / f"sums_{kind}.yaml").write_text(json.dumps(task(kind, file, budgets[kind])))  # JSON is YAML
    settings = f"model={model},base_url={address}/chat/completions,num_concurrent=1,max_retries=1"
    command = [programs / "lm_eval", "run", "--model", "local-chat-completions", "--model_args", settings,
               "--include_path", folder, "--tasks", ",".join(f"sums_{kind}" for kind in rows), "--apply_chat_template",
               "--log_samples", "--output_path", folder / "results"]  # fmt: skip
    system = next(iter(rows.values()))[0]["system"]
    call(command + (["--system_instruction", system] if system else []), folder)
    found = {}
    for kind in rows:
        lines = one_file(folder, f"samples_sums_{kind}_*.jsonl").read_text(encoding="utf-8").splitlines()
        samples = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
        found[kind] = [{"reply": sample["resps"][0][0] or "", "read": sample["filtered_resps"][0],
                        "right": float(sample["exact_match"])} for sample in samples]  # fmt: skip
    return found


def evalscope(programs, address, model, rows, budgets, folder):
    """Ask with evalscope's general_qa; return {kind: [{"reply", "read", "right"}]}, `right` being Rouge-L's recall."""
    found = {}
    for kind, sums in rows.items():
        (folder / f"{kind}.jsonl").write_text("".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in sums), encoding="utf-8")  # fmt: skip
        data = {"local_path": str(folder), "subset_list": [kind], "metric_list": ["Rouge"],
                "filters": {"regex": WHOLE_NUMBER}}  # fmt: skip
        decoding = {"max_tokens": budgets[kind], "temperature": 0.0, "stop_seqs": STOPS}
        command = [programs / "evalscope", "eval", "--model", model, "--api-url", address, "--api-key", "none",
                   "--datasets", "general_qa", "--dataset-args", json.dumps({"general_qa": data}), "--generation-config",
                   json.dumps(decoding), "--eval-batch-size", 1, "--no-timestamp", "--work-dir", folder / kind]  # fmt: skip
        call(command, folder)
        lines = one_file(folder / kind / "reviews", "*.jsonl").read_text(encoding="utf-8").splitlines()
        found[kind] = [read_review(line) for line in sorted(lines, key=lambda line: json.loads(line)["index"])]
    return found


def read_review(line):
    """Return {"reply", "read", "right"} of one line of evalscope's reviews."""
    score = json.loads(line)["sample_score"]["score"]
    return {"reply": score["prediction"], "read": score["extracted_prediction"], "right": score["value"]["Rouge-L-R"]}


def load(programs, address, model, rows, folder, clients=LOAD):
    """Load a model with evalscope, streamed; return a list of dictionaries, one for each number of clients.

    {"clients", "requests", "failed", "requests_per_s", "first_token_ms": mean, "tokens_per_s": of all replies together}
    """
    prompts = folder / "prompts.jsonl"
    asked = [[{"role": "user", "content": row["question"]}] for sums in rows.values() for row in sums]
    prompts.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in asked), encoding="utf-8")
    command = [programs / "evalscope", "perf", "--api", "openai", "--model", model, "--url",
               f"{address}/chat/completions", "--dataset", "line_by_line", "--dataset-path", prompts, "--parallel",
               *clients, "--number", *clients.values(), "--max-tokens", REPLY, "--sleep-interval", 0, "--no-timestamp",
               "--outputs-dir", folder / "runs"]  # fmt: skip
    call(command, folder)
    found = []
    for number, requests in clients.items():
        one = read_json(one_file(folder / "runs", f"parallel_{number}_number_{requests}/benchmark_summary.json"))
        found.append({"clients": number, "requests": requests, "failed": one["Failed Requests"],
                      "requests_per_s": round(one["Req Throughput (req/s)"], 2),
                      "first_token_ms": round(one["Avg TTFT (ms)"]),
                      "tokens_per_s": round(one["Output Throughput (tok/s)"], 1)})  # fmt: skip
    return found


def card_figures(saved, kind, sums):
    """Return the run card's {"base", "tuned"}: right replies to these very sums; {} where it has no such figure."""
    card = read_json(saved.parent / "run_card.json")
    now = hashlib.sha256((PROJECT / HELD_OUT).read_bytes()).hexdigest()
    if card.get("held_out_sha256", {}).get(HELD_OUT) != now:
        return {}
    found = {}
    for model, when in (("base", "before"), ("tuned", "after")):
        figure = card["metrics"].get(when, {}).get(f"exact_match.{kind}")
        if figure and figure["n"] == len(sums):
            found[model] = round(figure["value"] * figure["n"])
    return found


def right_by_ours(ours, sums, judged):
    """Return a list of 0 and 1: notebook 02's own verdict on each reply that a judge got."""
    return [int(ours["exact_match"](one["reply"], row["answer"], row["question"]))
            for row, one in zip(sums, judged, strict=True)]  # fmt: skip


def clipped(text, letters=70):
    """Return a reply's end, on one line: that is where an answer stands."""
    text = " ".join(text.split())
    return repr(text if len(text) <= letters else "…" + text[-letters:])


def reasons(ours, label, sums, replies, card):
    """Return sentences on what makes the figures of one model differ, read off its replies.

    `replies` is {"lm-eval": […], "evalscope": […]}; `card` the run card's count or None.
    """
    told, first = [], replies["lm-eval"]
    mine = right_by_ours(ours, sums, first)
    if card is not None and card != sum(mine):
        told.append(f"{label}: the notebook counted {card}, its own reading of the served replies {sum(mine)}. Prompts, "
                    "budget and reading are the same; the notebook decodes in batches and in the precision that it "
                    "trained in, the server one reply at a time in 32 bits.")  # fmt: skip
    for judge, judged in replies.items():
        others = [number for number, one in enumerate(judged) if one["reply"].strip() != first[number]["reply"].strip()]
        if others:
            number = others[0]
            told.append(f"{label}: {judge} got {len(others)} other replies than lm-eval, such as "
                        f"{clipped(judged[number]['reply'])} for {clipped(first[number]['reply'])}.")  # fmt: skip
        verdicts = right_by_ours(ours, sums, judged)
        apart = [number for number, one in enumerate(judged) if one["right"] != verdicts[number]]
        if apart:
            row, one = sums[apart[0]], judged[apart[0]]
            given = ours["given_answer"](one["reply"], row["question"])
            told.append(f"{label}: {judge} judges {len(apart)} replies otherwise than we do, by another reading of the "
                        f"number. Wanted {row['answer']}, reply {clipped(one['reply'])}: we read "
                        f"{'none' if given is None else given[0]}, {judge} {one['read']!r}, worth {one['right']:g}.")  # fmt: skip
    return told


def table(columns, rows):
    """Return rows as text in columns: the first to the left, the others to the right."""
    texts = [list(map(str, row)) for row in [columns, *rows]]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in texts)


def scores(ours, saved, rows, replies):
    """Print right replies by each count and why they differ; return (the table's lines, the sentences).

    `replies` is {(kind, model): {judge: replies}}.
    """
    lines, told = [], []
    for (kind, model), judged in sorted(replies.items()):
        card = card_figures(saved, kind, rows[kind]).get(model)
        mine = sum(right_by_ours(ours, rows[kind], judged["lm-eval"]))
        theirs = {label: sum(one["right"] for one in found) for label, found in judged.items()}
        lines.append({"sums": kind, "model": model, "n": len(rows[kind]), "notebook": card, "ours": mine, **theirs})
        told += reasons(ours, f"{kind}, {model}", rows[kind], judged, card)
    columns = ["right replies", "of", "notebook", "ours", "lm-eval", "evalscope"]
    print(table(columns, [[f"{line['sums']}, {line['model']}", line["n"], "–" if line["notebook"] is None else
                           line["notebook"], line["ours"], *(f"{line[label]:g}" for label in ("lm-eval", "evalscope"))]
                          for line in lines]))  # fmt: skip
    told = told or ["The judges and we agree on every reply."]
    for kind in rows if (next(iter(rows)), "base") in replies else ():
        tuned, base = ([one["reply"] for one in replies[kind, model]["lm-eval"]] for model in ("tuned", "base"))
        same = sum(map(str.__eq__, tuned, base))
        told.append(f"{kind}: tuned and base give the same reply to {same} of {len(tuned)}"
                    + (". What is served as tuned is the base." if same == len(tuned) else "."))  # fmt: skip
    print("\n".join(["", *told, ""]))
    return lines, told


def batching(loads):
    """Return a sentence on what more clients at a time gain, from the load test's first and last line."""
    one, most = loads[0], loads[-1]
    gain = most["tokens_per_s"] / one["tokens_per_s"]
    kind = "answers one request after the other" if gain < 1.2 else "answers several requests at a time"
    return (f"{most['clients']} clients together get {gain:.1f} times the tokens of one, and wait {most['first_token_ms'] / 1000:.1f} "
            f"s for the first instead of {one['first_token_ms'] / 1000:.1f}: this server {kind}.")  # fmt: skip


def setting(name):
    """Return what a record says of a measurement: model, engine, device, date, versions."""
    import importlib.metadata
    import platform

    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
             ] if info.exists() else []  # fmt: skip
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    pins = dict(line.split("==") for line in lines if line)
    versions = {package: importlib.metadata.version(package) for package in ("transformers", "torch")}
    versions |= {"python": platform.python_version(), "evalscope": pins["evalscope"], "lm-eval": pins["lm-eval"]}
    return {"model": name, "engine": "transformers serve, 32 bits, on a CPU", "reply_tokens": REPLY,
            "device": f"{next(iter(names), platform.machine())}, {len(os.sched_getaffinity(0))} cores",
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions}  # fmt: skip


def free_port():
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def judge(text, limit=30, clients=LOAD):
    """Serve what was saved, have it judged and loaded; print the tables, return all as a dictionary."""
    saved, ours, began = find_saved(text), scorer(), time.monotonic()
    record, name = record_of(saved), name_of(saved)
    rows = questions(record, limit, ours)
    budgets = {kind: budget_of(record, kind) for kind in rows}
    try:
        programs = own_environment(OWN, REQUIREMENTS, "--no-deps").parent
    except (OSError, SetupError) as error:
        raise SavedError(f"{error} Without {shown(OWN)} nobody judges.") from None
    folder = MADE / name
    shutil.rmtree(folder, ignore_errors=True)
    replies, seconds = {}, {}
    process, address, names, record = start(text, free_port())
    try:
        for model, served in zip(("tuned", "base"), names, strict=False):
            for label, ask in (("lm-eval", lm_eval), ("evalscope", evalscope)):
                started, place = time.monotonic(), folder / model / label
                place.mkdir(parents=True)
                for kind, judged in ask(programs, address, served, rows, budgets, place).items():
                    replies.setdefault((kind, model), {})[label] = judged
                seconds[f"{label}, {model}"] = round(time.monotonic() - started)
        lines, told = scores(ours, saved, rows, replies)
        started, place = time.monotonic(), folder / "load"
        place.mkdir(parents=True)
        loads = load(programs, address, names[0], rows, place, clients)
        seconds["load test"] = round(time.monotonic() - started)
    finally:
        stop(process)
    print(table(["clients", "requests", "failed", "requests/s", "first token, ms", "tokens/s"],
                [one.values() for one in loads]))  # fmt: skip
    print(f"\n{batching(loads)}\n")
    seconds["all"] = round(time.monotonic() - began)
    print("Seconds: " + ", ".join(f"{what} {took}" for what, took in seconds.items()))
    found = setting(name) | {"scores": lines, "reasons": told, "load": loads, "seconds": seconds}
    (folder / "judged.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    print(f"Every reply and log: {shown(folder)}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="", help="a run's folder below outputs/, or a model or adapter")
    parser.add_argument("--limit", type=int, default=30, help="sums of each kind, 30 unless you say otherwise")
    parser.add_argument("--record", action="store_true", help=f"write the load test to {shown(RECORD)} too")
    arguments = parser.parse_args()
    try:
        found = judge(arguments.folder, arguments.limit)
        if arguments.record:
            kept = {name: value for name, value in found.items() if name not in ("scores", "reasons", "seconds")}
            RECORD.write_text(json.dumps(kept, indent=1) + "\n")
    except SavedError as error:
        print(f"judge: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\njudge: ended.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
