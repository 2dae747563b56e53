"""Names of tasks: as before where nothing is lost, and different for different texts."""

from __future__ import annotations

import pytest

from data.errors import InputError
from data.sources.instructions import choose_text, clean_instruction, slug
from data.storage.shards import check_key

LONG = "pick up the cup that stands on the left side of the table near the window and put it carefully into "


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Lift the cube", "Lift_the_cube"),
        ("  put it (gently), down!  ", "put_it_gently_down"),
        ("don\N{RIGHT SINGLE QUOTATION MARK}t \N{EN DASH} stop", "don_t_stop"),
        ("a" * 100, "a" * 100),
        ("a" * 100 + "!", "a" * 100),
        ("", "task"),
        ("...", "task"),
    ],
)
def test_names_of_texts_without_other_letters_are_as_they_were(text: str, name: str) -> None:
    assert slug(text) == name


@pytest.mark.parametrize(
    "texts",
    [
        [f"把{colour}色方块放进盒子里" for colour in "红绿蓝黄黑白大小长短"],
        ["поднять куб", "опустить куб"],
        ["\N{ROCKET}", "\N{SPARKLES}", "\N{ROCKET}\N{ROCKET}"],
        ["déplacer le cube", "deplacer le cube", "dplacer le cube"],
        [LONG + "the sink", LONG + "the box", LONG + "the box now"],
        ["turn to 90°", "turn to 90"],
        ["اسحب", "ادفع"],
    ],
)
def test_different_texts_have_different_names(texts: list[str]) -> None:
    names = [slug(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        assert len(name) <= 100
        assert check_key(f"{name}/demo_0") == f"{name}/demo_0"
    assert [slug(f" {text}  ") for text in texts] == names, "spaces around a text are not part of it"


def test_the_same_text_in_two_encodings_has_one_name() -> None:
    assert slug("déplacer") == slug("de\N{COMBINING ACUTE ACCENT}placer")


@pytest.mark.parametrize("text", ["pick\0up", "\ufeffpick up", "pick\x1b up\x9b", "Pick\n up\x7f"])
def test_control_characters_are_no_part_of_an_instruction(text: str) -> None:
    assert clean_instruction(text, "here") == "pick up"


def test_joiners_stay() -> None:
    family = "\N{MAN}\N{ZERO WIDTH JOINER}\N{GIRL}"
    assert clean_instruction(f"wave to {family}", "here") == f"wave to {family}"


@pytest.mark.parametrize("text", ["", " \t", '""', "\u200b", "\u202e\xa0", "\0"])
def test_an_instruction_that_shows_nothing_is_empty(text: str) -> None:
    with pytest.raises(InputError, match="the instruction is empty"):
        clean_instruction(text, "here")


def test_half_of_a_surrogate_pair_is_replaced() -> None:
    text = clean_instruction("Lift \ud83d the cube", "here")
    assert text == "lift \N{REPLACEMENT CHARACTER} the cube"
    assert text.encode()
    assert slug("Lift \ud83d").encode()


def test_one_of_several_instructions_is_chosen_on_request() -> None:
    assert choose_text(["a", "a"], "refuse", "here", (0, "k")) == "a"
    assert choose_text(["a", "b", "a", "c"], "first", "here", (0, "k")) == "a"
    assert choose_text(["a", "b", "a", "c"], "last", "here", (0, "k")) == "c"
    with pytest.raises(
        InputError, match=r"here: 2 different instructions \('a', 'b'\).*several_instructions="
    ):
        choose_text(["a", "b"], "refuse", "here", (0, "k"))
    with pytest.raises(InputError, match=r"here: 0 different instructions \(no text\)"):
        choose_text([], "first", "here", (0, "k"))
    keys = [(seed, f"k{number}") for seed in (0, 1) for number in range(99)]
    drawn = [choose_text(["a", "b", "a"], "draw", "here", key) for key in keys]
    again = [choose_text(["a", "b"], "draw", "there", key) for key in keys]
    assert drawn == again, "it depends on the texts, the seed and the key alone"
    assert drawn[:99] != drawn[99:]
    assert 35 < drawn[:99].count("a") < 64, "each about as often"
