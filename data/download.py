"""Archives from elsewhere: downloaded (a partial download is completed), checked, and unpacked inside their folder."""

import errno
import http.client
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

from data.files import digest_of_file

UNPACKED_BYTES_LIMIT = 20e9  # the largest of our data sets has 0.4e9: more is a decompression bomb
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class RefusedError(ValueError):
    """An archive that can be read but must not be unpacked."""


def download(url: str, path: Path, checksum: str | None = None, progress: bool = True) -> None:
    """Download a file; a partial download is continued where it stopped, from `<path>.part`.

    A file that is there already is only checked.  checksum: "md5:HEX" or "sha256:HEX", compared before the file gets
    its name; a file that fails is removed.  Raises ValueError on a wrong checksum, ConnectionError if the address
    cannot be reached or the download breaks off.
    """
    if checksum:
        _parse_checksum(checksum)  # a mistyped one is refused before the download, not after it
    fetched = path if path.exists() else _download_part(url, path.with_name(path.name + ".part"), progress)
    if checksum:
        try:
            check_checksum(fetched, checksum, url)
        except ValueError:
            fetched.unlink()
            raise
    fetched.rename(path)


def _download_part(url: str, part: Path, progress: bool) -> Path:
    """Fetch what `part` lacks of the file, or all of it where the server knows no ranges; returns `part`."""
    advice = "check the network, or name a folder or archive of your own with --source"
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            if response.status != 206:  # the server sends the complete file, whatever was asked for
                start = 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            bar = {"total": total, "initial": start, "desc": "download", "disable": None if progress else True}
            with open(part, "ab" if start else "wb") as file, tqdm.wrapattr(file, "write", **bar) as counted_file:
                shutil.copyfileobj(response, counted_file)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # the part is as long as the file or longer: begin again
            part.unlink()
            return _download_part(url, part, progress)
        raise ConnectionError(f"cannot download {url} (HTTP {error.code} {error.reason}): {advice}") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise ConnectionError(f"cannot download {url} ({getattr(error, 'reason', error)}): {advice}") from error
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(
            f"the download of {url} broke off after {part.stat().st_size:,} of {total:,} bytes: "
            "the same command continues from there"
        )
    return part


def check_checksum(path: Path, checksum: str, where: str | Path) -> None:
    """Raise ValueError unless the file has the checksum, "md5:HEX" or "sha256:HEX"; where: its name in the message."""
    algorithm, expected = _parse_checksum(checksum)
    actual = digest_of_file(path, algorithm)
    if actual != expected:
        raise ValueError(f"{where} has the wrong checksum: {algorithm}:{actual}, expected {algorithm}:{expected}")


def _parse_checksum(checksum: str) -> tuple[str, str]:
    algorithm, _, digest = checksum.lower().partition(":")
    length = {"md5": 32, "sha256": 64}.get(algorithm)
    if len(digest) != length or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"checksum {checksum!r} is neither md5: and 32 hex digits nor sha256: and 64 hex digits")
    return algorithm, digest


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive (plain, gz, bz2 or xz, identified by its content) into a folder.

    Raises ValueError naming archive and member, before anything is written, if a member lies or links outside the
    folder or is a device; also if the file is no archive, is damaged, or would unpack to more than 20 GB.
    """
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                _check_tar_members(archive, opened.getmembers(), folder)
                opened.extractall(folder, filter="data")
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _check_zip_members(archive, opened.infolist())
                opened.extractall(folder)
        else:
            raise RefusedError(f"{archive} is neither a zip nor a tar archive, or is cut short: get it again")
    except RefusedError:
        raise
    except Exception as error:  # of damaged files zipfile and tarfile raise a dozen kinds, and fuzzing found more
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise ValueError(f"{archive} cannot be unpacked ({error}): get it again") from error


def _check_tar_members(archive: Path, members: Sequence[tarfile.TarInfo], folder: Path) -> None:
    for member in members:
        _check_member_name(archive, member.name)  # the filter would only strip a leading slash
        try:
            tarfile.data_filter(member, folder)
        except tarfile.FilterError as error:
            raise _refusal(archive, member.name, "is a link that leads outside the folder, or a device") from error
    _check_unpacked_bytes(archive, sum(member.size for member in members))


def _check_zip_members(archive: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    for member in members:
        _check_member_name(archive, member.filename)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _refusal(archive, member.filename, "is a link")
    _check_unpacked_bytes(archive, sum(member.file_size for member in members))


def _check_member_name(archive: Path, member_name: str) -> None:
    path = PureWindowsPath(member_name)  # it knows both separators, and drive letters
    if path.anchor or ".." in path.parts:
        raise _refusal(archive, member_name, "would land outside the folder")


def _refusal(archive: Path, member_name: str, reason: str) -> RefusedError:
    return RefusedError(f"{archive} is refused, its member {member_name!r} {reason}: get it from a source you trust")


def _check_unpacked_bytes(archive: Path, unpacked_bytes: int) -> None:
    if unpacked_bytes > UNPACKED_BYTES_LIMIT:
        limit = f"{UNPACKED_BYTES_LIMIT / 1e9:g} GB"
        raise RefusedError(
            f"{archive} would unpack to {unpacked_bytes / 1e9:,.1f} GB: no data set here has over {limit}"
        )
