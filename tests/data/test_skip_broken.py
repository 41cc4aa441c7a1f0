"""A data set without its broken images: which are out, what that does to a score, and what is remembered."""

from __future__ import annotations

import json
import shutil

import pytest

from cskd_data import DataError, evaluate, read
from cskd_data.clean import usable
from cskd_data.merge import merge

from .factories import encoded, photo, write, write_photo

BROKEN = {
    "half": "is truncated",
    "small": "is 32 x 24 pixels, but the annotations say 320 x 240",
    "missing": "does not",
}


@pytest.fixture
def broken(tmp_path):
    """Two whole images, half a JPEG, one of another size and one that is missing; a box of another class in each."""
    folder = tmp_path / "images"
    whole = encoded("JPEG", photo(240, 320), quality=85)
    for name, content in (("whole", whole), ("again", whole), ("half", whole[: len(whole) // 2])):
        write(folder / f"{name}.jpg", content)
    write_photo(folder / "small.jpg", height=24, width=32)
    names = ("half", "whole", "small", "again", "missing")
    data = {
        "images": [{"id": f"id {name}", "file_name": f"{name}.jpg", "width": 320, "height": 240} for name in names],
        "annotations": [
            {"image_id": f"id {name}", "category_id": 9, "bbox": [10 * number, 5, 20, 20]}
            for number, name in enumerate(names)
        ],
        "categories": [{"id": 9, "name": "cat"}],
    }
    return write(tmp_path / "a.json", json.dumps(data))


def skipping(file, **settings):
    return usable(read(file, skip_missing=True), **settings).dataset


def detections(names):
    return [
        {"image_id": f"id {name}", "category_id": 9, "bbox": [10 * number, 5, 20, 20], "score": 0.9}
        for number, name in enumerate(("half", "whole", "small", "again", "missing"))
        if name in names
    ]


def test_what_cannot_be_used_is_out_by_the_users_ids_with_what_is_wrong(broken):
    dataset = skipping(broken)
    assert [image["file_name"] for image in dataset.images] == ["whole.jpg", "again.jpg"]
    assert len(dataset.annotations) == 2
    assert set(dataset.left_out) == {f"id {name}" for name in BROKEN}
    for name, what in BROKEN.items():
        assert dataset.left_out[f"id {name}"].startswith(f"image {name}.jpg {what}")
    notes = " | ".join(map(str, dataset.notes))
    assert "1 of 5 images left out, with their boxes: image missing.jpg does not exist" in notes
    assert "2 of 4 images left out, with their boxes: image half.jpg is truncated" in notes
    assert dataset.check(decode=True).errors == ()


def test_a_box_in_a_skipped_image_is_neither_missed_nor_found_and_the_result_says_over_how_many(broken):
    dataset = skipping(broken)
    for found in (("whole", "again"), ("whole", "again", "half", "missing")):
        result = evaluate(dataset, detections(found))
        assert (result.mean_average_precision, result.images, result.skipped_images) == (pytest.approx(1), 2, 3)
        assert result.coverage == "mAP over 2 of 5 images: 3 could not be used, and counted neither way"
    assert result.to_dict()["skipped_images"] == 3
    assert evaluate(dataset, detections(["whole"])).mean_average_precision == pytest.approx(0.5, abs=0.02)
    with pytest.raises(DataError, match="names image id 'id other', which is not listed"):
        evaluate(dataset, [{**detections(["whole"])[0], "image_id": "id other"}])
    whole = dataset.subset(dataset.image_keys)
    assert evaluate(whole, []).coverage == ""
    assert evaluate(whole, []).skipped_images == 0


def test_an_image_whose_id_reads_like_that_of_a_skipped_one_is_scored(broken):
    data = json.loads(broken.read_text())
    for entries, key in ((data["images"], "id"), (data["annotations"], "image_id")):
        for one in entries:
            one[key] = {"id half": 7, "id whole": "7"}.get(one[key], one[key])
    broken.write_text(json.dumps(data))
    dataset = skipping(broken)
    result = evaluate(dataset, [{**one, "image_id": "7"} for one in detections(["whole"])] + detections(["again"]))
    assert result.mean_average_precision == pytest.approx(1)


def test_nothing_left_is_refused_and_a_sound_set_stays_as_it_is(broken, tmp_path):
    sound = skipping(broken)
    assert usable(sound).dataset is sound
    for name in ("whole", "again"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"no image of .*a\.json can be used, such as: image .*half\.jpg"):
        skipping(broken)


def test_several_sets_keep_what_each_has_skipped(broken, tmp_path):
    first = skipping(broken)
    other = tmp_path / "other" / "b.json"
    shutil.copytree(tmp_path / "images", other.parent / "images")
    other.write_text(broken.read_text())
    second = skipping(other)
    together = merge([first, second])
    assert len(together.left_out) == 6
    assert {"a/id half", "b/id half"} < set(together.left_out)
    assert evaluate(together, []).coverage.startswith("mAP over 4 of 10 images")


def test_what_is_broken_is_remembered_until_a_file_changes(broken, tmp_path, monkeypatch):
    monkeypatch.setattr("cskd_data.fingerprint.REMEMBERED_FROM", 4)
    first = skipping(broken, use_memory=True)
    decoded = []
    with monkeypatch.context() as patch:
        patch.setattr("cskd_data.clean.picture", lambda path: decoded.append(path))
        again = skipping(broken, use_memory=True)
    assert decoded == []
    assert (again.data, again.left_out, again.notes) == (first.data, first.left_out, first.notes)
    (tmp_path / "images" / "half.jpg").write_bytes((tmp_path / "images" / "whole.jpg").read_bytes())
    assert len(skipping(broken, use_memory=True).images) == 3


def test_what_is_remembered_is_of_the_files_whatever_ids_another_list_gives_them(broken, tmp_path, monkeypatch):
    monkeypatch.setattr("cskd_data.fingerprint.REMEMBERED_FROM", 4)
    write_photo(tmp_path / "images" / "missing.jpg", height=240, width=320)
    names = ("half", "whole", "small", "again", "missing")

    def listed(first, file):
        data = json.loads(broken.read_text())
        places = {f"id {name}": place for place, name in enumerate(names, start=first)}
        for entries, key in ((data["images"], "id"), (data["annotations"], "image_id")):
            for one in entries:
                one[key] = places[one[key]]
        return write(tmp_path / file, json.dumps(data))

    for first, file in ((1, "one.json"), (0, "zero.json"), (7, "far.json"), (1, "one.json")):
        dataset = skipping(listed(first, file), use_memory=True)
        assert [image["file_name"] for image in dataset.images] == ["whole.jpg", "again.jpg", "missing.jpg"]
        assert {key: words.split()[1] for key, words in dataset.left_out.items()} == {
            first: "half.jpg",
            first + 2: "small.jpg",
        }


def test_a_file_that_could_not_be_read_is_tried_again(broken, monkeypatch):
    from cskd_data import images

    monkeypatch.setattr("cskd_data.fingerprint.REMEMBERED_FROM", 4)
    read_bytes = images.Path.read_bytes

    def unreadable(path):
        if path.name == "again.jpg":
            raise OSError(5, "Input/output error")
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(images.Path, "read_bytes", unreadable)
        found = skipping(broken, use_memory=True)
        assert found.left_out["id again"] == "image again.jpg cannot be read (Input/output error)"
    assert "id again" not in skipping(broken, use_memory=True).left_out
