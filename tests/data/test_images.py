"""One rule how a picture is decoded: each kind of file has one answer, the same as OpenCV's and mmcv's."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cskd_data import decode
from cskd_data.coco import read_coco
from cskd_data.errors import DataError, ImageFault
from cskd_data.header import read_header
from cskd_data.images import ImageWarning, image_size, load_image, picture, read_image
from cskd_data.jpeg_cut import lost_share

from .factories import HEIGHT, WIDTH, encoded, photo, png_of_size, turned, with_orientation, write

END = b"\xff\xd9"


def opencv(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


@pytest.fixture
def saved(tmp_path):
    return lambda content, name="a.jpg": write(tmp_path / name, content)


ORDINARY = {
    "jpeg": lambda: encoded("JPEG"),
    "progressive jpeg": lambda: encoded("JPEG", progressive=True),
    "jpeg of restarts": lambda: encoded("JPEG", restart_marker_blocks=2),
    "grey jpeg": lambda: encoded("JPEG", mode="L"),
    "cmyk jpeg": lambda: encoded("JPEG", mode="CMYK"),
    "png": lambda: encoded("PNG"),
    "png with palette": lambda: encoded("PNG", mode="P"),
    "png with alpha": lambda: encoded("PNG", mode="RGBA"),
    "grey png with alpha": lambda: encoded("PNG", mode="LA"),
    "png of one bit": lambda: encoded("PNG", mode="1"),
    "bmp": lambda: encoded("BMP"),
    "bmp with palette": lambda: encoded("BMP", mode="P"),
    "webp": lambda: encoded("WEBP"),
    "lossless webp": lambda: encoded("WEBP", lossless=True),
    "webp with alpha": lambda: encoded("WEBP", mode="RGBA"),
    "tiff": lambda: encoded("TIFF"),
    "cmyk tiff": lambda: encoded("TIFF", mode="CMYK"),
    "compressed tiff": lambda: encoded("TIFF", compression="tiff_lzw"),
    "pnm": lambda: encoded("PPM"),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_an_ordinary_file_is_what_opencv_and_mmcv_make_of_it(saved, kind):
    content = ORDINARY[kind]()
    path = saved(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_image(path)
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert found.dtype == np.uint8
    assert image_size(path) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(found, opencv(content))
    mmcv = pytest.importorskip("mmcv")
    np.testing.assert_array_equal(found, mmcv.imfrombytes(content, flag="color", channel_order="bgr"))


def test_alpha_is_dropped_and_grey_has_three_channels_and_cmyk_its_colours(saved):
    clear = np.dstack([photo()[..., ::-1], np.zeros((HEIGHT, WIDTH), np.uint8)])
    file = io.BytesIO()
    Image.fromarray(clear, "RGBA").save(file, "PNG")
    np.testing.assert_array_equal(load_image(saved(file.getvalue())), photo())
    grey = load_image(saved(encoded("PNG", mode="L")))
    assert (np.ptp(grey, axis=2) == 0).all()
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 2] = 255
    assert np.abs(load_image(saved(encoded("JPEG", red, mode="CMYK"))).astype(int) - red).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_turns_pixels_and_size_alike(saved, kind, orientation):
    path = saved(with_orientation(kind, orientation))
    upright = opencv(with_orientation(kind, 1))
    np.testing.assert_array_equal(load_image(path), turned(upright, orientation))
    assert image_size(path) == ((HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_webp_is_not_turned_and_says_so(saved, orientation):
    path = saved(with_orientation("WEBP", orientation))
    with pytest.warns(ImageWarning, match="has an EXIF orientation, which OpenCV does not follow in a WebP"):
        found = load_image(path)
    np.testing.assert_array_equal(found, photo())
    assert image_size(path) == (WIDTH, HEIGHT)
    assert (read_header(path).orientation, read_header(path).turned) == (orientation, False)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_and_a_nearly_black_result_is_no_silence(saved, suffix):
    full = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    found = picture(saved(cv2.imencode(suffix, full)[1].tobytes()))
    assert np.abs(found.pixels[..., 0].astype(int) - (full >> 8)).max() == 0
    assert found.warnings == ()
    dark = picture(saved(cv2.imencode(suffix, full >> 4)[1].tobytes()))
    assert dark.pixels.max() == 15
    assert "holds small numbers in 16 bits, so that it is nearly black as 8 bits" in dark.warnings[0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_picture(saved, kind):
    frames = [Image.fromarray(np.full((40, 60, 3), value, np.uint8)) for value in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], **({} if kind == "TIFF" else {"duration": 9}))
    found = load_image(saved(file.getvalue()))
    assert found.shape == (40, 60, 3)
    assert np.abs(found.astype(int) - 10).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_a_picture_of_one_pixel_is_one(saved, kind):
    path = saved(encoded(kind, np.full((1, 1, 3), 7, np.uint8)))
    assert load_image(path).shape == (1, 1, 3)
    assert image_size(path) == (1, 1)


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (20000, 20000, "has 20000 x 20000 pixels by its header, more than are decoded (268 million)"),
        (1 << 21, 4, "more than are decoded"),
        (9000, 9000, "has 9000 x 9000 pixels by its header, which its 45 bytes cannot hold"),
        (0, 5, "PNG header"),
    ],
)
def test_a_size_out_of_bounds_is_refused_by_the_header(saved, width, height, said):
    path = saved(png_of_size(width, height))
    for read in (load_image, image_size):
        with pytest.raises(ImageFault) as fault:
            read(path)
        assert said in str(fault.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"GIF89a" + bytes(50), "is a GIF that is not read (JPEG, PNG, BMP, WebP, TIFF and PNM are)"),
        (b"\0\0\0\x20ftypavif" + bytes(50), "is an AVIF, HEIC or film file that is not read"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "is a JPEG 2000 file that is not read"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"hello, world", "is no image, or one in a format"),
        (b"\xff\xd8\xff", "is truncated (it ends inside its header)"),
        (b"BM" + bytes(9), "is truncated (it ends inside its header)"),
        (b"\xff\xd8\xff\xe0\0\0", "has a broken JPEG header"),
    ],
)
def test_what_is_no_picture_is_named(saved, content, said):
    path = saved(content)
    for read in (load_image, image_size):
        with pytest.raises(ImageFault) as fault:
            read(path)
        assert said in str(fault.value)
    with pytest.raises(DataError, match=r"^image .*a\.jpg (is|has) "):
        read_image(path)


def test_a_file_that_is_not_there_is_no_file(tmp_path):
    with pytest.raises(ImageFault, match=r"^does not exist$"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ImageFault, match="cannot be read"):
        load_image(tmp_path / "nu\0ll.jpg")


def test_floating_point_tiffs_are_refused_with_what_to_write(saved):
    path = saved(encoded("TIFF", mode="F"))
    with pytest.raises(ImageFault, match="holds samples of 32 bits or fractions, which OpenCV does not read: write 8"):
        load_image(path)


CUT = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 3},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
}


@pytest.mark.parametrize("kind", CUT)
def test_the_share_of_lost_pixels_is_the_share_that_differs_from_the_whole_picture(kind):
    pixels = photo(240, 320)
    whole = encoded("JPEG", pixels, quality=85, **CUT[kind])
    expected = opencv(whole)
    for share in (0.3, 0.6, 0.9, 0.97):
        cut = whole[: int(len(whole) * share)]
        differing = (opencv(cut + END) != expected).any(axis=2).mean()
        assert lost_share(cut) == pytest.approx(differing, abs=0.03)
    assert lost_share(whole[:-2]) == 0
    assert lost_share(whole[:-1].rstrip(b"\xff")) == 0


def test_a_cut_between_two_restart_segments_is_seen():
    whole = encoded("JPEG", photo(240, 320), quality=85, restart_marker_blocks=5)
    expected = opencv(whole)
    markers = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", whole)]
    for place in markers[10:-3:12]:
        for cut in (whole[:place], whole[: place + 1], whole[: place + 2]):
            differing = (opencv(cut.rstrip(b"\xff") + END) != expected).any(axis=2).mean()
            assert differing > 0.1
            assert lost_share(cut) == pytest.approx(differing, abs=0.03)


def test_grey_that_is_in_the_picture_is_not_taken_for_lost_pixels(saved):
    pixels = photo(96, 96)
    pixels[40:] = 128
    whole = encoded("JPEG", pixels, quality=85)
    assert lost_share(whole[:-2]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(saved(whole)).shape == (96, 96, 3)


def test_a_jpeg_that_lacks_a_byte_is_used_with_a_warning_and_half_of_one_is_refused(saved):
    whole = encoded("JPEG", photo(240, 320), quality=85)
    for missing, said in ((1, "lacks its end marker, but no pixel"), (60, "is truncated: 0")):
        assert opencv(whole[:-missing]) is None
        with pytest.warns(ImageWarning, match=said):
            found = load_image(saved(whole[:-missing]))
        assert (found != opencv(whole)).any(axis=2).mean() < 0.05
    with pytest.raises(ImageFault) as fault:
        load_image(saved(whole[: len(whole) // 2]))
    assert re.fullmatch(r"is truncated \(the JPEG breaks off, 5\d% of its pixels are missing\)", str(fault.value))


def test_an_end_marker_behind_half_a_jpeg_hides_nothing(saved):
    whole = encoded("JPEG", photo(240, 320), quality=85)
    with pytest.raises(ImageFault, match="is truncated"):
        load_image(saved(whole[: len(whole) // 10 * 3] + END))
    with pytest.warns(ImageWarning, match="of its pixels are missing and grey"):
        load_image(saved(whole[:-150] + END))


def test_a_progressive_jpeg_is_whole_in_its_last_scan_only():
    whole = encoded("JPEG", photo(240, 320), quality=85, progressive=True)
    scans = [start for start in range(len(whole)) if whole[start : start + 2] == b"\xff\xda"]
    assert len(scans) > 3
    assert lost_share(whole[: scans[-1]]) == 1
    assert lost_share(whole[: scans[-2] - 1]) == 1
    assert lost_share(whole[:-12]) < 0.05


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
def test_another_format_without_its_end_is_refused(saved, kind):
    whole = encoded(kind)
    for length in (len(whole) - 5, len(whole) // 2):
        with pytest.raises(ImageFault, match=r"is truncated|cannot be decoded"):
            load_image(saved(whole[:length]))


def test_bytes_behind_the_end_change_nothing(saved):
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = encoded(kind)
        np.testing.assert_array_equal(load_image(saved(whole + bytes(4096))), opencv(whole))


def test_a_name_that_is_not_utf8_is_read_and_printed_with_escapes(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    write(path, encoded("PNG"))
    assert load_image(path).shape == (HEIGHT, WIDTH, 3)
    write(path, b"")
    with pytest.raises(DataError) as fault:
        read_image(path)
    assert str(fault.value).encode("ascii", "backslashreplace").endswith(b"caf\\udce9.png is empty (0 bytes)")


def test_a_bomb_takes_no_memory(tmp_path):
    path = write(tmp_path / "bomb.png", png_of_size(16000, 16000))
    code = (
        "import resource, sys; from pathlib import Path; from cskd_data.images import load_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_image(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    message, grown = done.stdout.splitlines()
    assert "cannot hold" in message
    assert int(grown) < 20_000  # KiB


def test_what_a_check_should_say_about_pictures_it_says_without_decode(tmp_path):
    dark = (np.arange(HEIGHT * WIDTH) % 4096).astype(np.uint16).reshape(HEIGHT, WIDTH)
    write(tmp_path / "dark.png", cv2.imencode(".png", dark)[1].tobytes())
    write(tmp_path / "turned.webp", with_orientation("WEBP", 3))
    write(tmp_path / "cut.jpg", encoded("JPEG", quality=85)[:-1])
    names = ("dark.png", "turned.webp", "cut.jpg")
    data = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 1, 40, 40]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    report = read_coco(write(tmp_path / "a.json", json.dumps(data))).check()
    assert report.errors == ()
    cut, odd = report.notes
    assert cut.examples == ("cut.jpg",)
    assert [example.split()[0] for example in odd.examples] == ["dark.png", "turned.webp"]


def test_the_lost_share_of_a_picture_is_found_once(saved, monkeypatch):
    whole = encoded("JPEG", photo(seed=99), quality=85)
    calls = []
    monkeypatch.setattr(decode, "lost_share", lambda content: calls.append(len(content)) or 0.01)
    for _ in range(3):
        with pytest.warns(ImageWarning, match=r"1\.0% of its pixels"):
            load_image(saved(whole[:-5]))
    assert len(calls) == 1
