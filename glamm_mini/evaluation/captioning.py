"""CIDEr and METEOR of captions, from pycocoevalcap's scorers, one Java process for everything.

COCOEvalCap itself is not used: it always builds SPICE, which downloads. Java's language is set to English,
because METEOR writes its numbers in the machine's language and can't be read back in German.
"""

import contextlib
import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

# What PTB tokenization leaves out of a caption before it is scored.
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- -lrb- -rrb- -lcb- -rcb- . ? ! , : - -- ... ;".split())


@dataclass
class Captions:
    """Hypotheses and their references: `references[i]` is a list of captions for `hypotheses[i]`."""

    references: list[list[str]]
    hypotheses: list[str]


@dataclass
class CaptionScores:
    """METEOR in 0..1 and CIDEr on its own scale (10 at best) of a corpus, and of each item; None where impossible."""

    meteor: float | None = None
    cider: float | None = None
    each_meteor: list[float] = field(default_factory=list)
    each_cider: list[float] = field(default_factory=list)

    def total(self) -> dict:
        """The two figures of the corpus."""
        return {"meteor": self.meteor, "cider": self.cider}


Corpus = tuple[dict[int, list[str]], dict[int, list[str]]]
"""Tokenized references and, one each, hypotheses by number, as pycocoevalcap takes them."""


def caption_scores(corpora: dict[str, Captions], meteor: bool = True, timeout: float | None = None):
    """Score several corpora at once.

    meteor: False leaves METEOR out (its Java start alone takes about ten seconds).
    timeout: seconds for METEOR; by default two minutes and 0.2 s a caption.
    Returns (scores by name, notes): a note says which tokenizer was used, and why a number is missing.
    """
    scores = {name: CaptionScores() for name in corpora}
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError:
        missing = 'pycocoevalcap is missing; install it with: pip install "glamm-mini[eval]"'
        return scores, [f"meteor and cider are null: {missing}"]
    tokenized, notes = _tokenize_corpora(corpora)
    for name, corpus in tokenized.items():
        total, each = Cider().compute_score(*corpus)
        scores[name].cider, scores[name].each_cider = float(total), each.tolist()
    if not meteor:
        return scores, [*notes, "meteor is null: it was left out"]
    try:
        for name, (total, each) in _meteor_scores(tokenized, timeout).items():
            scores[name].meteor, scores[name].each_meteor = total, each
    except (RuntimeError, OSError) as problem:
        notes.append(f"meteor is null: {problem}")
    return scores, notes


def _tokenize_corpora(corpora: dict[str, Captions]) -> tuple[dict[str, Corpus], list[str]]:
    """The corpora that hold anything, tokenized: a text that stands in several of them once. And notes."""
    parts = [[*corpus.references, corpus.hypotheses] for corpus in corpora.values()]
    texts = list(dict.fromkeys(text for lists in parts for some in lists for text in some))
    try:
        tokens, notes = ptb_tokenize(texts), []
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as problem:
        tokens = [python_tokenize(text) for text in texts]
        notes = [f"captions were split into words in Python, not by the PTB tokenizer: {problem}"]
    known = dict(zip(texts, tokens, strict=True))
    return {
        name: (
            {k: [known[text] for text in references] for k, references in enumerate(corpus.references)},
            {k: [known[text]] for k, text in enumerate(corpus.hypotheses)},
        )
        for name, corpus in corpora.items()
        if corpus.hypotheses
    }, notes


def _java(*options: str) -> list[str]:
    """The beginning of a command. Raises RuntimeError if Java is missing."""
    if shutil.which("java") is None:
        raise RuntimeError("Java 8 or newer, such as openjdk-17-jre, isn't on PATH")
    return ["java", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", *options]


def ptb_tokenize(texts: list[str]) -> list[str]:
    """Lower-case Penn Treebank tokens without punctuation, joined by blanks (Stanford's tokenizer, in Java).

    Raises RuntimeError if Java is missing or fails, subprocess.TimeoutExpired after two minutes.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = _java("-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer")
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    # One line a caption, so nothing inside a caption may look like a line's end.
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    done = subprocess.run(command, input=lines.encode(), capture_output=True, timeout=120)
    found = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode != 0 or len(found) != len(texts):
        raise RuntimeError(f"the PTB tokenizer failed: {_last_line(done.stderr) or 'no message'}")
    return [" ".join(word for word in line.split() if word not in PUNCTUATION) for line in found]


def _last_line(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip().rpartition("\n")[2]


def python_tokenize(text: str) -> str:
    """The same for ordinary captions without Java: lower case, contractions split, punctuation dropped."""
    text = text.lower().replace("\u2019", "'")
    text = re.sub(r"\bcannot\b", "can not", text)
    text = re.sub(r"n't\b", " n't", text)
    text = re.sub(r"(?<=\w)'(s|re|ve|ll|d|m)\b", r" '\1", text)
    return " ".join(re.findall(r"n't|'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[-./'&][^\W_]+)*|[$%&@#]", text))


def _meteor_scores(corpora: dict[str, Corpus], timeout: float | None) -> dict[str, tuple[float, list[float]]]:
    """METEOR 1.5: {name: (corpus score, one score an item)}.

    The corpus score aggregates statistics over all captions: it isn't the mean of the items' scores.
    One Java process serves all corpora and is killed after `timeout` seconds. Raises RuntimeError on failure.
    """
    from pycocoevalcap.meteor import meteor

    class Scorer(meteor.Meteor):  # which speaks METEOR's protocol; its own start knows neither language nor time limit
        def __init__(self, process: subprocess.Popen):
            self.meteor_p, self.lock = process, threading.Lock()

        def __del__(self):
            pass

    timeout = timeout or 120 + 0.2 * sum(len(hypotheses) for _, hypotheses in corpora.values())
    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    command = _java("-Xmx2G", "-jar", str(jar), *"- - -stdio -l en -norm".split())
    scores = {}
    pipe, expired = subprocess.PIPE, threading.Event()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=jar.parent, stdin=pipe, stdout=pipe, stderr=errors)
        timer = threading.Timer(timeout, lambda: (expired.set(), process.kill()))
        timer.start()
        try:
            for name, corpus in corpora.items():
                same = next((scores[other] for other in scores if corpora[other] == corpus), None)
                scores[name] = same or Scorer(process).compute_score(*corpus)
        except (OSError, ValueError) as problem:
            errors.seek(0)
            reason = f"METEOR didn't finish in {timeout:.0f} s" if expired.is_set() else "METEOR's Java process failed"
            raise RuntimeError(f"{reason}: {_last_line(errors.read()) or 'no answer'}") from problem
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            with contextlib.suppress(OSError):  # a dead process can't take what is still buffered
                process.stdin.close()
            process.stdout.close()
    return scores
