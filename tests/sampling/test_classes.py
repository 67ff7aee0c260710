"""--classes: names and ids, and which classes are sampled unless it is given."""

from dataclasses import replace

import pytest

from dit.config import TrainConfig
from dit.errors import UserError
from dit.runs.card import ModelCard, NetworkSpec
from dit.sampling.classes import class_ids


def card_of(names, num_classes=None, **changes):
    shape = dict(model="DiT-Ti/4", input_size=8, in_channels=3, learn_sigma=False)
    spec = NetworkSpec(**shape, num_classes=num_classes or len(names))
    return ModelCard(config=TrainConfig(), network=spec, classes=names, **changes)


BIRDS = ["owl", "snowy owl", "heron, grey", "10", "3"]


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        (["owl"], [0]),
        (["owl,10"], [0, 3]),
        (["10", "owl"], [3, 0]),
        (["snowy owl, 3"], [1, 4]),
        (["heron, grey"], [2]),
        (["2,heron, grey,owl"], [2, 2, 0]),
        (["1,0"], [1, 0]),
        (["5"], [5]),  # the network has room for more classes
        ([",".join(["0", "heron, grey"] * 2000)], [0, 2] * 2000),  # in no time
    ],
)
def test_classes_are_names_or_ids(words, ids):
    assert class_ids(words, card_of(BIRDS, 6))[0] == ids


@pytest.mark.parametrize("named", ["B\u00e4r", "Ba\u0308r"])
@pytest.mark.parametrize("typed", ["B\u00e4r", "Ba\u0308r"])
def test_letters_may_be_composed_or_not(named, typed):
    assert class_ids([f"owl,{typed}"], card_of(["owl", named]))[0] == [0, 1]


def test_a_name_comes_before_an_id_and_the_difference_is_told():
    text_order = sorted(str(i) for i in range(12))  # of runs of earlier versions
    ids, notes = class_ids(["10", "0", "8"], card_of(text_order))
    assert ids == [2, 0, 10]
    assert notes == [
        "--classes 10: the class called 10, id 2, not id 10, which is called 8",
        "--classes 8: the class called 8, id 10, not id 8, which is called 6",
    ]
    assert class_ids(["10"], card_of([str(i) for i in range(12)])) == ([10], [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["snowy owls"], "--classes snowy owls: no class snowy owls; .* did you mean snowy owl"),
        (
            ["owl", "6"],
            r"--classes owl 6: no class 6; .* ids from 0 to 5, .* `dit info RUN --classes`",
        ),
        (["owl,,3"], "an empty name"),
        (["crane"], "2 classes are called crane; .* pass one of the ids 5, 6"),
        (["9" * 5000], "no class 999"),
        ([], "--classes without a value"),
    ],
)
def test_other_words_are_refused(words, message):
    names = [*BIRDS, "crane", "crane"] if words == ["crane"] else BIRDS
    with pytest.raises(UserError, match=message):
        class_ids(words, card_of(names, max(6, len(names))))


def test_classes_without_images_are_sampled_only_if_asked_for():
    card = card_of(["0", "1", "2", "3"], class_counts=[0, 5, 0, 2])
    assert class_ids(None, card) == ([1, 3], [])
    assert class_ids(["0,2"], card) == ([0, 2], [])
    assert ModelCard.from_json(card.to_json()).ids == [1, 3]
    assert replace(card, class_counts=None).ids == [0, 1, 2, 3]
