import hashlib
import io
import random
import tarfile
import zipfile

import pytest

from data import download as download_module
from data.download import download, unpack


def files_below(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


BODY = random.Random(0).randbytes(300_000)
BODY_CHECKSUM = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_partial_download_is_completed_by_the_next(ranges, server, out):
    server.files, server.ranges, server.cut_at = {"/file": BODY}, ranges, 100_000
    with pytest.raises(ConnectionError, match="broke off after 100,000 of 300,000 bytes"):
        download(f"{server.address}/file", out / "file", BODY_CHECKSUM, progress=False)
    assert files_below(out) == {"file.part": BODY[:100_000]}
    server.cut_at = None
    download(f"{server.address}/file", out / "file", BODY_CHECKSUM, progress=False)
    assert files_below(out) == {"file": BODY}
    assert server.requests == [None, "bytes=100000-"]


def test_a_part_that_is_longer_than_the_file_is_downloaded_anew(server, out):
    server.files = {"/file": BODY}
    (out / "file.part").write_bytes(b"x" * 400_000)
    download(f"{server.address}/file", out / "file", BODY_CHECKSUM, progress=False)
    assert files_below(out) == {"file": BODY}


def test_a_download_with_a_wrong_checksum_leaves_nothing(server, out):
    server.files = {"/file": BODY}
    with pytest.raises(ValueError, match=f"{server.address}/file has the wrong checksum"):
        download(f"{server.address}/file", out / "file", "md5:" + "0" * 32, progress=False)
    assert list(out.iterdir()) == []


def write_tar(path, name, **attributes):
    member = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    with tarfile.open(path, "w") as tar:
        good = tarfile.TarInfo("good.txt")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        tar.addfile(member, io.BytesIO(b""))
    return path


def write_zip(path, name, mode=0o100644):
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("good.txt", "good")
        member = zipfile.ZipInfo(name)
        member.create_system, member.external_attr = 3, mode << 16
        zipped.writestr(member, "../../outside")
    return path


@pytest.mark.parametrize(
    ("write", "name", "attributes"),
    [
        (write_zip, "../evil.jpg", {}),
        (write_zip, "coast/../../evil.jpg", {}),
        (write_zip, "/tmp/evil.jpg", {}),
        (write_zip, "C:/evil.jpg", {}),
        (write_zip, "link", {"mode": 0o120777}),
        (write_tar, "../evil.jpg", {}),
        (write_tar, "/tmp/evil.jpg", {}),
        (write_tar, "link", {"type": tarfile.SYMTYPE, "linkname": "../../outside"}),
        (write_tar, "link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        (write_tar, "hard", {"type": tarfile.LNKTYPE, "linkname": "../../outside"}),
        (write_tar, "device", {"type": tarfile.CHRTYPE}),
    ],
)
def test_an_archive_that_leads_outside_is_refused_before_anything_is_written(write, name, attributes, tmp_path, out):
    archive = write(tmp_path / "archive", name, **attributes)
    with pytest.raises(ValueError, match="is refused") as refused:
        unpack(archive, out / "unpacked")
    assert str(archive) in str(refused.value) and repr(name) in str(refused.value)
    assert list(out.iterdir()) == []


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, out, monkeypatch):
    monkeypatch.setattr(download_module, "UNPACKED_BYTES_LIMIT", 3)
    with pytest.raises(ValueError, match="would unpack to"):
        unpack(write_zip(tmp_path / "archive.zip", "more.txt"), out / "unpacked")
    assert list(out.iterdir()) == []
