"""Queries from a model that asks what a document answers.

After doc2query (Nogueira and Lin 2019) and GPL (Wang et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

from clickloop.errors import SettingsError

BATCH = 16
MOST_TOKENS = 350
LONGEST_QUERY = 32


def model_queries(name: str, texts: Sequence[str], *, per_document: int, seed: int) -> list[list[str]]:
    """``per_document`` sampled queries for each text, from a sequence-to-sequence model by its name or folder.

    Weights are read from safetensors only. Raises SettingsError where there is no such model.
    """
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=False, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise SettingsError(f"--model {name}: no sequence-to-sequence model that can be read: {reason}") from None
    torch.manual_seed(seed)
    found: list[list[str]] = []
    for first in range(0, len(texts), BATCH):
        batch = list(texts[first : first + BATCH])
        inputs = tokenizer(batch, truncation=True, max_length=MOST_TOKENS, padding=True, return_tensors="pt")
        with torch.no_grad():
            asked = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                top_p=0.95,
                max_new_tokens=LONGEST_QUERY,
                num_return_sequences=per_document,
            )
        queries = tokenizer.batch_decode(asked, skip_special_tokens=True)
        found += [queries[n : n + per_document] for n in range(0, len(queries), per_document)]
    return found
