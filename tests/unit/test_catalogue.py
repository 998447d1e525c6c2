"""The starting list: what comes with this program is sound, and what is damaged is refused."""

import pytest

from supervisor.adapters.catalogue_file import read_catalogue
from supervisor.core.catalogue import (
    BITS,
    TASKS,
    CatalogueModel,
    estimated_facts,
    estimated_shape,
    for_task,
    named,
    parse_catalogue,
)
from supervisor.core.model_reference import parse_reference
from supervisor.core.suggesting import bits_of
from supervisor.errors import BadSettings

CATALOGUE = read_catalogue()

ONE = """
[[model]]
id = "one"
repo = "owner/One-GGUF"
licence = "MIT"
parameters = 1_000_000_000
good_at = ["chat"]
about = "A model."
layers = 16
embedding = 2048
kv_elements = 512
vocabulary = 32_000
ctx_train_tokens = 4096
quantisations = ["Q4_K_M", "Q8_0"]
"""


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.id)
def test_every_entry_can_be_asked_for_and_planned(model: CatalogueModel) -> None:
    assert set(model.good_at) <= set(TASKS)
    assert model.about.endswith(".")
    assert (model.active_parameters or 1) < model.parameters
    for quantisation in model.quantisations:
        assert parse_reference(model.reference(quantisation)) is not None
        assert bits_of(quantisation) > 0
        shape, size = estimated_shape(model, quantisation), model.size_bytes(quantisation)
        again = shape.output_matrix_bytes if shape.is_tied else 0
        assert shape.weight_bytes - again == pytest.approx(size, rel=0.01)
        assert shape.n_layers == estimated_facts(model, quantisation).block_count
        read = sum(layer.read_bytes for layer in shape.layers)
        body = sum(layer.size_bytes for layer in shape.layers)
        assert read == pytest.approx(body * model.share, rel=0.01)


def test_nothing_is_there_twice_and_every_task_has_a_model() -> None:
    assert len({model.id for model in CATALOGUE}) == len(CATALOGUE) >= 20
    assert len({model.repo.lower() for model in CATALOGUE}) == len(CATALOGUE)
    for task in TASKS:
        assert for_task(CATALOGUE, task), task
    assert for_task(CATALOGUE, "") == CATALOGUE


def test_a_model_is_found_by_its_id_in_capitals_or_not() -> None:
    found = named(CATALOGUE, "GPT-OSS-20B")
    assert found is not None
    assert found.repo == "ggml-org/gpt-oss-20b-GGUF"
    assert named(CATALOGUE, "nothing") is None


def test_sizes_come_near_those_of_files_that_were_published() -> None:
    """Bytes that the hub lists."""
    for name, quantisation, published in (
        ("llama-3.1-8b", "Q4_K_M", 4_920_739_232),
        ("llama-3.1-8b", "Q8_0", 8_540_775_840),
        ("qwen3-0.6b", "Q8_0", 639_446_688),
        ("gpt-oss-20b", "MXFP4", 12_109_566_560),
    ):
        model = named(CATALOGUE, name)
        assert model is not None
        assert model.size_bytes(quantisation) == pytest.approx(published, rel=0.03)


def test_bits_grow_with_the_order_in_which_they_stand() -> None:
    assert list(BITS.values()) == sorted(BITS.values())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[[model]]", "[[model"), "damaged"),
        (('"chat"', '"juggling"'), "good_at"),
        (('"owner/One-GGUF"', '"One"'), "OWNER/REPO"),
        (('"Q8_0"', '"Q9_9"'), "Q9_9"),
        (("layers = 16", "layers = 0"), "layers"),
        (("layers = 16", "layers = 16\nwings = 2"), "wings"),
    ],
)
def test_a_damaged_catalogue_says_where(change: tuple[str, str], says: str) -> None:
    assert len(parse_catalogue(ONE)) == 1
    with pytest.raises(BadSettings, match=says):
        parse_catalogue(ONE.replace(*change))


def test_a_model_that_is_there_twice_is_refused() -> None:
    with pytest.raises(BadSettings, match="id one twice"):
        parse_catalogue(ONE + ONE.replace("One-GGUF", "Two-GGUF"))
    with pytest.raises(BadSettings, match="One-GGUF twice"):
        parse_catalogue(ONE + ONE.replace('"one"', '"two"'))
