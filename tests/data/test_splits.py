from collections import Counter

import pytest

from data.splits import (
    SHARES,
    ImageName,
    assign,
    divide,
    divide_by_number,
    duplicates_across_splits,
    read_record,
    write_record,
)


def images_of(**sizes):
    return [ImageName(None, name, f"{number}.jpg") for name, size in sizes.items() for number in range(size)]


def counts_of(split_of, class_name):
    splits = [split for image, split in split_of.items() if image.class_name == class_name]
    return [splits.count(split) for split in ("train", "val", "test")]


def test_a_division_is_the_same_on_every_machine():
    split_of = divide(images_of(sea=10), {"val": 0.3, "test": 0.7})
    in_val = sorted(image.file_name for image, split in split_of.items() if split == "val")
    assert in_val == ["0.jpg", "2.jpg", "5.jpg"]


def test_one_more_image_moves_few_others():
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    before, after = divide(images_of(sea=100), shares), divide(images_of(sea=101), shares)
    assert sum(after[image] != split for image, split in before.items()) <= 3


@pytest.mark.parametrize("sizes", [{"val": 11, "test": 17}, {"val": 0.11, "test": 17}, {"val": 0.11, "test": 0.17}])
def test_sizes_are_exact_and_stratified(sizes):
    split_of = divide_by_number(images_of(sea=20, forest=80), sizes)
    assert counts_of(split_of, "sea") == [15, 2, 3]
    assert counts_of(split_of, "forest") == [57, 9, 14]


def test_sizes_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ValueError, match="my source has 10 images, and 4 for val and 6 for test are asked for"):
        divide_by_number(images_of(sea=10), {"val": 4, "test": 0.6}, "my source")


def test_a_record_comes_back_sorted_and_equal(tmp_path):
    images = {ImageName("val", "sea", 'b, "c".jpg'): [7], ImageName("train", "forest", "ü.jpg"): [12]}
    write_record(tmp_path / "split.csv", ["bytes"], images)
    lines = (tmp_path / "split.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["class,file_name,split,bytes", "forest,ü.jpg,train,12"]
    assert read_record(tmp_path / "split.csv") == {image: [str(size)] for image, (size,) in images.items()}


def test_duplicates_are_found_across_splits_only(tmp_path):
    contents = {("train", "a", "1.jpg"): b"x", ("test", "b", "2.jpg"): b"x", ("val", "a", "3.jpg"): b"y"}
    contents |= {("val", "a", "4.jpg"): b"y"}
    images = {ImageName(*name): content for name, content in contents.items()}
    for image, content in images.items():
        (tmp_path / str(image)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / str(image)).write_bytes(content)
    write_record(tmp_path / "split.csv", [], dict.fromkeys(images, ()))
    assert [set(same) for same in duplicates_across_splits(tmp_path)] == [
        {ImageName("train", "a", "1.jpg"), ImageName("test", "b", "2.jpg")}
    ]


def test_recorded_images_keep_their_split_and_new_ones_get_that_of_the_rule():
    images = images_of(sea=100)
    recorded = dict.fromkeys(images[:50], "train")
    split_of, by_rule = assign(images, recorded), divide(images, SHARES)
    assert all(split_of[image] == (recorded.get(image) or by_rule[image]) for image in images)


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_the_smallest_classes_have_an_image_in_each_split(size):
    assert min(counts_of(assign(images_of(sea=size, street=40), {}), "sea")) >= 1
    assert min(counts_of(assign(images_of(sea=size), dict.fromkeys(images_of(sea=size), "test")), "sea")) >= 1


def test_a_class_of_two_images_is_named():
    with pytest.raises(ValueError, match=r"class 'sea' has 2 image\(s\)"):
        assign(images_of(sea=2, street=9), {})


def test_a_division_that_leaves_one_training_image_has_the_numbers_asked_for():
    """Both parts of a small class would round up, to more images than it has."""
    sizes = {"a": 11, "b": 22, "c": 52, "d": 57}
    split_of = divide_by_number(images_of(**sizes), {"val": 28, "test": 113})
    assert Counter(split_of.values()) == {"val": 28, "test": 113, "train": 1}
    for name, size in sizes.items():
        _, val, test = counts_of(split_of, name)
        assert abs(val - 28 * size / 142) < 1 and abs(test - 113 * size / 142) <= 1
