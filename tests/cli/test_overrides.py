import pytest

from lightning_lance.cli.overrides import shell_accident


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["languages=[Python,", "Rust]"], "'languages=[Python, Rust]'"),
        (["a=1", "data.mix={Python:", "0.7,", "Rust:", "0.3}", "b=2"], "'data.mix={Python: 0.7, Rust: 0.3}'"),
        (["data.mix=a:1", "data.mix=b:2"], "'data.mix={a: 1, b: 2}'"),
        (["source.columns=text:content", "source.columns=repo:r"], "'source.columns={text: content, repo: r}'"),
        (["languages=Python", "languages=Rust"], "'languages=[Python, Rust]'"),
        (["source.patterns=src/a.py", "source.patterns=src/b.py"], "'source.patterns=[src/a.py, src/b.py]'"),
    ],
)
def test_what_a_shell_has_made_of_an_argument_is_told(arguments: list[str], meant: str):
    told = shell_accident(arguments)
    assert told is not None
    assert told.endswith(f"as in {meant}.")


def test_secrets_are_not_told():
    told = shell_accident(["corpus.storage_options={aws_secret_access_key:", "hunter22,", "b:", "c}"])
    assert told is not None
    assert "hunter22" not in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["languages=[Python,Rust]", "source=files"],
        ["languages=[Python", "source=files"],
        ["key='[a'", "b]"],
        ["source.text_filter.exclude='\\[('", "x=1"],
        ["max_tokens=1", "max_tokens=2"],
        ["languages=[a]", "languages=[b]"],
        ["corpus.uri=s3://a/b", "corpus.uri=s3://c/d"],
        ["languages=a", "seed=1", "languages=b"],
        ["--cfg", "job"],
    ],
)
def test_what_may_be_meant_is_left_alone(arguments: list[str]):
    assert shell_accident(arguments) is None
