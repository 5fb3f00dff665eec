"""Packing that is killed, that fails, that is done twice at once: the image is whole, or there is none."""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROFILE, sampled
from random_models import random_weights, write_model

from flashref.models.checkpoint import open_checkpoint
from flashref.storage.files import remove_stale_parts
from flashref.storage.image import open_image, pack_image
from flashref.types import ImageError

TESTS = Path(__file__).parents[1] / "support"
LOCK, LOCK_PART = (f"flock {what} {fcntl.LOCK_EX}" for what in ("folder", "part"))
TIMEOUT = 60  # seconds; only a test that fails waits so long


class Stepped:
    """A process of stepped_packing.py: each packing that it is asked for stops before every call."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, TESTS / "stepped_packing.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | {"PYTHONPATH": str(TESTS.parents[1]), "OPENBLAS_NUM_THREADS": "1"},
        )

    def start(self, folder, path, links="links"):
        """Ask for a packing; gives where it stops first."""
        self.process.stdin.write(f"{folder} {path} {links}\n")
        return self.said()

    def said(self):
        answered, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        assert answered, "the packing process says nothing"
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, letter):
        self.process.stdin.write(letter)
        self.process.stdin.flush()

    def step(self, letter="g"):
        """Give the letter; gives where it stops next."""
        self.tell(letter)
        return self.said()

    def go_on(self, at, calls):
        """Let it make this many calls from where it stopped; gives where it stops then."""
        for _ in range(calls):
            at = self.step()
        return at


@pytest.fixture(scope="module")
def processes():
    pair = Stepped(), Stepped()
    yield pair
    for stepped in pair:
        stepped.process.stdin.close()
        assert stepped.process.wait(TIMEOUT) == 0
        stepped.process.stdout.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), random_weights(), predictors=False)


def pack(model, path):
    checkpoint = open_checkpoint(model)
    pack_image(path, checkpoint.tensors, dict(enumerate(checkpoint.layers)), checkpoint.config_text)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "image"
    pack(model, path)
    return path.read_bytes()


@pytest.fixture(scope="module", params=["links", "no-links"])
def calls(request, model, processes, tmp_path_factory):
    """Whether there are hard links, and the names of a packing's calls."""
    stepped, folder = processes[0], tmp_path_factory.mktemp("calls")
    names = [stepped.start(model, folder / "image", request.param)]
    while not names[-1].startswith("ended"):
        names.append(stepped.step())
    assert names.pop() == "ended ok"
    return request.param, names


def test_a_packing_is_made_of_the_calls_that_are_stopped_at(calls):
    links, names = calls
    runs = [(name, len(list(run))) for name, run in itertools.groupby(names)]
    assert [name for name, _ in runs[:5]] == ["open", LOCK_PART, "pwrite", "fsync", "close"]
    assert runs[2][1] > 60
    naming = ["link", "open", LOCK, "rename", "close"][: 1 if links == "links" else 5]
    assert [name for name, _ in runs[5:]] == [*naming, "open", "fsync", "close", "unlink"]
    assert runs[-2] == ("close", 2)  # the folder's descriptor, and at last the one that holds the lock


@pytest.mark.req("IMG-11")
def test_a_kill_at_any_moment_leaves_a_whole_image_or_none(model, processes, calls, whole, tmp_path):
    [stepped, _], (links, names) = processes, calls
    path, named = tmp_path / "image", names.index("link" if links == "links" else "rename")
    first = 0 if links == "links" else names.index("fsync")  # until then it is the same
    each = 3 if PROFILE == "dev" else 1  # of the many writes; of the other calls every one
    for i, name in list(enumerate(names))[first:]:
        if name == "pwrite" and i % each:
            continue
        for letter in "kh" if name == "pwrite" else "k":
            assert stepped.go_on(stepped.start(model, path, links), i) == name
            assert stepped.step(letter) == "ended killed"
            assert path.exists() == (i > named)
            if path.exists():
                assert path.read_bytes() == whole
                path.unlink()
            parts = list(tmp_path.iterdir())
            assert len(parts) == (i > 0 and (links == "links" or i <= named))
            for part in parts:  # what is left is no image before it is a whole one
                assert re.fullmatch(r"\.image\.[0-9a-f]{16}\.part", part.name)
                if part.read_bytes() != whole:
                    with pytest.raises(ImageError, match="get it again"):
                        open_image(part)
                part.unlink()


