"""Lines of text files, however another program has written them."""

import gzip
from pathlib import Path

import pytest

from speechssl.errors import ManifestError
from speechssl.text_files import all_lines, read_lines

PLAIN = "one  1\n\n zwölf 12\t\n  \nlast"
MARK = b"\xef\xbb\xbf"
WAYS = {
    "as Unix": PLAIN.encode(),
    "as Windows": MARK + PLAIN.replace("\n", "\r\n").encode(),
    "as an old Macintosh": PLAIN.replace("\n", "\r").encode(),
    "with a line end at the end": PLAIN.encode() + b"\n",
    "joined of two files with marks": MARK + PLAIN.replace(" zwölf", "\ufeff zwölf").encode(),
    "packed": gzip.compress(MARK + PLAIN.replace("\n", "\r\n").encode()),
}


@pytest.mark.parametrize("way", WAYS)
def test_marks_line_ends_and_packing_change_nothing(way: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(WAYS[way])
    lines = ["one  1", "", " zwölf 12\t", "  ", "last"]
    assert list(all_lines(path)) == [(f"{path}, line {n},", line) for n, line in enumerate(lines, 1)]
    assert list(read_lines(path)) == [(f"{path}, line {n},", lines[n - 1]) for n in (1, 3, 5)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\nb\xff\n", r"list\.txt, line 2, is not UTF-8 text \(invalid start byte\): convert it"),
        ("a\nb\n".encode("utf-16"), r"list\.txt, line 1, is not UTF-8 text"),
        ("a\nb\n".encode("utf-16-le"), r"list\.txt, line 1, is not text: give a text file"),
        (
            gzip.compress(PLAIN.encode() * 9, mtime=0)[:30],
            r"The file \S+list\.txt can't be read \(.+\): give one that is whole",
        ),
        (None, r"The file \S+list\.txt does not exist: check the path"),
    ],
    ids=["a byte", "utf-16", "utf-16-le", "cut off", "missing"],
)
def test_what_is_no_text_is_named_with_its_line(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=said):
        list(read_lines(path))


def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"can't be read \(Is a directory\)"):
        list(read_lines(tmp_path))
