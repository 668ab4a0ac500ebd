"""Files are replaced whole, links are followed, modes are kept, and nothing but a regular file is ever replaced."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from nf_zoo.errors import UserError
from nf_zoo.files import refuse_special, write_whole


def test_a_new_file_and_its_folder_are_made_and_an_old_one_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / 'a' / 'b' / 'file'
    write_whole(path, b'one')
    path.chmod(0o640)
    write_whole(path, b'two')
    assert path.read_bytes() == b'two' and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in path.parent.iterdir()] == ['file']


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / 'real').mkdir()
    target = tmp_path / 'real' / 'file'
    target.write_bytes(b'old')
    (tmp_path / 'link').symlink_to('real/file')
    (tmp_path / 'again').symlink_to('link')
    (tmp_path / 'dangling').symlink_to('real/new')
    write_whole(tmp_path / 'again', b'new')
    write_whole(tmp_path / 'dangling', b'newer')
    assert target.read_bytes() == b'new' and (tmp_path / 'real' / 'new').read_bytes() == b'newer'
    assert all((tmp_path / name).is_symlink() for name in ('link', 'again', 'dangling'))
    (tmp_path / 'round').symlink_to('round')
    with pytest.raises(UserError, match='cannot write .*round'):
        write_whole(tmp_path / 'round', b'')
    assert (tmp_path / 'round').is_symlink()


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7))  # the device of /dev/full
    except PermissionError:
        pytest.skip('only root makes device nodes')


SPECIAL: dict[str, Callable[[Path], object]] = {
    'a folder': os.mkdir,
    'a pipe (FIFO)': os.mkfifo,
    'a device': device,
    'a socket': lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
}


@pytest.mark.parametrize('kind', SPECIAL)
@pytest.mark.parametrize('linked', [False, True])
def test_nothing_but_a_regular_file_is_replaced(tmp_path: Path, kind: str, linked: bool) -> None:
    path = tmp_path / 'it'
    SPECIAL[kind](path)
    before = path.stat()
    place = path
    if linked:
        place = tmp_path / 'link'
        place.symlink_to(path)
    with pytest.raises(UserError) as caught:
        write_whole(place, b'data')
    assert str(caught.value) == f'{place} is {kind}, not a file'
    after = path.stat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    with pytest.raises(UserError):
        refuse_special(place)


def test_a_file_that_someone_put_beside_it_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / 'other').write_bytes(b'mine')
    (tmp_path / '.file.tmp').symlink_to('other')
    write_whole(tmp_path / 'file', b'data')
    assert (tmp_path / 'other').read_bytes() == b'mine' and (tmp_path / 'file').read_bytes() == b'data'


@pytest.mark.parametrize('name', ['x' * 300, 'a\0b'])
def test_an_impossible_name_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match='cannot write'):
        write_whole(tmp_path / name, b'')