@pytest.mark.req("IMG-11", "IMG-18")
def test_what_a_kill_leaves_goes_with_the_next_packing_of_that_name(model, processes, whole, tmp_path):
    path = tmp_path / "im.age"
    processes[0].go_on(processes[0].start(model, path), 20)
    assert processes[0].step("k") == "ended killed"
    [part] = tmp_path.iterdir()
    digits = "0123456789abcdef"
    others = [f".im.age.{digits}.part2", f".im.age.{digits[1:]}.part", f"im.age.{digits}.part"]
    others += [f".imXage.{digits}.part", f".im.age.{digits.upper()}.part", f".im.age.x.{digits}.part"]
    for name in (f".im.age.{digits}.part", *others):
        (tmp_path / name).write_bytes(part.read_bytes())
    linked = tmp_path / f".im.age.{digits[::-1]}.part"
    linked.symlink_to(tmp_path / others[0])
    with pytest.warns(UserWarning, match="left by a process that was killed, and removed now") as told:
        pack(model, path)
    expected = {str(part), f"{tmp_path}/.im.age.{digits}.part"}
    assert {str(warning.message).split(": left")[0] for warning in told} == expected
    assert path.read_bytes() == whole
    assert set(os.listdir(tmp_path)) == {"im.age", linked.name, *others}


@pytest.mark.req("IMG-18")
def test_a_part_that_is_being_written_stays(model, processes, calls, whole, tmp_path):
    stepped, (links, names) = processes[0], calls
    path, named = tmp_path / "image", names.index("link" if links == "links" else "rename")
    for i in (names.index(LOCK_PART) + 1, 30, *range(names.index("fsync"), named + 1)):
        assert stepped.go_on(stepped.start(model, path, links), i) == names[i]
        before = os.listdir(tmp_path)
        remove_stale_parts(path)  # a warning would fail
        assert os.listdir(tmp_path) == before and len(before) == 1
        assert stepped.step("r") == "ended ok"
        assert path.read_bytes() == whole
        path.unlink()
    assert os.listdir(tmp_path) == []


@pytest.mark.req("IMG-11", "IMG-18")
def test_a_part_that_is_removed_before_it_is_locked_is_begun_again(model, processes, whole, tmp_path):
    path = tmp_path / "image"
    at = processes[0].start(model, path)
    for _ in range(3):
        assert processes[0].go_on(at, 1) == LOCK_PART
        with pytest.warns(UserWarning, match="left by"):
            remove_stale_parts(path)
        assert os.listdir(tmp_path) == []
        assert processes[0].go_on(LOCK_PART, 1) == "close"
        at = processes[0].step()
        assert at == "open"
    assert processes[0].step("r") == "ended ok"
    assert path.read_bytes() == whole and os.listdir(tmp_path) == ["image"]


@pytest.mark.req("IMG-18")
def test_a_part_that_another_one_has_removed_and_begun_again_stays(tmp_path, monkeypatch):
    part, newer, real = tmp_path / ".image.0123456789abcdef.part", tmp_path / "newer", fcntl.flock
    part.write_bytes(b"stale")
    newer.write_bytes(b"new")

    def flock(*args):
        os.rename(newer, part)
        return real(*args)

    monkeypatch.setattr(fcntl, "flock", flock)
    remove_stale_parts(tmp_path / "image")  # a warning would fail
    assert part.read_bytes() == b"new"


