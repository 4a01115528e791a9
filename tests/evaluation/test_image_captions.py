"""The images that a folder holds."""

from modeling_cnnrnn.evaluation.image_captions import find_images, images_below


def test_images_are_found_below_a_folder_in_order_and_hidden_ones_are_not(tmp_path):
    names = [
        "b.PNG",
        "a.jpg",
        "notes.txt",
        ".a.jpg",
        ".thumbnails/a.jpg",
        "2024/trip/c.heic",
        "2024/d.cr2",
        "2024/.e/f.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = [str(tmp_path / name) for name in ("2024/d.cr2", "2024/trip/c.heic", "a.jpg", "b.PNG")]
    assert images_below(tmp_path) == expected
    assert find_images([str(tmp_path)]) == expected
