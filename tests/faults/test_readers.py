"""What tests/faults/fuzz_readers.py has found in the readers of archives and records, kept as cases."""

import base64

import pytest

from data.download import unpack
from data.prepare import verify

# A zip whose directory names another member than its file has, and a place before the file's beginning.
ZIP_OF_A_NEGATIVE_PLACE = (
    "UEsDBBQAAAAAAHd3eV2v2uCaCAAAAAgAAAAPAAAAY2xhc3MvaW1hZ2UuanBnMTIzNDU2NzhQSwECFAMUAAAAAAB3d3ldr9rgmggAAAAIAAAADwAA"
    "AAAAAAAAAAAAgAEAAAAAY2wvZ2Fpc21hc2UuanBnUEsFBgAAAAABAAEAPQAAADYAAAAAAA=="
)


@pytest.mark.parametrize("contents", [ZIP_OF_A_NEGATIVE_PLACE])
def test_a_damaged_archive_is_answered_by_its_name(tmp_path, contents):
    archive = tmp_path / "archive"
    archive.write_bytes(base64.b64decode(contents))
    with pytest.raises(ValueError, match="archive cannot be unpacked"):
        unpack(archive, tmp_path / "inside")


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\n",
        b"class,file_name,split,bytes\nsea,\xff\xff1.jpg,train,10\n",
        b"class,file_name,split,bytes\nsea,1.jpg,train\n",
        b"class,file_name,split,bytes\nsea,1.jpg,train,ten\n",
        b'class,file_name,split,bytes\nsea,"1.jpg,train,10\n',
        b"class,file_name,split\nsea,1.jpg,train\n",
        b"a,b,c,d\nsea,1.jpg,train,10\n",
    ],
)
def test_a_damaged_record_is_answered_by_its_folder_and_what_to_do(tmp_path, contents):
    (tmp_path / "split.csv").write_bytes(contents)
    with pytest.raises(ValueError, match=r"is not as it was written here .*delete this one to prepare it anew"):
        verify("nature", tmp_path)
