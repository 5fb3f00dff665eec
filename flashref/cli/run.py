"""`flashref run`: let a model write text from flash, and report what was checked and what it cost."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.text import Text as Styled

from flashref.cli import options
from flashref.cli.report import Output, progress
from flashref.cli.tables import Column, print_table, say
from flashref.models.checkpoint import TINY
from flashref.models.opened import OpenModel, open_model
from flashref.models.predictors import FILE_NAME
from flashref.models.prepared import PLACEMENTS, PREDICTORS, READERS, SEMANTICS
from flashref.models.text import GeneratedText, TextRequest
from flashref.models.tokens import read_text
from flashref.simulate.findings import Findings, find
from flashref.simulate.run_report import findings_in_words, method_tables
from flashref.simulate.runs import trace_of_text
from flashref.simulate.trace_file import Description, save_trace
from flashref.storage.progress import unseen
from flashref.types import DomainError

PROMPT = "And the king said unto David, "
PERPLEXITY_TOKENS = 1024


def add_parser(commands: Any) -> None:
    """Add the command `run`."""
    parser = commands.add_parser(
        "run",
        help="let a model write text while its weights are read from flash",
        description="Lets a model write text while its feed-forward weights are read from flash as they are "
        "needed. Every step is checked against the definition, and the report says what each token cost. "
        "Without options it runs a tiny model that is shipped.",
    )
    _add_model_options(parser)
    _add_memory_options(parser)
    _add_text_options(parser)
    _add_output_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(asked: argparse.Namespace) -> int:
    """Open the model, write the text, and report; 0 if everything that was checked held, else 1."""
    _check_outputs(asked)
    model = open_model(
        asked.model,
        memory=asked.memory,
        window=asked.window,
        predictor=asked.predictor,
        predictors=asked.predictors,
        semantics=asked.semantics,
        placement=asked.placement,
        device=asked.device,
        reader=asked.reader,
        image=asked.image,
        activation=asked.activation,
        proof=not asked.no_proof,
    )
    prompt = asked.prompt if asked.prompt_ids is None else asked.prompt_ids
    request = model.request(prompt, asked.tokens, asked.temperature, asked.seed, asked.cold)
    held_out = _held_out(asked, model)
    with model:
        with progress(asked.quiet) as advance:
            model.open(advance)
        shown = not asked.json and Output().is_terminal
        text = _write(model, request, shown, asked.quiet)
        with progress(asked.quiet) as advance:
            findings = find(model, text, asked.device, held_out, advance)
    if asked.json:
        print(json.dumps(findings.as_json(), indent=2, allow_nan=False))
    else:
        _show(findings, text_too=not shown)
    if asked.save_trace is not None:  # last, so that the result is printed even if the file cannot be written
        sys.stdout.flush()
        source = f"flashref run --predictor {asked.predictor} --semantics {asked.semantics}"
        description = Description(what=findings.model, source=source)
        save_trace(asked.save_trace, trace_of_text(model, text), description)
    return 0 if findings.held else 1


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the model").add_argument
    add(
        "--model",
        metavar="DIR",
        default=TINY,
        type=Path,
        help="the folder of a Hugging Face checkpoint (default: a tiny model that is shipped)",
    )
    add(
        "--activation",
        metavar="NAME",
        type=options.activation,
        help="run the model with relu, or with fatrelu:T (FATReLU with tau T), instead of its own activation",
    )
    add(
        "--predictor",
        choices=PREDICTORS,
        default="trained",
        help="what predicts the active neurons: trained predictors (the default); exact, which computes them "
        "from weights in memory that are not counted; or gate, which computes them from a gate projection "
        "that stays in memory and is counted",
    )
    add(
        "--predictors",
        metavar="FILE",
        type=Path,
        help=f"the file with the trained predictors (default: DIR/{FILE_NAME})",
    )
    add(
        "--semantics",
        choices=SEMANTICS,
        default="resident",
        help="which neurons the FFN sums: all that are in memory (resident, the default), or only those that "
        "are predicted",
    )


def _add_memory_options(parser: argparse.ArgumentParser) -> None:
    add = (group := parser.add_argument_group("memory and flash")).add_argument
    add(
        "--memory",
        metavar="SHARE|BYTES",
        type=options.memory,
        default=0.5,
        help="how much memory the model gets: a share of its bytes, such as 0.5 (the default), or bytes with "
        "a unit, such as 6GB or 512MiB",
    )
    add(
        "--window",
        metavar="K",
        type=options.at_least(1),
        help="the number of tokens whose predicted neurons stay in memory (default: the largest number up to "
        "5 for which the memory is enough on average)",
    )
    add(
        "--placement",
        choices=PLACEMENTS,
        default="swap_with_last",
        help="how the rows of neurons are placed in the DRAM matrix (default: swap_with_last)",
    )
    add(
        "--image",
        metavar="FILE",
        type=Path,
        help="the flash image of the model: it is used if it exists, else it is packed and kept; with "
        "--reader direct also FILE.unbundled (default: an image in a temporary folder)",
    )
    options.add_device_option(group)
    add(
        "--reader",
        choices=READERS,
        default="memory",
        help="memory: the times of the reads are simulated (the default); direct: the image is really read, "
        "past the page cache, and the times are measured too",
    )
    add(
        "--no-proof",
        action="store_true",
        help="do not keep all weights in memory to check every step with; the peak of memory is then held to "
        "--memory plus a stated allowance. There is no table for OPT 6.7B then, and no measured column",
    )


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the text")
    add, prompts = group.add_argument, group.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", metavar="TEXT", default=PROMPT, help=f"the beginning of the text (default: {PROMPT!r})"
    )
    prompts.add_argument(
        "--prompt-ids", metavar="IDS", type=options.ids, help="the prompt as token ids, such as 3,17,96"
    )
    add(
        "--tokens",
        metavar="N",
        type=options.at_least(1),
        default=96,
        help="the number of new tokens (default: 96)",
    )
    add(
        "--temperature",
        metavar="T",
        type=options.temperature,
        default=0.0,
        help="the temperature with which tokens are sampled; 0, the default, always takes the likeliest",
    )
    add(
        "--seed",
        metavar="S",
        type=options.at_least(0),
        default=0,
        help="the seed of sampling: equal seeds give equal texts (default: 0)",
    )
    add("--cold", action="store_true", help="empty the windows after the prompt, before the first new token")
    add(
        "--held-out",
        metavar="FILE",
        type=Path,
        help=f"a text in UTF-8 on which the perplexity is measured (default: DIR/{options.HELD_OUT})",
    )
    add(
        "--perplexity-tokens",
        metavar="N",
        type=options.at_least(0),
        help="measure the perplexity on the first N tokens of the held-out text "
        f"(default: {PERPLEXITY_TOKENS}; 0: do not measure it)",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "--save-trace",
        metavar="FILE",
        type=Path,
        help="write the predicted neurons of each token to a new file, for `flashref simulate --trace`",
    )
    add("--json", action="store_true", help="print one JSON object instead of the text and the tables")
    add("--quiet", action="store_true", help="show no progress on stderr")


def _check_outputs(asked: argparse.Namespace) -> None:
    """Raise DomainError if the trace could not be written at the end, or has the name of an image."""
    options.check_new_file("--save-trace", asked.save_trace)
    if asked.save_trace is None or asked.image is None:
        return
    trace, image = asked.save_trace.resolve(), asked.image.resolve()
    if trace in (image, image.with_name(image.name + ".unbundled")):
        raise DomainError(f"--save-trace {asked.save_trace}: an image has this name, too; choose another")


def _held_out(asked: argparse.Namespace, model: OpenModel) -> list[int] | None:
    """Return the first tokens of the held-out text; None if no perplexity is to be measured."""
    prepared, count = model.prepared, asked.perplexity_tokens
    path = asked.held_out or prepared.checkpoint.directory / options.HELD_OUT
    if count == 0:
        return None
    if count == 1:
        raise DomainError(
            "--perplexity-tokens 1: perplexity needs at least two tokens; ask for two or more, or for 0"
        )
    if asked.held_out is None and (prepared.tokenizer is None or not path.is_file()):
        if count is not None:
            missing = "held-out text" if prepared.tokenizer else "tokenizer"
            print(
                f"flashref run: {path}: there is no {missing}, so the perplexity is not measured",
                file=sys.stderr,
            )
        return None
    ids = model.encode(read_text(path))
    vocabulary = prepared.checkpoint.config.vocabulary
    if len(ids) < 2 or max(ids) >= vocabulary:
        raise DomainError(
            f"{path}: is not a text of at least two tokens of the model's vocabulary of {vocabulary}; "
            "give another with --held-out, or --perplexity-tokens 0"
        )
    return ids[: PERPLEXITY_TOKENS if count is None else count]


def _write(model: OpenModel, request: TextRequest, shown: bool, quiet: bool) -> GeneratedText:
    """Let the model write the text; if `shown`, print its pieces as they come."""
    if not shown:
        with progress(quiet) as advance:
            return model.write(request, keep_steps=False, progress=advance).finish()
    out = Output()
    stream = model.write(request, keep_steps=False, progress=unseen)
    out.print(Styled(stream.prompt, "bold"), end="", soft_wrap=True)
    for piece in stream:
        out.print(Styled(piece), end="", soft_wrap=True)
    out.print()
    return stream.finish()


def _show(found: Findings, text_too: bool) -> None:
    """Print the findings on stdout; the text only if it was not shown while it was written."""
    if text_too:
        prompt, written = found.text.shown
        Output().print(Styled.assemble((prompt, "bold"), written), soft_wrap=True)
    print()
    for finding in findings_in_words(found):
        colour = "" if finding.held is None else "green" if finding.held else "red"
        say(Styled.assemble((finding.about, colour), f": {finding.text}"))
    for table in method_tables(found):
        print()
        say(table.title, "bold")
        first, *others = table.headings
        print_table([Column(first, words=True), *map(Column, others)], table.rows)
        for note in table.notes:
            say(note)
