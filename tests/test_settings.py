"""Settings from TOML and from Python: what may be there, and what is said where something else is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.data.splits import Split
from distilrec.distill.distillation import DistillationConfig
from distilrec.errors import ConfigError, FileMissingError
from distilrec.networks.dnn import DnnConfig
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.soft_tree import SoftTreeConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.privacy.accounting import PrivateTrainingConfig
from distilrec.runs.config import RunConfig, read_config
from distilrec.serve.config import ServiceConfig
from distilrec.training.options import TrainingConfig

MEMBER = '[teacher]\nkind = "ensemble"\n[[teacher.members]]\nmodel = '


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("seed = ", "is not valid TOML: Invalid value", "correct the syntax"),
        ("[teachr]", "there is no key `teachr`", "did you mean `teacher`"),
        ("[zzz]", "there is no key `zzz`", "there are: data, cleaning, split"),
        ("[student_training]\nepoch = 3", r"no key `epoch` in \[student_training\]", "did you mean `epochs`"),
        ('[student_training]\nepochs = "many"', "expected `int`, got `str`, in student_training.epochs", "correct"),
        (MEMBER + "{dim = 3}", r"there is no `kind` in \[teacher.members.model\]", "set it to one of: transformer, dnn"),
        ("[student]\ndm = 3", r"there is no key `dm` in \[student\]", "did you mean `dim`"),
        ("[student]\nhidden = 3", r"no key `hidden` in \[student\] of the kind that it has by", 'set kind = "mlp", which'),
        ('[teacher]\nfile = "a.csv"', r"there is no `kind` in \[teacher\]", "set it to one of: transformer, dnn, recurrent"),
        ('[teacher]\nkind = "trans"', "teacher.kind is 'trans'", "use one of: transformer, dnn, recurrent, linear"),
        ('[teacher]\nkind = "dnn"\nhiden = 3', r"no key `hiden` in \[teacher\]", "did you mean `hidden`"),
        ('[teacher]\nkind = "dnn"\nheads = 3', r"no key `heads` in \[teacher\]", "there are: dim, hidden, layers, dropout,"),
        ('[teacher]\nkind = "dnn"\ndim = -1', "expected `int` >= 1, in teacher.dim", "correct that value"),
        (MEMBER + '{kind = "dnn", dm = 3}', r"no key `dm` in \[teacher.members.model\]", "did you mean `dim`"),
        (MEMBER + '{kind = "mlp"}', "teacher.members.model.kind is 'mlp'", "use one of: transformer, dnn"),
        ('[split]\nkind = "random"', "split.kind is 'random'", "use one of: global-time, leave-one-out"),
        ('[[data.checks]]\npattern = "x"', r"there is no `column` in \[data.checks\]", "set it"),
        ('data.dataset = "ml-100k"', "needs either `dataset` or `interactions`", "for example"),
        ("[privacy]\ndelta = 1.0", "expected `float` < 1.0, in privacy.delta", "correct that value"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_and_what_could_be_there(text, message, fix, tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(f'data.interactions = "log.csv"\n{text}')
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert caught.value.fix.startswith(fix)


def test_a_section_without_a_kind_is_of_the_kind_of_the_defaults(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('data.interactions = "log.csv"\n[student]\ndim = 8\n')
    config = read_config(path)
    assert config.student == RecurrentConfig(dim=8)
    path.write_text('data.interactions = "log.csv"\n[student]\n[teacher]\nkind = "dnn"\n')
    config = read_config(path)
    assert config.student == RecurrentConfig()
    assert config.teacher == DnnConfig()
    assert type(RunConfig(config.data).student) is RecurrentConfig


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileMissingError, match="does not exist"):
        read_config(tmp_path / "nothing.toml")
    (tmp_path / "latin.toml").write_bytes("# Möbel".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_config(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerConfig(dim=0), "dim is 0\n  how to fix: use at least 1"),
        (lambda: TransformerConfig(dropout=1.0), "dropout is 1.0\n  how to fix: use at least 0 and less than 1"),
        (lambda: TransformerConfig(dropout=float("nan")), "dropout is nan\n  how to fix: use at least 0 and less than 1"),
        (lambda: TransformerConfig(dim=10, heads=3), "dim 10 is not a multiple of heads 3\n  how to fix: change one"),
        (lambda: SoftTreeConfig(depth=11), "depth is 11\n  how to fix: use at least 1 and at most 10"),
        (lambda: TrainingConfig(learning_rate=0), "learning_rate is 0\n  how to fix: use more than 0 and less than 1"),
        (lambda: DistillationConfig(temperature=0.0), "temperature is 0.0\n  how to fix: use more than 0"),
        (lambda: Split(test_share=0.5), "test_share is 0.5\n  how to fix: use more than 0 and less than 0.5"),
        (lambda: PrivateTrainingConfig(delta=2.0), "delta is 2.0\n  how to fix: use more than 0 and less than 1"),
        (lambda: ServiceConfig("b", port=70_000), "port is 70000\n  how to fix: use at least 0 and at most 65535"),
    ],
)  # fmt: skip
def test_ranges_hold_in_python_too(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


def test_none_is_no_number_out_of_range():
    assert PrivateTrainingConfig(delta=None).delta is None


words = st.text("ab.`$ [", max_size=5)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
keys = st.sampled_from(
    [*RunConfig.__struct_fields__, "kind", "dim", "members", "model", "checks", "column", "schema"]
)
told = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | words, inner, max_size=4),
)


@pytest.mark.slow
@given(st.dictionaries(keys, told, max_size=4))
def test_whatever_a_file_says_is_taken_or_explained(content):
    """Fuzzing: never another error than ours, and never without a word on what to do."""
    from distilrec.settings import converted

    try:
        taken = converted(content, RunConfig, "my.toml")
    except ConfigError as problem:
        assert problem.fix
    else:
        assert msgspec.json.decode(msgspec.json.encode(taken), type=RunConfig) == taken
