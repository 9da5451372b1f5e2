"""The grammars that a last stage has compiled, and the threads that work with them."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog
from llguidance import LLMatcher, LLTokenizer

from broker_pipeline.artifact_manifest import read_artifact_file, read_manifest
from broker_pipeline.errors import GrammarError, PipelineError
from broker_pipeline.grammars.rule import parser_limits
from broker_pipeline.model_facts import check_side_files, read_model_facts
from stages.prompt.tokenizer import TOKENIZER_FILE

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

_NUM_KEPT = 64
_MAX_THREADS = 4


class Grammars:
    """Compiles grammars, each once, and keeps those that were used last. May be called by any thread."""

    def __init__(self, directory: Path, vocab_size: int) -> None:
        """Take the tokenizer from the artifact in `directory`: when `load` says so, or the first grammar needs it.

        `vocab_size` is the number of logits, of which a tokenizer may lack the last ones.
        """
        self.vocab_size = vocab_size
        self._directory = directory
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self._lock = threading.Lock()  # of the table
        self._loading = threading.Lock()
        num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="grammar")

    def load(self) -> None:
        """Begin to read the tokenizer, a second's work for 150,000 tokens; what is wrong, the first grammar says."""
        self.submit(lambda: self.tokenizer)

    @property
    def tokenizer(self) -> LLTokenizer:
        """Return the artifact's tokenizer, which the first call reads."""
        with self._loading:
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(self._directory, self.vocab_size)
            return self._tokenizer

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Return the model's ends of sequence."""
        return frozenset(self.tokenizer.eos_tokens)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call; whatever fails in it becomes a `GrammarError`, a panic of the library as well."""
        return self._threads.submit(_guarded, partial(function, *args, **kwargs))

    def compiled(self, source: str) -> Future[LLMatcher]:
        """Return a matcher at the beginning of a grammar, to be copied and not to be used.

        Whoever waits for it in a call of `submit` waits for one that was queued, and so begun, before.
        """
        with self._lock:
            found = self._compiled.pop(source, None) or self.submit(self._compile, source)
            self._compiled[source] = found  # at the end of the order
            if len(self._compiled) > _NUM_KEPT:
                self._compiled.popitem(last=False)
            return found

    def _compile(self, source: str) -> LLMatcher:
        tokenizer, started = self.tokenizer, time.monotonic()
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=parser_limits())
        require_sound(matcher)
        log.info("grammar_compiled", num_chars=len(source), compile_s=round(time.monotonic() - started, 4))
        return matcher


def load_tokenizer(directory: Path, vocab_size: int) -> LLTokenizer:
    """Read an artifact's tokenizer; grammars that are complete go on with the model's ends of sequence.

    Raises:
        ArtifactError: a side file is missing, or not what the export wrote.
        GrammarError: the model has no end of sequence.
    """
    check_side_files(directory, read_manifest(directory))
    ends = read_model_facts(directory).eos_token_ids
    if not ends:
        raise GrammarError("the model has no end of sequence, by which an answer that is complete could end")
    content = read_artifact_file(directory / TOKENIZER_FILE).decode()
    return LLTokenizer(content, n_vocab=vocab_size, eos_token=list(ends))


def require_sound(matcher: LLMatcher) -> None:
    """Raise `GrammarError` where a matcher has failed: it says so when asked, and only then."""
    if matcher.is_error():
        raise GrammarError(matcher.get_error().partition("\n<")[0][:500])


def _guarded(call: Callable[[], T]) -> T:
    try:
        return call()
    except GrammarError:
        raise
    except PipelineError as error:
        raise GrammarError(f"the tokenizer cannot be read: {error.message}") from error
    except BaseException as error:  # a panic of Rust code is no `Exception`
        raise GrammarError(f"the grammar library failed: {error!r}") from error
