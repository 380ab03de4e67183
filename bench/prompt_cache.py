#!/usr/bin/env python3
"""Time to the first token of a question that follows a long common prompt: with the whole prompt computed again, and
with its state read from a file (`generate --save-state`, `--load-state`). Prints one JSON object.

usage: bench/prompt_cache.py MMFREE MODEL [--prompt 2000] [--question 20] [--rounds 5] [--threads N]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile


def ids(first, n, vocabulary):
    return ",".join(str((first + 7919 * i) % vocabulary) for i in range(n))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mmfree")
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=2000, help="tokens")
    parser.add_argument("--question", type=int, default=20, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    o = parser.parse_args()

    def call(*arguments):
        words = [o.mmfree, *arguments]
        return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    vocabulary = call("inspect", o.model, "--json")["config"]["vocab_size"]
    prompt = ids(1, o.prompt, vocabulary)
    question = ids(5, o.question, vocabulary)

    def generate(*arguments):
        return call("generate", o.model, "--temp", "0", "--ignore-eos", "--json", "--threads", str(o.threads), *arguments)

    with tempfile.TemporaryDirectory() as folder:
        state = os.path.join(folder, "prompt.state")
        generate("--prompt-ids", prompt, "-n", "0", "--save-state", state)
        runs = {"computed": [], "loaded": []}
        for _ in range(o.rounds):
            runs["computed"].append(generate("--prompt-ids", prompt + "," + question, "-n", "4"))
            runs["loaded"].append(generate("--load-state", state, "--prompt-ids", question, "-n", "4"))
        result = {
            "what": "prompt_cache",
            "model_bytes": os.path.getsize(o.model),
            "threads": o.threads,
            "prompt_tokens": o.prompt,
            "question_tokens": o.question,
            "state_file_bytes": os.path.getsize(state),
        }
    texts = {tuple(r["ids"]) for kind in runs.values() for r in kind}
    if len(texts) != 1:
        sys.exit("the tokens differ between a computed and a loaded prompt")
    for kind, results in runs.items():
        median = {key: statistics.median(r[key] for r in results) for key in ("load_s", "prefill_s")}
        # From the start of the program's work: model (and state) loaded, prompt fed.
        first = statistics.median(r["load_s"] + r["prefill_s"] for r in results)
        result[kind] = {**median, "first_token_s": first}
    result["ratio"] = result["computed"]["first_token_s"] / result["loaded"]["first_token_s"]
    result["ratio_without_loading"] = result["computed"]["prefill_s"] / result["loaded"]["prefill_s"]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
