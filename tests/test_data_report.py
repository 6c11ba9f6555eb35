"""training/data_report.py"""

import dataclasses
import json

import numpy as np

from training.data_report import DataReport, Finding, LeftOut, SplitReport, count_emotions

NOTHING = Finding(0, ())
CLEAN = DataReport(
    splits=(SplitReport("train", (10,) * 7, (10,) * 7, NOTHING, NOTHING),),
    unreadable=NOTHING,
    unknown_labels={},
    leaks=NOTHING,
    held_out_twice=NOTHING,
    conflicts=NOTHING,
    left_out=LeftOut(0, 0, 0, 0),
)
SPOILT = DataReport(
    splits=(SplitReport("train", (10,) * 7, (9,) * 7, Finding.of(["a"]), Finding.of(["b", "c"])),),
    unreadable=Finding.of(["train/sad/1.jpg"]),
    unknown_labels={"": Finding.of(["d"]), "contempt": Finding.of(["e", "f", "g", "h"])},
    leaks=Finding.of(["i and j"] * 1234),
    held_out_twice=Finding.of(["k and l"]),
    conflicts=Finding.of(["m and n"]),
    left_out=LeftOut(leaked=4, blank=1, conflicting=0, repeated=2),
)


def test_clean_data_is_said_in_one_line_a_split() -> None:
    assert CLEAN.in_words() == [
        "train: 70 images used (angry 10, disgust 10, fear 10, happy 10, neutral 10, sad 10, surprise 10)."
    ]


def test_everything_that_was_found_is_said_in_sentences_with_examples() -> None:
    assert SPOILT.in_words() == [
        "train: 63 of 70 images used (angry 9, disgust 9, fear 9, happy 9, neutral 9, sad 9, surprise 9).",
        "1 file holds no image, for example train/sad/1.jpg.",
        "5 images whose label is none of the emotions (none at all 1, contempt 4), for example d; e; f.",
        "1 train image shows nothing, for example a.",
        "2 train images repeat another pixel for pixel, for example b; c.",
        "1,234 train images are also in validation or test, for example i and j; i and j; i and j.",
        "1 validation image is also in test, for example k and l.",
        "1 group of identical images has different labels, for example m and n.",
        "Left out of the fit: 4 whose photo is in validation or test, 1 that show nothing, 2 that repeat another.",
    ]


def test_json_holds_the_numbers_and_no_path_of_a_user() -> None:
    numbers = json.loads(json.dumps(SPOILT.as_json()))
    assert numbers["images"]["train"]["sad"] == 9
    assert numbers["delivered"]["train"]["sad"] == 10
    assert numbers["unknown_labels"] == {"": 1, "contempt": 4}
    assert (numbers["leaks"], numbers["left_out_leaked"], numbers["left_out_repeated"]) == (1234, 4, 2)
    assert "1.jpg" not in json.dumps(numbers)


def test_names_that_no_terminal_can_show_are_written_out() -> None:
    odd = dataclasses.replace(CLEAN, unreadable=Finding.of(["sad/\udce9.jpg"]), unknown_labels={"\udce9": NOTHING})
    assert any("sad/\\xe9.jpg" in line for line in odd.in_words())
    json.dumps(odd.as_json()).encode()


def test_files_that_are_not_there_are_told_from_files_that_hold_no_image() -> None:
    both = dataclasses.replace(CLEAN, unreadable=Finding.of(["a.png"]), missing=Finding.of(["b\\c.png", "d\0.png"]))
    assert both.in_words()[1:] == [
        "1 file holds no image, for example a.png.",
        "2 files are not there or cannot be read, for example b\\c.png; d\\x00.png.",
    ]
    numbers = both.as_json()
    assert (numbers["unreadable"], numbers["missing"]) == (1, 2)


def test_pictures_that_are_passed_over_are_said_with_the_reason() -> None:
    odd = dataclasses.replace(CLEAN, misplaced=Finding.of(["sad/more/1.png"]), other_format=Finding.of(["a.gif", "b"]))
    assert odd.in_words()[1:] == [
        "1 picture is passed over, as it lies beside or below the folders that are read, for example sad/more/1.png.",
        "2 pictures are passed over, as their format is not read (save them as .jpg or .png), for example a.gif; b.",
    ]
    numbers = odd.as_json()
    assert (numbers["misplaced"], numbers["other_format"]) == (1, 2)


def test_many_unknown_labels_do_not_fill_the_page() -> None:
    many = dataclasses.replace(CLEAN, unknown_labels={f"label {index}": Finding.of(["a"]) for index in range(1000)})
    (_, line) = many.in_words()
    assert "label 9 1, others)" in line
    assert len(line) < 400


def test_emotions_are_counted_in_their_order() -> None:
    assert count_emotions(np.array([3, 3, 0], np.int64)) == (1, 0, 0, 2, 0, 0, 0)
    assert count_emotions(np.empty(0, np.int64)) == (0,) * 7
