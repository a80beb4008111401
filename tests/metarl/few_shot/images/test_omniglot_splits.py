"""Omniglot's splits."""

from metarl.few_shot.images import omniglot_splits


def test_the_vinyals_split_keeps_alphabets_apart_but_for_gurmukhi():
    names = [f"images_background/{alphabet}/character01" for alphabet in ("Angelic", "Hebrew", "Latin")]
    names += [
        f"images_evaluation/{name}" for name in ("Gurmukhi/character41", "Gurmukhi/character42", "ULOG/character03")
    ]
    found = omniglot_splits.split_characters("vinyals", names)
    assert {part: of.tolist() for part, of in found.items()} == {
        "train": [0, 2, 3], "validation": [1], "test": [4, 5]
    }  # fmt: skip


def test_the_set_s_own_parts_are_not_mixed():
    names = [f"images_background/Latin/character{number:02}" for number in range(200)]
    names += [f"images_evaluation/ULOG/character{number:02}" for number in range(30)]
    found = omniglot_splits.split_characters("background-evaluation", names)
    assert found["test"].tolist() == list(range(200, 230))
    assert len(found["validation"]) == 100
    assert sorted([*found["train"], *found["validation"]]) == list(range(200))
