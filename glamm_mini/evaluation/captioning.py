"""CIDEr and METEOR of captions, from pycocoevalcap's scorers, one Java process for everything.

COCOEvalCap itself is not used: it always builds SPICE, which downloads. Java's language is set to English,
because METEOR writes its numbers in the machine's language and can't be read back in German.
"""

import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

JAVA_ENGLISH = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
# What PTB tokenization leaves out of a caption before it is scored.
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- -lrb- -rrb- -lcb- -rcb- . ? ! , : - -- ... ;".split())
INSTALL = 'install them with: pip install "glamm-mini[eval]"'


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
        return scores, [f"meteor and cider are null: pycocoevalcap is missing; {INSTALL}"]
    tokenized, notes = _tokenize_corpora(corpora)
    for name, corpus in tokenized.items():
        if corpus.hypotheses:
            references = dict(enumerate(corpus.references))
            hypotheses = {key: [text] for key, text in enumerate(corpus.hypotheses)}
            total, each = Cider().compute_score(references, hypotheses)
            scores[name].cider, scores[name].each_cider = float(total), [float(value) for value in each]
    if not meteor:
        return scores, [*notes, "meteor is null: it was left out"]
    if shutil.which("java") is None:
        return scores, [*notes, "meteor is null: METEOR needs Java 8 or newer on PATH, such as openjdk-17-jre"]
    try:
        for name, (total, each) in meteor_scores(tokenized, timeout).items():
            scores[name].meteor, scores[name].each_meteor = total, each
    except (RuntimeError, OSError) as problem:
        notes.append(f"meteor is null: {problem}")
    return scores, notes


# --- tokens -------------------------------------------------------------------------------------------------------


def _tokenize_corpora(corpora: dict[str, Captions]) -> tuple[dict[str, Captions], list[str]]:
    texts: dict[str, str] = {}  # a text that stands in several corpora is tokenized once
    for corpus in corpora.values():
        for references, hypothesis in zip(corpus.references, corpus.hypotheses, strict=True):
            texts.update(dict.fromkeys([*references, hypothesis], ""))
    notes = []
    try:
        tokens = ptb_tokenize(list(texts))
    except (RuntimeError, OSError) as problem:
        tokens = [python_tokenize(text) for text in texts]
        notes.append(f"captions were split into words in Python, not by the PTB tokenizer ({problem})")
    texts = dict(zip(texts, tokens, strict=True))
    return {
        name: Captions(
            [[texts[reference] for reference in references] for references in corpus.references],
            [texts[hypothesis] for hypothesis in corpus.hypotheses],
        )
        for name, corpus in corpora.items()
    }, notes


def ptb_tokenize(texts: list[str], timeout: float = 120) -> list[str]:
    """Lower-case Penn Treebank tokens without punctuation, joined by blanks (Stanford's tokenizer, in Java).

    Raises RuntimeError if Java is missing or fails.
    """
    if shutil.which("java") is None:
        raise RuntimeError("Java isn't on PATH")
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", *JAVA_ENGLISH, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    # One line a caption, so nothing inside a caption may look like a line's end.
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    try:
        done = subprocess.run(command, input=lines.encode(), capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired as problem:
        raise RuntimeError(f"the PTB tokenizer didn't finish in {timeout:.0f} s") from problem
    found = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode != 0 or len(found) != len(texts):
        detail = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RuntimeError(f"the PTB tokenizer failed: {detail[-1] if detail else 'no message'}")
    return [" ".join(word for word in line.split() if word not in PUNCTUATION) for line in found]


def python_tokenize(text: str) -> str:
    """The same for ordinary captions without Java: lower case, contractions split, punctuation dropped."""
    text = text.lower().replace("\u2019", "'")
    text = re.sub(r"\bcannot\b", "can not", text)
    text = re.sub(r"n't\b", " n't", text)
    text = re.sub(r"(?<=\w)'(s|re|ve|ll|d|m)\b", r" '\1", text)
    return " ".join(re.findall(r"n't|'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[-./'&][^\W_]+)*|[$%&@#]", text))


# --- METEOR -------------------------------------------------------------------------------------------------------


def meteor_scores(corpora: dict[str, Captions], timeout: float | None = None) -> dict[str, tuple[float, list[float]]]:
    """METEOR 1.5 of tokenized corpora: {name: (corpus score, one score an item)}.

    The corpus score aggregates statistics over all captions: it isn't the mean of the items' scores.
    One Java process serves all corpora and is killed after `timeout` seconds. Raises RuntimeError on failure.
    """
    from pycocoevalcap.meteor import meteor

    size = sum(len(corpus.hypotheses) for corpus in corpora.values())
    timeout = timeout or 120 + 0.2 * size
    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    command = ["java", *JAVA_ENGLISH, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    known: dict[tuple, tuple[float, list[float]]] = {}
    scores = {}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        expired = threading.Event()
        timer = threading.Timer(timeout, lambda: (expired.set(), process.kill()))
        timer.start()
        try:
            for name, corpus in corpora.items():
                key = (tuple(map(tuple, corpus.references)), tuple(corpus.hypotheses))
                if key not in known and corpus.hypotheses:
                    known[key] = _meteor_corpus(process, corpus)
                scores[name] = known.get(key, (0.0, []))
        except (OSError, ValueError) as problem:
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines()
            reason = f"METEOR didn't finish in {timeout:.0f} s" if expired.is_set() else "METEOR's Java process failed"
            raise RuntimeError(f"{reason}: {lines[-1] if lines else problem}") from problem
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdin.detach().close()  # detach: a dead process can't take what is still buffered
            process.stdout.close()
    return scores


def _meteor_corpus(process: subprocess.Popen, corpus: Captions) -> tuple[float, list[float]]:
    """Statistics of each caption (SCORE), then scores from all statistics (EVAL): METEOR's own line protocol."""
    statistics = []
    for references, hypothesis in zip(corpus.references, corpus.hypotheses, strict=True):
        hypothesis = hypothesis.replace("|||", "").replace("  ", " ")
        statistics.append(_ask(process, " ||| ".join(["SCORE", *references, hypothesis])))
    process.stdin.write((" ||| ".join(["EVAL", *statistics]) + "\n").encode())
    process.stdin.flush()
    each = [float(process.stdout.readline()) for _ in statistics]
    return float(process.stdout.readline()), each


def _ask(process: subprocess.Popen, line: str) -> str:
    process.stdin.write((line + "\n").encode())
    process.stdin.flush()
    answer = process.stdout.readline().decode().strip()
    if not answer:
        raise ValueError("no answer")
    return answer
