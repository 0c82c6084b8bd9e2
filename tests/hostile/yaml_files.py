"""ptycho.yaml: damaged, hostile, and simply wrong; two commands must be of one opinion."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hostile.battery import Battery, Must, Rng, Trial
from hostile.running import agree, doit, ptycho
from hostile.scans import project, save

YAML = Battery("yaml")
FILE = Path("ptycho.yaml")
BASE = """\
name: tiny
source:
  file: scan.npz
fixture: {subset_size: 25, strategy: random, seed: 3}
backend: epie
training: {epochs: 3, seed: 1}
inference: {scan: source}
execution: {quiet: false}
"""


def check(text: str | bytes, must: Must = "either") -> Trial:
    """Ask about a project with this ptycho.yaml."""
    Path("scan.npz").touch()
    project("scan.npz")
    FILE.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    trial = Trial(
        agree(ptycho("config"), doit("dry-run", "infer")),
        ("ptycho.yaml", "backend", "scan.npz"),
        must,
        lambda said: said or "",
        codes=(2,),
    )
    return trial


def _add(name: str, text: str | bytes, must: Must = "refuse") -> None:
    YAML.add(name, lambda rng: check(text, must))


_add("right", BASE, "succeed")
_add("windows_lines", BASE.replace("\n", "\r\n"), "succeed")
_add("byte_order_mark", b"\xef\xbb\xbf" + BASE.encode(), "either")
_add("comments_only", "# nothing\n")
_add("empty", b"")
_add("null", "~\n")
_add("list", "- 1\n- 2\n")
_add("number", "42\n")
_add("nul_bytes", bytes(100))
_add("utf16", BASE.encode("utf-16"))
_add("latin1", "name: gr\xf6\xdfe\n".encode("latin-1"))
_add("control", BASE + "matrix: {}\x07\n")
_add("escape", BASE.replace("tiny", '"red\\e[31m"'))
_add("escaped_newline", BASE.replace("tiny", '"a\\nerror: b"'))
_add("bidi", BASE.replace("tiny", "a\u202eb"))
_add("surrogate", BASE.replace("tiny", "a\ud800b"))
_add("tab", BASE + "matrix:\n\tname: [a]\n")
_add("two_documents", BASE + "---\n" + BASE)
_add("duplicate", BASE + "name: other\n")
_add("duplicate_inside", BASE.replace("epochs: 3", "epochs: 3, epochs: 4"))
_add("unknown", BASE + "nmae: a\n")
_add("unknown_inside", BASE.replace("seed: 3", "sede: 3"))
_add("merge", "base: &b {epochs: 3}\n" + BASE.replace("{epochs: 3, seed: 1}", "{<<: *b}"))
_add(
    "anchor_bomb",
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n"
        for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    ),
)
_add("anchor_of_itself", BASE.replace("{epochs: 3, seed: 1}", "&a {epochs: *a}"))
_add("anchor_unknown", BASE.replace("tiny", "*nobody"))
_add("tag_python", BASE.replace("tiny", "!!python/object/apply:os.system ['touch PWNED']"))
_add("tag_own", BASE.replace("tiny", "!name tiny"))
_add("tag_binary", BASE.replace("tiny", "!!binary dGlueQ=="))
_add("tag_set", BASE.replace("{epochs: 3, seed: 1}", "!!set {epochs}"))
_add("tag_int", BASE.replace("tiny", "!!int nine"))
for _depth in (21, 1000, 100_000):
    _add(f"deep_{_depth}", f"name: {'[' * _depth}{']' * _depth}\n")
    _add(f"deep_mapping_{_depth}", f"name: {'{a: ' * _depth}1{'}' * _depth}\n")
_add("deep_open", "name: " + "[" * 100_000)
_add("deep_blocks", "".join(f"{' ' * n}a:\n" for n in range(1500)))
_add("long_name", BASE.replace("tiny", "a" * 300))
_add("longest_name", BASE.replace("tiny", "a" * 100_000))
_add("long_key", "k" * 100_000 + ": 1\n" + BASE)
_add("many_digits", BASE.replace("seed: 1", "seed: " + "9" * 5000))
_add("many_keys", BASE + "".join(f"k{n}: 1\n" for n in range(20_000)))
_add("many_lines", BASE + "#\n" * 300_000, "succeed")
_add("name_of_dots", BASE.replace("tiny", ".."))
_add("name_of_a_path", BASE.replace("tiny", "../../tmp/x"))
_add("name_absolute", BASE.replace("tiny", "/tmp/x"))
_add("name_empty", BASE.replace("tiny", "''"))
_add("backend_unknown", BASE.replace("epie", "nobody"))
_add("backend_path", BASE.replace("epie", "../epie"))
_add("backend_number", BASE.replace("epie", "7"))
_add("two_sources", BASE.replace("file: scan.npz", "file: scan.npz\n  simulate: {}"))
_add("no_source", BASE.replace("source:\n  file: scan.npz\n", ""))
_add("source_missing", BASE.replace("scan.npz", "nobody.npz"), "either")
_add("source_folder", BASE.replace("scan.npz", "backends"), "either")
_add("source_empty", BASE.replace("scan.npz", "''"))
_add("source_nul", BASE.replace("scan.npz", '"a\\0b"'))
_add("source_newline", BASE.replace("scan.npz", '"a\\nb.npz"'))
_add("source_long", BASE.replace("scan.npz", "a" * 5000))
_add("source_user", BASE.replace("scan.npz", "~nobody/scan.npz"), "either")
_add("source_list", BASE.replace("scan.npz", "[scan.npz, 7]"))
_add("source_glob_of_nothing", BASE.replace("scan.npz", "'*.nothing'"), "either")
_add("own_output_as_source", BASE.replace("scan.npz", "fixtures/tiny.npz"), "either")
_add(
    "own_result_as_source",
    BASE.replace("scan.npz", "runs/default/inference/reconstruction.h5"),
    "either",
)
_add("matrix_collides", BASE + "matrix: {training.seed: [1, 1]}\n")
_add("matrix_collides_by_spelling", BASE + "matrix: {training.seed: [1, 1.0]}\n")
_add("matrix_of_sections", BASE + "matrix: {training: [{seed: 1}, {seed: 2}]}\n", "either")
_add("matrix_and_part", BASE + "matrix: {training: [{seed: 1}], training.seed: [2]}\n", "either")
_add("matrix_empty", BASE + "matrix: {training.seed: []}\n")
_add("matrix_unknown", BASE + "matrix: {training.sede: [1]}\n")
_add("matrix_wrong", BASE + "matrix: {training.epochs: [1, many]}\n")
_add(
    "matrix_huge",
    BASE
    + "matrix: {"
    + ", ".join(
        f"{key}: {list(range(1, 200))}"
        for key in ("training.seed", "training.epochs", "fixture.seed")
    )
    + "}\n",
)
_add("matrix_of_matrix", BASE + "matrix: {matrix: [{}]}\n")
_add("matrix_of_name", BASE + "matrix: {name: [a, b]}\n", "either")
_add("variants_wrong", BASE + "variants: [{name: a, training: {epochs: many}}]\n")
_add("variants_twice", BASE + "variants: [{name: a, training: {seed: 2}}, {name: a}]\n")
_add(
    "variants_differ_in_case",
    BASE + "variants: [{name: a, training: {seed: 2}}, {name: A, training: {seed: 3}}]\n",
)
_add("variants_nameless", BASE + "variants: [{training: {seed: 2}}]\n")
_add("variants_a_path", BASE + "variants: [{name: ../a, training: {seed: 2}}]\n")
_add("variants_default", BASE + "variants: [{name: default, training: {seed: 2}}]\n", "either")
_add("variants_number", BASE + "variants: [7]\n")
_add("variants_mapping", BASE + "variants: {name: a}\n")
_add("variants_unknown_backend", BASE + "variants: [{name: a, backend: nobody}]\n")
_add("refine_unknown", BASE + "refine: {backend: nobody}\n")
_add("refine_cannot", BASE + "refine: {backend: epie}\n")
_add("refine_wrong", BASE + "refine: {backend: further, epochs: many}\n")
_add("refine_without_backend", BASE + "refine: {epochs: 3}\n")
_add("evidence_wrong", BASE + "evidence: {initiative: 7}\n", "either")
_add("evidence_text", BASE + "evidence: none\n", "either")
_add("training_text", BASE.replace("{epochs: 3, seed: 1}", "many"))
_add("execution_unknown", BASE.replace("quiet: false", "gpus: 4"))
_add("subset_of_15", BASE.replace("subset_size: 25", "subset_size: 15"))
_add("subset_negative", BASE.replace("subset_size: 25", "subset_size: -1"))
_add("subset_text", BASE.replace("subset_size: 25", "subset_size: '25'"))
_add("nan", BASE.replace("epochs: 3", "epochs: .nan"))
_add("infinite", BASE.replace("file: scan.npz", "file: scan.npz\n  energy_ev: .inf"))
_add("energy_overflow", BASE.replace("file: scan.npz", "file: scan.npz\n  energy_ev: 1e999"))
_add("energy_negative", BASE.replace("file: scan.npz", "file: scan.npz\n  energy_ev: -1"))
_add("octal", BASE.replace("seed: 1", "seed: 0o17"), "either")
_add("sexagesimal", BASE.replace("seed: 1", "seed: 1:30"))
_add("underscore", BASE.replace("seed: 1", "seed: 1_000"))
_add("date", BASE.replace("seed: 1", "seed: 2020-01-01"))
_add("yes", BASE.replace("quiet: false", "quiet: yes"))


@YAML.case
def _folder(rng: Rng) -> Trial:
    trial = check(BASE, "refuse")
    FILE.unlink()
    FILE.mkdir()
    return trial


@YAML.case
def _pipe(rng: Rng) -> Trial:
    trial = check(BASE, "refuse")
    FILE.unlink()
    os.mkfifo(FILE)
    return trial


@YAML.case
def _missing(rng: Rng) -> Trial:
    trial = check(BASE, "refuse")
    FILE.unlink()
    return trial


@YAML.case
def _link_to_itself(rng: Rng) -> Trial:
    trial = check(BASE, "refuse")
    FILE.unlink()
    FILE.symlink_to(FILE)
    return trial


@YAML.case
def _device(rng: Rng) -> Trial:
    trial = check(BASE, "refuse")
    FILE.unlink()
    FILE.symlink_to("/dev/zero")
    return trial


for _name, _code in {
    "raises": "1 / 0\n",
    "exits": "raise SystemExit(7)\n",
    "syntax": "def\n",
    "not_utf8": b"x = '\xff'\n",
    "imports_nothing": "import no_such_module\n",
    "without_backend": "x = 1\n",
    "backend_is_none": "backend = None\n",
    "prints": None,
}.items():

    def _backend(rng: Rng, code: Any = _code) -> Trial:
        trial = check(BASE, "succeed" if code is None else "refuse")
        path = Path("backends/epie.py")
        if code is None:
            path.write_text("print('hello')\n" + path.read_text())
        else:
            path.write_bytes(code if isinstance(code, bytes) else code.encode())
        trial.names = ("epie",)
        return trial

    YAML.add(f"backend_file_{_name}", _backend)


@YAML.case
def _source_not_utf8(rng: Rng) -> Trial:
    save("scan.npz")
    Path(os.fsdecode(b"\xff.npz")).write_bytes(Path("scan.npz").read_bytes())
    return check(BASE.encode().replace(b"scan.npz", b"\xff.npz"), "refuse")


@YAML.family
def _spoilt_text(rng: Rng) -> Trial:
    """Some characters changed, removed, or added."""
    text = list(BASE)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(len(text)))
        action = rng.integers(3)
        strange = chr(int(rng.choice([*range(32, 127), 9, 10, 0, 27, 0xE9, 0x202E, 0x1F600])))
        if action == 0:
            text[place] = strange
        elif action == 1:
            text.insert(place, strange)
        else:
            del text[place]
    return check("".join(text))


@YAML.family
def _spoilt_bytes(rng: Rng) -> Trial:
    data = bytearray(BASE.encode())
    for _ in range(rng.integers(1, 6)):
        data[rng.integers(len(data))] = rng.integers(256)
    return check(bytes(data))


_KEYS = (
    "name",
    "source",
    "source.file",
    "source.simulate",
    "source.simulate.size",
    "source.simulate.grid",
    "source.measurement",
    "source.frame_axis",
    "source.product",
    "source.pixel_size_m",
    "source.energy_ev",
    "fixture",
    "fixture.subset_size",
    "fixture.strategy",
    "fixture.seed",
    "backend",
    "training",
    "training.epochs",
    "training.seed",
    "inference",
    "inference.scan",
    "inference.n_groups",
    "inference.frames",
    "refine",
    "refine.backend",
    "execution",
    "execution.quiet",
    "matrix",
    "variants",
    "evidence",
    "evidence.items",
    "evidence.plan",
)


def _value(rng: Rng, depth: int = 0) -> Any:
    kind = rng.integers(12 if depth < 3 else 9)
    return (
        lambda: None,
        lambda: bool(rng.integers(2)),
        lambda: int(rng.integers(-3, 100)),
        lambda: int(rng.choice([-(2**63), 2**63, 2**64, 10**30, 0, 16, 64])),
        lambda: float(rng.choice([0.0, -1.5, 1e308, 1e-320, 0.5, 3.0])),
        lambda: "".join(chr(c) for c in rng.integers(1, 0x2FF, rng.integers(0, 12))),
        lambda: str(rng.choice(["source", "scan.npz", "epie", "auto", "first", "..", "/", "a b"])),
        lambda: "x" * int(rng.choice([1, 300, 5000])),
        lambda: str(rng.choice(_KEYS)),
        lambda: [_value(rng, depth + 1) for _ in range(rng.integers(0, 4))],
        lambda: {str(rng.choice(_KEYS)): _value(rng, depth + 1) for _ in range(rng.integers(0, 4))},
        lambda: {str(n): _value(rng, depth + 1) for n in range(rng.integers(0, 3))},
    )[kind]()


@YAML.family
def _odd_value(rng: Rng) -> Trial:
    """One or two keys with any value; JSON is YAML."""
    import yaml

    data = yaml.safe_load(BASE)
    for _ in range(rng.integers(1, 3)):
        *above, last = str(rng.choice(_KEYS)).split(".")
        place = data
        for key in above:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[last] = _value(rng)
    return check(json.dumps(data))
