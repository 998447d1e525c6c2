"""What a reference to a model on the hub means: one model, or a list to choose from."""

import pytest

from supervisor.adapters.models import read_model
from supervisor.core.memory import GIB
from supervisor.core.model_reference import (
    Reference,
    RepoFile,
    choose,
    parse_reference,
    projector,
)
from supervisor.errors import ModelAmbiguous, ModelMissing


def files(*paths: str) -> list[RepoFile]:
    """Files that grow in the order of their names."""
    return [RepoFile(path=path, size_bytes=(n + 1) * GIB) for n, path in enumerate(paths)]


def chosen(text: str, *paths: str) -> list[str]:
    reference = parse_reference(text)
    assert reference is not None
    return [file.path for file in choose(files(*paths), reference)]


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("a/b", Reference(repo="a/b")),
        ("ggml-org/gemma-3-1b-it-GGUF", Reference(repo="ggml-org/gemma-3-1b-it-GGUF")),
        ("a/b:Q4_K_M", Reference(repo="a/b", quant="Q4_K_M")),
        ("a/b.gguf:Q4_K_M", Reference(repo="a/b.gguf", quant="Q4_K_M")),
        ("a/b/c.gguf", Reference(repo="a/b", file="c.gguf")),
        ("a/b/Q8 0/c.GGUF", Reference(repo="a/b", file="Q8 0/c.GGUF")),
    ],
)
def test_a_reference_is_read(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model",
        "model.gguf",
        "models/tiny.gguf",
        "models/tiny.GGUF",
        "/models/tiny",
        "./models/tiny",
        "../a/b.gguf",
        "~/models",
        "~/models/a/tiny.gguf",
        "a/b/c",
        "a/b/../../c.gguf",
        "a--b/c",
        "a/b:",
        "a/b:Q4/x.gguf",
        "a/b:Q4 K",
        "a/-b",
        "a/b\n",
        "a/b/c\0.gguf",
        "https://huggingface.co/a/b",
        f"a/{'b' * 97}",
    ],
)
def test_what_is_a_path_or_nothing_is_no_reference(text: str) -> None:
    assert parse_reference(text) is None


BARTOWSKI = (
    "README.md",
    "X-7B-IQ2_M.gguf",
    "X-7B-Q3_K_L.gguf",
    "X-7B-Q4_0.gguf",
    "X-7B-Q4_K_M.gguf",
    "X-7B-Q6_K.gguf",
    "X-7B-f16.gguf",
    "mmproj-X-7B-f16.gguf",
    "X-7B.imatrix",
    "X-7B-imatrix.gguf",
)


@pytest.mark.parametrize("text", ["a/b", "a/b:Q4_K_M", "a/b:q4_k_m", "a/b/X-7B-Q4_K_M.gguf"])
def test_one_model_is_chosen(text: str) -> None:
    assert chosen(text, *BARTOWSKI) == ["X-7B-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    ("quant", "path"),
    [("F16", "X-7B-f16.gguf"), ("q6_k", "X-7B-Q6_K.gguf"), ("iq2_m", "X-7B-IQ2_M.gguf")],
)
def test_a_quantisation_is_found_whatever_its_case(quant: str, path: str) -> None:
    assert chosen(f"a/b:{quant}", *BARTOWSKI) == [path]


def test_without_the_usual_one_the_smallest_of_four_bits_is_chosen() -> None:
    names = [name for name in BARTOWSKI if "Q4_K_M" not in name]
    assert chosen("a/b", *names) == ["X-7B-Q4_0.gguf"]
    assert chosen("a/b", "x-q2_k.gguf", "x-MXFP4.gguf", "x-Q8_0.gguf") == ["x-MXFP4.gguf"]
    assert chosen("a/b", "x-TQ1_0.gguf", "x-bf16.gguf") == ["x-bf16.gguf"]


def test_an_only_model_needs_no_quantisation() -> None:
    assert chosen("a/b", "model.gguf", "mmproj-model-f16.gguf") == ["model.gguf"]
    assert chosen("a/b", "model-Q2_K.gguf") == ["model-Q2_K.gguf"]


def test_an_exact_label_wins_over_one_that_contains_it() -> None:
    names = ("X-UD-Q4_K_M.gguf", "X-Q4_K_M.gguf", "X-UD-Q4_K_XL.gguf")
    assert chosen("a/b:Q4_K_M", *names) == ["X-Q4_K_M.gguf"]
    assert chosen("a/b", *names) == ["X-Q4_K_M.gguf"]
    assert chosen("a/b:ud-q4_k_m", *names) == ["X-UD-Q4_K_M.gguf"]
    assert chosen("a/b:Q4_K_XL", *names) == ["X-UD-Q4_K_XL.gguf"]


def test_any_word_of_a_name_can_be_chosen_by() -> None:
    assert chosen("a/b:small", "x-small.gguf", "x-large.gguf") == ["x-small.gguf"]


