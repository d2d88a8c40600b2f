"""The file of decoded images: what it serves, and all that may happen to it and its folder."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import break_files, smooth_images
from PIL import Image

from reid_fast.console import Console
from reid_fast.data.images import ImageStream, open_files, store_file, stream
from reid_fast.data.images.store_file import StoreFile, open_store_file
from reid_fast.errors import UserError

N, SIZE = 150, (9, 7)
CPU = torch.device("cpu")
UNSAMPLED = 5  # an image that is not looked at when a file is opened
BUILDER = """
import os, signal, sys
from pathlib import Path
import torch
from reid_fast.console import Console
from reid_fast.data.images import store_file

folder, images, die = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "die"
decoded = store_file.decoded

def halved(*args, **options):
    for rows, pixels in decoded(*args, **options):
        yield slice(0, 50), pixels[:50]
        os.kill(os.getpid(), signal.SIGKILL)

if die:
    store_file.decoded = halved
paths = sorted(images.iterdir())
store_file.open_store_file(folder, paths, (9, 7), device=torch.device("cpu"), threads=1, console=Console())
"""


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(smooth_images(N, 11, 6)):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def expected(originals):
    """[N, 3, H, W] as the stream serves them."""
    return streamed(sorted(originals.iterdir()))


@pytest.fixture
def paths(originals, tmp_path):
    """Images that a test may change."""
    return sorted(shutil.copytree(originals, tmp_path / "images").iterdir())


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "cache"
    path.mkdir()
    return path


@pytest.fixture
def decoded(monkeypatch):
    """How often each file has been decoded."""
    counts, read = Counter(), stream.read_image
    monkeypatch.setattr(stream, "read_image", lambda path: counts.update([path]) or read(path))
    return counts


def streamed(paths):
    return torch.cat(list(ImageStream(paths, SIZE, batch_size=64).plain(np.arange(len(paths)), 64)))


def opened(folder, paths, size=SIZE):
    return open_store_file(folder, paths, size, device=CPU, threads=1, console=Console())


def served(files):
    return torch.cat(list(files.plain(np.arange(len(files.paths)), 32)))


def held_or_streamed(folder, paths):
    return open_files(paths, SIZE, cache=0, cache_dir=folder, device=CPU, threads=1, console=Console())


def only(folder):
    (path,) = folder.iterdir()
    return path


def pixels_start():
    return -(-(80 + 4 * N) // 4096) * 4096


def test_a_file_is_made_once_and_serves_what_the_stream_does(folder, paths, expected, decoded):
    assert torch.equal(served(opened(folder, paths)), expected)
    assert only(folder).suffix == ".store"
    assert only(folder).stat().st_size == pixels_start() + N * 9 * 7 * 3
    decoded.clear()
    assert torch.equal(served(opened(folder, paths)), expected)
    assert not decoded


def test_it_is_mapped_for_reading_only(folder, paths):
    assert not opened(folder, paths)._images.flags.writeable


def test_one_made_before_serves_where_nothing_can_be_written(folder, paths, expected, monkeypatch):
    opened(folder, paths)
    monkeypatch.setattr(os, "open", lambda *args: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    assert torch.equal(served(opened(folder, paths)), expected)


def nothing(path):
    path.write_bytes(b"")


def foreign(path):
    path.write_bytes(b"something else" * 4000)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def longer(path):
    with path.open("ab") as file:
        file.write(b"x")


def changed_at(place):
    def change(path):
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    change.__name__ = f"changed_at_{place}"
    return change


def of_other_images(path):
    (other,) = (path.parent / "other").iterdir()
    shutil.copy(other, path)


DAMAGES = [nothing, foreign, zeros, cut, longer, of_other_images]
DAMAGES += [changed_at(place) for place in (0, 20, 60, 81, 80 + 4 * N - 1, pixels_start(), -1)]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_foreign_or_damaged_file_is_made_anew(folder, paths, expected, decoded, damage):
    opened(folder, paths)
    path = only(folder)
    if damage is of_other_images:
        (folder / "other").mkdir()
        opened(folder / "other", paths[::-1])
    damage(path)
    decoded.clear()
    assert torch.equal(served(opened(folder, paths)), expected)
    assert set(decoded.values()) == {1}
    decoded.clear()
    assert torch.equal(served(opened(folder, paths)), expected)
    assert not decoded


def test_damage_that_is_not_seen_at_once_is_seen_before_it_is_served(folder, paths, expected):
    opened(folder, paths)
    changed_at(pixels_start() + UNSAMPLED * 9 * 7 * 3)(only(folder))
    files = opened(folder, paths)
    others = np.delete(np.arange(N), UNSAMPLED)
    assert torch.equal(torch.cat(list(files.plain(others, 32))), expected[others])
    with pytest.raises(UserError, match=r"\.store is damaged: .*--resume"):
        list(files.plain(np.array([7, UNSAMPLED, 3]), 3))
    assert not list(folder.iterdir())
    assert torch.equal(served(opened(folder, paths)), expected)


def test_images_that_have_changed_places_are_seen(folder, paths):
    """Each is as it was written, but elsewhere."""
    opened(folder, paths)
    path, length = only(folder), 9 * 7 * 3
    content = bytearray(path.read_bytes())
    one, two = (
        slice(pixels_start() + i * length, pixels_start() + (i + 1) * length) for i in (UNSAMPLED, UNSAMPLED + 1)
    )
    content[one], content[two] = content[two], content[one]
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        served(opened(folder, paths))


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_known_before_anything_is_decoded(folder, paths, expected, decoded, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full)
    files, held = held_or_streamed(folder, paths)
    assert not decoded
    assert str(held).endswith(f"; the file in {folder} cannot be made (No space left on device)")
    assert not list(folder.iterdir())
    assert torch.equal(served(files), expected)


def test_a_disk_that_is_full_after_all_leaves_nothing(folder, paths, expected, monkeypatch):
    """Of what copies on write, room that was given is not sure."""
    whole = store_file.decoded

    def some(*args, **options):
        yield next(whole(*args, **options))
        full()

    monkeypatch.setattr(store_file, "decoded", some)
    files, held = held_or_streamed(folder, paths)
    assert held.tier == "stream"
    assert "No space left on device" in str(held)
    assert not list(folder.iterdir())
    assert torch.equal(served(files), expected)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("missing", "No such file or directory"),
        ("images/000.png", "Not a directory"),
        ("/sys", "Permission denied"),  # for root too
    ],
)
def test_a_folder_that_takes_no_file_is_named_and_images_are_streamed(tmp_path, paths, expected, where, why):
    files, held = held_or_streamed(tmp_path / where, paths)
    assert str(held).endswith(f"; the file in {tmp_path / where} cannot be made ({why})")
    assert torch.equal(served(files), expected)


def test_a_folder_of_the_files_name_is_left_alone(folder, paths, expected):
    opened(folder, paths)
    path = only(folder)
    path.unlink()
    path.mkdir()
    files, held = held_or_streamed(folder, paths)
    assert "directory" in str(held)
    assert only(folder) == path
    assert torch.equal(served(files), expected)


def test_a_broken_image_is_named_and_leaves_nothing(folder, paths):
    bad = break_files(paths[0].parent, paths[0])[1]
    with pytest.raises(UserError, match=bad.name):
        opened(folder, [*paths, bad])
    assert not list(folder.iterdir())


def other_content(path):
    """Of the same size and time."""
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(content + b"\0")
    os.utime(path, ns=(time, time))


def other_time(path):
    time = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(time, time))


def other_image(path):
    Image.fromarray(np.full((11, 6, 3), 200, np.uint8)).save(path)


@pytest.mark.parametrize("change", [other_content, other_time, other_image])
def test_of_changed_images_a_file_is_made_anew_and_the_old_one_removed(folder, paths, decoded, change):
    opened(folder, paths)
    before = only(folder)
    change(paths[UNSAMPLED])
    decoded.clear()
    files = opened(folder, paths)
    assert set(decoded.values()) == {1}
    assert torch.equal(served(files), streamed(paths))
    assert only(folder) != before


def test_an_old_file_that_is_in_use_stays_until_it_is_not(folder, paths, expected):
    old = opened(folder, paths)
    before = only(folder)
    other_image(paths[0])
    new = opened(folder, paths)
    assert before.exists()
    assert torch.equal(served(old), expected)
    assert torch.equal(served(new), streamed(paths))
    del old
    other_image(paths[1])
    opened(folder, paths)
    assert not before.exists()


@pytest.mark.parametrize(
    "other",
    [lambda paths: (paths[::-1], SIZE), lambda paths: (paths[:-1], SIZE), lambda paths: (paths, (8, 7))],
    ids=["order", "fewer", "size"],
)
def test_another_list_or_size_has_a_file_of_its_own(folder, paths, expected, other):
    opened(folder, paths)
    opened(folder, *other(paths))
    assert len(list(folder.iterdir())) == 2
    assert torch.equal(served(opened(folder, paths)), expected)


def test_a_relative_path_is_the_same_file(folder, paths, expected, decoded, monkeypatch):
    opened(folder, paths)
    decoded.clear()
    monkeypatch.chdir(paths[0].parent)
    assert torch.equal(served(opened(folder, [Path(path.name) for path in paths])), expected)
    assert not decoded


def test_cpu_and_cuda_which_decode_to_other_bits_have_files_of_their_own(folder, paths):
    files = [store_file._File.of(folder, paths, SIZE, torch.device(kind), Console()) for kind in ("cpu", "cuda")]
    assert files[0].stem != files[1].stem
    assert files[0].fingerprint != files[1].fingerprint


def test_any_name_of_an_image_will_do(folder, paths, expected):
    odd = Path(os.fsdecode(os.fsencode(paths[0].parent) + b"/\xff\n .png"))
    paths[0].rename(odd)
    assert torch.equal(served(opened(folder, [odd, *paths[1:]])), expected)


def test_an_image_in_an_archive_changes_with_it(tmp_path):
    archive = tmp_path / "shard.tar"
    archive.write_bytes(b"12345")
    os.utime(archive, ns=(7, 7))
    assert store_file._state(str(archive / "a/key.jpg")) == (5, 7)
    assert store_file._state(str(tmp_path / "missing.jpg")) == (-1, -1)


def test_other_builders_wait_and_take_what_the_first_has_made(folder, paths, expected, decoded, monkeypatch):
    building, go_on, whole = threading.Event(), threading.Event(), store_file.decoded

    def slow(*args, **options):
        building.set()
        assert go_on.wait(30)
        yield from whole(*args, **options)

    class Lines(Console):
        def say(self, text=""):
            said.append(text)
            if len(said) == 2:
                go_on.set()

    monkeypatch.setattr(store_file, "decoded", slow)
    monkeypatch.setattr(store_file, "_PATIENCE", 0.01)
    said, stores = [], []

    def build():
        stores.append(open_store_file(folder, paths, SIZE, device=CPU, threads=1, console=Lines()))

    threads = [threading.Thread(target=build) for _ in range(3)]
    threads[0].start()
    assert building.wait(30)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert said == 2 * [f"another process decodes these images into {folder}: waiting for it"]
    assert set(decoded.values()) == {1}
    assert len(stores) == 3
    assert all(torch.equal(served(store), expected) for store in stores)
    assert only(folder).suffix == ".store"


def test_what_another_process_has_made_just_before_the_lock_is_taken(folder, paths, expected, decoded, monkeypatch):
    locked = store_file._File.locked

    def late(self):
        monkeypatch.setattr(store_file._File, "locked", locked)
        opened(folder, paths)
        decoded.clear()
        return locked(self)

    monkeypatch.setattr(store_file._File, "locked", late)
    assert torch.equal(served(opened(folder, paths)), expected)
    assert not decoded
    assert only(folder).suffix == ".store"


def test_anything_under_the_unfinished_files_name_is_written_over(folder, paths, expected):
    opened(folder, paths)
    path = only(folder)
    path.rename(path.with_suffix(".part"))
    longer(path.with_suffix(".part"))
    assert torch.equal(served(opened(folder, paths)), expected)
    assert only(folder) == path


def test_a_builder_that_is_killed_leaves_nothing_that_is_served_and_blocks_nobody(folder, paths, expected):
    command = [sys.executable, "-c", BUILDER, str(folder), str(paths[0].parent), "die"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert only(folder).suffix == ".part"
    assert torch.equal(served(opened(folder, paths)), expected)
    assert only(folder).suffix == ".store"


def test_what_killed_builders_of_other_images_have_left_is_removed(folder, paths):
    left = folder / "reid-fast-8x8-0123-4567.part"
    left.write_bytes(b"half")
    mine = folder / "notes.part"
    mine.write_bytes(b"of the user")
    opened(folder, paths)
    assert sorted(path.suffix for path in folder.iterdir()) == [".part", ".store"]
    assert mine.exists()


def test_a_file_that_cannot_be_read_back_is_not_made_for_ever(folder, paths, expected, monkeypatch):
    monkeypatch.setattr(StoreFile, "intact", lambda self, indices: False)
    files, held = held_or_streamed(folder, paths)
    assert "does not read as it was written" in str(held)
    assert torch.equal(served(files), expected)
