"""Whole runs over storage that fails: harmless faults change nothing, others end in one error."""

from collections import namedtuple
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
from image_to_read import direct_reader

import flashref
from flashref.decode import empty_layer, sum_resident
from flashref.models.checkpoint import open_checkpoint
from flashref.models.decoding import Decoder, flash_ffn
from flashref.models.generate import generate, greedy
from flashref.models.model import load_model, one_at_a_time
from flashref.models.predictors import load_predictors
from flashref.models.tokens import encode_bytes
from flashref.predictor import predict_active
from flashref.slots import swap_with_last
from flashref.storage.device import PRESETS
from flashref.storage.faults import (
    faulty_preadv,
    faulty_reader,
    random_faults,
)
from flashref.storage.image import image_tensor, open_image, pack_image
from flashref.storage.readers import memory_reader
from flashref.types import ImageError, ReadError

HARMLESS = ("short", "interrupted", "slow")
HARMFUL = ("error", "flip", "torn")
DEVICE = PRESETS["paper_m1max_fig2b"]
TINY = Path(flashref.__file__).parent / "data" / "tiny"
PROMPT, NEW = encode_bytes("The c"), 4
Run = namedtuple("Run", "path decoder sound")  # decoder: without its reader; sound: what is right


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    checkpoint, path = open_checkpoint(TINY), tmp_path_factory.mktemp("tiny") / "image"
    pack_image(path, checkpoint.tensors, dict(enumerate(checkpoint.layers)), checkpoint.config_text)
    image = open_image(path)
    config = checkpoint.config
    model = load_model(config, partial(image_tensor, image))
    trained = load_predictors(TINY / "predictors.safetensors", config.layers, config.neurons, config.width)
    layers = [
        empty_layer(
            image.layouts[layer][0],
            ffn,
            k=3,
            capacity=100,  # less than some tokens want: there is a bypass, in several batches
            bypass_rows=40,
            checksums=image.checksums[layer][0],
        )
        for layer, ffn in enumerate(model.ffns)
    ]
    decoder = Decoder(
        model,
        tuple(layers),
        tuple(partial(predict_active, predictor=one) for one in trained.layers),
        swap_with_last,
        None,
        sum_resident,
    )
    sound = Run(path, decoder, None)
    return sound._replace(sound=decoded(sound, memory_reader(path.read_bytes(), DEVICE)))


def decoded(run, read, around=lambda feed_forward: feed_forward, trace=None):
    """The new tokens, and layer by layer everything about every step but its times."""
    trace = [] if trace is None else trace

    def observe(layer, x, y, step):
        sets = [ids.tobytes() for ids in chain(step[:5], step.moves)]
        trace.append((layer, x.tobytes(), y.tobytes(), sets, step.io[:3]))

    feed_forward = around(flash_ffn(run.decoder._replace(read=read), observe))
    config = run.decoder.model.config
    tokens = generate(
        one_at_a_time(run.decoder.model, feed_forward),
        PROMPT,
        NEW,
        greedy,
        context=config.context,
        vocabulary=config.vocabulary,
    )
    return [token for token, _ in tokens], trace


def test_the_run_that_the_others_are_compared_with_is_one(tiny):
    tokens, trace = tiny.sound
    assert len(tokens) == NEW and len(trace) == 4 * (len(PROMPT) + NEW - 1)
    assert any(sets[3] for _, _, _, sets, _ in trace)  # a bypass


@pytest.mark.parametrize("seed", range(2))
def test_harmless_faults_change_nothing_at_all_in_a_run(tiny, seed):
    waited = []
    preadv = faulty_preadv(random_faults(seed, 20_000, 0.4, HARMLESS), waited.append)
    with direct_reader(tiny.path, 4, 4096, preadv=preadv) as reader:
        assert decoded(tiny, reader.read) == tiny.sound
    assert len(waited) > 50


@contextmanager
def at_system_calls(tiny, seed):
    """A reader with a schedule for its calls: short ones and interruptions among the harmful ones."""
    schedule = random_faults(seed, 20_000, 0.1, HARMLESS)
    schedule |= random_faults(seed, 20_000, 0.004, HARMFUL)
    preadv = faulty_preadv(schedule, lambda nanoseconds: None)
    with direct_reader(tiny.path, 1, 4096, preadv=preadv) as reader:
        yield reader.read


@contextmanager
def at_batches(tiny, seed):
    """The memory reader, with a schedule for its batches."""
    yield faulty_reader(memory_reader(tiny.path.read_bytes(), DEVICE), random_faults(seed, 1000, 0.4))


@pytest.mark.parametrize("faulty", [at_system_calls, at_batches])
def test_a_run_ends_in_one_error_before_a_wrong_step_and_can_be_run_again(tiny, faulty):
    ends = []
    for seed in range(3):
        with faulty(tiny, seed) as read:
            for _ in range(2):  # the reader is used again after its error
                trace = []
                try:
                    assert decoded(tiny, read, trace=trace) == tiny.sound
                    ends.append("whole")
                except (ReadError, ImageError) as error:
                    ends.append(type(error))
                assert trace == tiny.sound[1][: len(trace)]
    assert {ReadError, ImageError} <= set(ends)


@pytest.mark.parametrize("faulty", [at_system_calls, at_batches])
def test_a_run_that_tries_again_after_an_error_gives_the_same_text(tiny, faulty):
    errors = []

    def stubborn(feed_forward):
        def try_again(layer, x):
            while True:
                try:
                    return feed_forward(layer, x)
                except (ReadError, ImageError) as error:
                    errors.append(type(error))

        return try_again

    for seed in range(2):
        with faulty(tiny, seed) as read:
            assert decoded(tiny, read, stubborn) == tiny.sound
    assert {ReadError, ImageError} == set(errors)
