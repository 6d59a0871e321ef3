"""The main of a process that runs `llama_cpp.Llama` as applications do, one request after another.

Started as `python -m tests.bench.engine_serial MODEL CONTEXT THREADS`. Reads lines `[[prompt…], tokens]` as JSON, and
writes a line for each piece of text: the number of its prompt, then at a prompt's end that number, how many tokens it
has and how many came.
"""

from __future__ import annotations

import json
import sys

from llama_cpp import Llama


def main(path: str, context_tokens: int, threads: int) -> None:
    """Answer until standard input ends."""
    llama = Llama(path, n_ctx=context_tokens, n_threads=threads, n_threads_batch=threads, verbose=False)
    print("ready", flush=True)
    for line in sys.stdin:
        prompts, tokens = json.loads(line)
        for number, prompt in enumerate(prompts):
            for piece in llama.create_completion(prompt, max_tokens=tokens, temperature=0, stream=True):
                if piece["choices"][0]["text"]:
                    print(number, flush=True)
            # The last token that was sampled is never decoded, so `n_tokens` does not count it.
            size = len(llama.tokenize(prompt.encode(), special=True))
            print(number, size, llama.n_tokens - size + 1, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
