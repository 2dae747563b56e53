"""The text tokenizer: ids in the text range, lossless, reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from data.tokens.text import TextTokenizer, train_text_tokenizer, training_sentences
from data.tokens.vocabulary import TEXT_START

SHIPPED = TextTokenizer.load()


@given(st.text(max_size=60))
def test_any_text_is_encoded_in_range_and_decoded(text: str) -> None:
    ids = SHIPPED.encode(text)
    assert all(TEXT_START <= i < SHIPPED.size == 16_896 for i in ids)
    assert SHIPPED.decode(ids) == text


def test_prompts_are_short() -> None:
    assert len(SHIPPED.encode("What action should the robot take to lift the cube?")) <= 16


def test_the_shipped_file_is_the_output_of_the_function(tmp_path: Path) -> None:
    saved = SHIPPED.save(tmp_path / "tokenizers")
    assert saved.read_text() == train_text_tokenizer(training_sentences())
    assert TextTokenizer.load(saved).encode("lift the cube") == SHIPPED.encode("lift the cube")


def chameleon_like(path: Path) -> Path:
    """A tokenizer.json with special tokens below the text range and a post-processor that adds BOS."""
    content = json.loads(train_text_tokenizer(["abc"], entries=256))
    content["added_tokens"] = [
        {
            "id": 0,
            "content": "<s>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ]
    content["model"]["vocab"]["<s>"] = 0
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(content))
    return path


def test_a_file_with_special_tokens_gives_plain_ids_and_refuses_specials(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.load(chameleon_like(tmp_path / "tokenizer.json"))
    assert 0 not in tokenizer.encode("lift")
    with pytest.raises(InputError, match="special token '<s>'"):
        tokenizer.encode("lift <s> the cube")


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        TextTokenizer.load(tmp_path / "missing.json")
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    with pytest.raises(InputError, match=r"not a tokenizer\.json"):
        TextTokenizer.load(wrong)
    content = json.loads(train_text_tokenizer(["abc"], entries=256))
    content["model"]["vocab"] = {token: i for i, token in enumerate(content["model"]["vocab"])}
    wrong.write_text(json.dumps(content))
    with pytest.raises(InputError, match="text range"):
        TextTokenizer.load(wrong)