@pytest.mark.req("IMG-18")
@pytest.mark.parametrize("missing", ["module", "locks"])
def test_where_there_are_no_locks_nothing_is_taken_for_stale(model, whole, tmp_path, monkeypatch, missing):
    part = tmp_path / ".image.0123456789abcdef.part"
    part.write_bytes(b"somebody may be writing this")
    if missing == "module":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        error = OSError(errno.ENOLCK, "No locks available")
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(error))
    pack(model, tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == whole
    assert set(os.listdir(tmp_path)) == {"image", part.name}


def ends(*ended):
    """Which of the two packed; exactly one did, or the name was taken."""
    assert all(end == "ended ok" or "image: exists, and files are never overwritten" in end for end in ended)
    assert ended.count("ended ok") == 1
    return ended.index("ended ok")


@pytest.mark.req("IMG-11")
def test_who_packs_while_another_one_does_wins_or_is_told(model, processes, calls, whole, tmp_path):
    (first, second), (links, names) = processes, calls
    named, winners = names.index("link" if links == "links" else "rename"), []
    stops = {0, 1, 2, *range(names.index("fsync") - 1, len(names))}
    if links == "no-links":
        stops.remove(named)  # there the first one holds the lock: the next test
    for i in sorted(stops):
        path = tmp_path / f"{i}" / "image"
        path.parent.mkdir()
        first.go_on(first.start(model, path, links), i)
        assert path.exists() == (i > named)
        at = second.start(model, path, links)
        two = at if at.startswith("ended") else second.step("r")
        assert path.read_bytes() == whole
        one = first.step("r")
        winners.append(ends(one, two))
        assert path.read_bytes() == whole and os.listdir(path.parent) == ["image"]
    assert winners == [int(i <= named) for i in sorted(stops)]


@pytest.mark.req("IMG-11")
def test_without_hard_links_one_at_a_time_looks_for_the_name(model, processes, whole, tmp_path):
    (first, second), path = processes, tmp_path / "image"
    for stepped, stop in ((first, "rename"), (second, LOCK)):
        at = stepped.start(model, path, "no-links")
        while at != stop:
            at = stepped.step()
    second.tell("r")  # and it waits for the lock
    assert ends(first.step("r"), second.said()) == 0
    assert path.read_bytes() == whole and os.listdir(tmp_path) == ["image"]


@pytest.mark.req("IMG-11")
@pytest.mark.parametrize("links", ["links", "no-links"])
def test_two_that_run_side_by_side_leave_one_whole_image(model, processes, whole, tmp_path, links):
    for i in range(5):
        path = tmp_path / f"{i}" / "image"
        path.parent.mkdir()
        for stepped in processes:
            assert stepped.start(model, path, links) == "open"
        for stepped in processes:
            stepped.tell("r")
        ends(*[stepped.said() for stepped in processes])
        assert path.read_bytes() == whole and os.listdir(path.parent) == ["image"]


# Calls that fail


@contextlib.contextmanager
def failing(monkeypatch, number, error, links):
    """Call `number` of those that packing makes fails; gives the list of their names so far."""
    made = []

    def counted(name, call):
        def step(*args):
            made.append(name)
            struck = len(made) == number + 1
            if struck and name != "close":
                raise error
            if name == "link" and links == "no-links":
                raise OSError(errno.EPERM, "Operation not permitted")
            result = None if name == "fsync" else call(*args)
            if struck:  # a descriptor is closed, also where closing fails
                raise error
            return result

        return step

    with monkeypatch.context() as patch:
        for name in ("open", "dup", "pwrite", "fsync", "close", "link", "rename"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield made


@pytest.mark.req("IMG-11", "IMG-17")
@pytest.mark.parametrize("code", sampled([errno.ENOSPC, errno.EIO], [errno.ENOSPC]))
@pytest.mark.parametrize("links", ["links", "no-links"])
def test_whichever_call_fails_there_is_one_error_and_nothing_is_left(
    model, whole, tmp_path, monkeypatch, code, links
):
    path, old, error = tmp_path / "image", tmp_path / "old", OSError(code, os.strerror(code))
    old.write_bytes(whole)
    message = (
        "needs .* make room" if code == errno.ENOSPC else "cannot be written .Input/output error.; check"
    )
    failed = []
    for number in itertools.count():
        with failing(monkeypatch, number, error, links) as made:
            told = None
            try:
                pack(model, path)
            except ImageError as caught:
                told = str(caught)
        if told:
            failed.append(made[number])
            assert re.search(f"image: {message}", told) and "\n" not in told
            assert os.listdir(tmp_path) == ["old"]
            continue
        assert path.read_bytes() == whole and sorted(os.listdir(tmp_path)) == ["image", "old"]
        path.unlink()
        if len(made) <= number:  # there is no such call any more
            break
        assert made[number] == "close" and failed[-1] in (
            "open",
            "rename",
            "fsync",
        )  # a folder's, not the file's
    assert old.read_bytes() == whole
    assert {"open", "dup", "pwrite", "fsync", "close"} <= set(failed)
    assert failed.count("fsync") == 2 and failed[-1] == "fsync"
    assert ("link" if links == "links" else "rename") in failed