SPLIT = [f"Q4_K_M/X-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


@pytest.mark.parametrize("text", ["a/b", "a/b:Q4_K_M", f"a/b/{SPLIT[0]}", f"a/b/{SPLIT[2]}"])
def test_all_parts_of_a_split_model_are_chosen_in_order(text: str) -> None:
    assert chosen(text, "X-Q2_K.gguf", *reversed(SPLIT)) == SPLIT


def test_a_folder_may_tell_the_quantisation() -> None:
    parts = [f"UD-Q3_K_XL/model-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert chosen("a/b:UD-Q3_K_XL", *parts, "Q8_0/model.gguf") == parts


def test_a_missing_part_is_named_with_what_else_there_is() -> None:
    with pytest.raises(ModelMissing, match=r"not all parts of Q4_K_M/X-Q4_K_M: 2 missing of 3"):
        chosen("a/b:Q4_K_M", SPLIT[0], SPLIT[2], "X-Q8_0.gguf")


@pytest.mark.parametrize(
    ("text", "names", "says"),
    [
        ("a/b", ["README.md", "x.safetensors", "mmproj-x.gguf"], "a/b has no GGUF model"),
        ("a/b:Q5_K_M", BARTOWSKI, "a/b has no Q5_K_M; it has IQ2_M (2.0 GiB), Q3_K_L (3.0 GiB)"),
        ("a/b:Q4_K", BARTOWSKI, "a/b has no Q4_K; it has"),
        ("a/b/x.gguf", BARTOWSKI, "a/b has no file x.gguf; it has IQ2_M (2.0 GiB)"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(text: str, names: list[str], says: str) -> None:
    with pytest.raises(ModelMissing) as caught:
        chosen(text, *names)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("text", "names", "says"),
    [
        (
            "a/b",
            ["A-1B-Q4_K_M.gguf", "A-3B-Q4_K_M.gguf"],
            "a/b may be any of 2 models; give one file as a/b/FILE:"
            " A-1B-Q4_K_M.gguf (1.0 GiB), A-3B-Q4_K_M.gguf (2.0 GiB)",
        ),
        ("a/b:q8_0", ["A-1B-Q8_0.gguf", "A-3B-Q8_0.gguf"], "a/b:q8_0 may be any of 2 models"),
        ("a/b", ["A-1B-Q8_0.gguf", "A-3B-Q8_0.gguf"], "a/b may be any of 2 models"),
        (
            "a/b",
            ["x-Q2_K.gguf", "x-Q3_K_M.gguf"],
            "a/b has nothing that its name shows to have 4 bits per weight or more; say which you"
            " want: it has Q2_K (1.0 GiB), Q3_K_M (2.0 GiB)",
        ),
        ("a/b", ["one.gguf", "two.gguf"], "a/b has nothing that its name shows"),
    ],
)
def test_what_may_be_several_is_answered_with_all(text: str, names: list[str], says: str) -> None:
    with pytest.raises(ModelAmbiguous) as caught:
        chosen(text, *names)
    assert str(caught.value).startswith(says)


def test_a_long_list_is_cut() -> None:
    names = [f"model-{number:03}.gguf" for number in range(100)]
    with pytest.raises(ModelAmbiguous, match=r"model-023\.gguf \(24\.0 GiB\) and 76 more$"):
        chosen("a/b", *names)


@pytest.mark.parametrize("text", ["owner/repo", "owner/repo:Q4_K_M", "owner/repo/file.gguf"])
def test_a_launch_of_what_is_only_on_the_hub_says_what_to_do(text: str) -> None:
    with pytest.raises(ModelMissing, match="fetch it before a launch"):
        read_model(text)


@pytest.mark.parametrize("text", ["/nowhere/x.gguf", "folder/x.gguf", "./a/b"])
def test_a_path_that_is_not_there_is_no_reference(text: str) -> None:
    with pytest.raises(ModelMissing, match="does not exist"):
        read_model(text)


@pytest.mark.parametrize(
    ("names", "text", "found"),
    [
        (["m-Q8_0.gguf"], "a/b", None),
        (["m-Q8_0.gguf", "mmproj-m-F32.gguf", "mmproj-m-BF16.gguf"], "a/b", "mmproj-m-BF16.gguf"),
        (["m-Q8_0.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"], "a/b", "mmproj-F16.gguf"),
        (["m-Q8_0.gguf", "mmproj-m-f32.gguf", "mmproj-m-Q5_1.gguf"], "a/b", "mmproj-m-Q5_1.gguf"),
        (["Q8_0/m-Q8_0.gguf", "mmproj.gguf", "other/mmproj.gguf"], "a/b", "mmproj.gguf"),
        (["Q8_0/m-Q8_0.gguf", "Q8_0/mmproj.gguf", "mmproj.gguf"], "a/b", "Q8_0/mmproj.gguf"),
        (["m-Q8_0.gguf", "n-Q4_0.gguf", "mmproj-n-F16.gguf"], "a/b:Q8_0", None),
        (["m-Q8_0.gguf", "n-Q4_0.gguf", "mmproj-n-F16.gguf"], "a/b:Q4_0", "mmproj-n-F16.gguf"),
        (["m-Q8_0.gguf", "mmproj-m-00001-of-00002.gguf"], "a/b", None),
    ],
)
def test_the_projector_of_a_model_is_found(names: list[str], text: str, found: str | None) -> None:
    listing, reference = files(*names), parse_reference(text)
    assert reference is not None
    beside = projector(listing, choose(listing, reference))
    assert (beside and beside.path) == found
