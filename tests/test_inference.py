"""Inference: evaluation and prediction by stored weights; frozen networks give the logits of the network."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import resode
from resode.cli import main
from resode.data import Images
from resode.errors import InputError, IntegrityError
from resode.inference import Frozen, evaluate, predict
from resode.models import create
from resode.weights import Card, Preprocessing, Specification, save

PARABOLIC = {"name": "parabolic", "norm": "batch"}
MODELS = {
    "classical": {"name": "he_resnet8", "widths": (4, 4, 8)},
    "dynamic": {
        "name": "dynamic",
        "stages": [
            {"width": 4, "field": {"name": "parabolic", "norm": "batch"}, "integrator": "rk4", "states": 2}
        ],
    },
}


def trained(model):
    """A network whose running statistics are not those of initialisation."""
    torch.manual_seed(0)
    network = create(**model)
    for _ in range(3):
        network(1 + torch.randn(8, 3, 8, 8))
    return network.eval()


@pytest.fixture
def digits(tmp_path):
    """A weights file of a small network of digits."""
    torch.manual_seed(0)
    network = create("digits_resnet8", widths=(4, 4, 8))
    network(torch.rand(64, 1, 8, 8))
    file = tmp_path / "net.safetensors"
    shape = Preprocessing(mean=(0.3,), std=(0.4,), size=(8, 8), channels=1, classes=tuple("0123456789"))
    made = Specification("digits_resnet8", {"widths": [4, 4, 8]})
    save(network.eval(), file, Card(made, shape, {"data": "digits"}))
    return file


def logits_of(file):
    """The logits of the test images of digits, straight from the network."""
    network, test = resode.load(file), resode.load_data("digits").test
    pixels = torch.from_numpy(np.array(test.pixels)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return network(network.preprocessing(pixels)), torch.from_numpy(test.labels)


def test_scores_are_those_of_the_logits(digits):
    logits, labels = logits_of(digits)
    found = evaluate(digits, batch_size=100)
    assert found.scores.correct == int((logits.argmax(1) == labels).sum())
    assert found.scores.loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5
    )
    assert (found.model, found.data, found.split) == ("digits_resnet8", "digits", "test")
    assert found.record()["samples"] == len(labels) == len(found.images)
    assert evaluate(digits, split="train").scores.samples > len(labels)


def test_weights_without_data_need_some(digits):
    network = resode.load(digits)
    save(network, digits, Card(network.card.specification, network.card.preprocessing))
    with pytest.raises(InputError, match="give data"):
        evaluate(digits)
    assert evaluate(digits, data="digits").data == "digits"


def test_probabilities_are_those_of_the_logits_and_unreadable_files_are_listed(digits, tmp_path):
    logits, _ = logits_of(digits)
    test, folder = resode.load_data("digits").test, tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.array(test.pixels[number, :, :, 0])).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    found = predict(digits, [folder, tmp_path / "missing.png"], top=2)
    assert [each.file.name for each in found.images] == ["0.png", "1.png", "2.png"]
    for row, each in zip(logits[:3].softmax(1), found.images, strict=True):
        best = row.topk(2)
        assert list(each.probabilities) == [str(i) for i in best.indices.tolist()]
        assert list(each.probabilities.values()) == pytest.approx(best.values.tolist(), abs=1e-6)
    (missing,) = map(str, found.errors)
    assert missing == f"{tmp_path / 'missing.png'}: no such file"
    assert found.skipped == (folder / "notes.txt",)


def test_damaged_weights_give_no_result(digits, tmp_path):
    network = resode.load(digits)
    torch.nn.init.constant_(network.fc.bias, torch.nan)
    save(network, digits, network.card)
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    with pytest.raises(IntegrityError, match="not finite"):
        evaluate(digits)
    with pytest.raises(IntegrityError, match="not finite"):
        predict(digits, [tmp_path / "image.png"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("model", MODELS)
def test_frozen_logits_are_those_of_the_network(model):
    network = trained(MODELS[model])
    frozen = Frozen(network)
    for size in (4, 3, 9):  # the first decides, one is filled up, one is divided
        x = torch.randn(size, 3, 8, 8)
        with torch.inference_mode():
            torch.testing.assert_close(frozen(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_image_in_a_folder_is_skipped(digits, tmp_path):
    """A damaged image is an error, and so is a file that was named, or a folder without images."""
    folder, texts = tmp_path / "photos", tmp_path / "texts"
    for each in (folder / "a", texts):
        each.mkdir(parents=True)
        (each / "notes.txt").write_text("no image")
    image = np.zeros((8, 8), np.uint8)
    Image.fromarray(image).save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:40])
    found = predict(digits, [folder])
    assert [each.file.name for each in found.images] == ["good.png"]
    assert found.skipped == (folder / "a" / "notes.txt",)
    assert [type(error) for error in found.errors] == [IntegrityError]
    named = predict(digits, [folder / "a" / "notes.txt", texts])
    first, second = sorted(map(str, named.errors))
    assert "notes.txt is not an image" in first
    assert second == f"{texts}: holds no images"


def test_frozen_networks_evaluate_and_predict_the_same(digits, tmp_path, capsys, monkeypatch):
    file, image = digits, tmp_path / "image.png"
    Image.new("L", (8, 8), 100).save(image)
    asked, logits = [], Frozen.forward
    monkeypatch.setattr(Frozen, "forward", lambda self, x: asked.append(len(x)) or logits(self, x))

    def said(*words):
        with pytest.raises(SystemExit) as exit_:
            main([*words, "--json"])
        assert not exit_.value.code
        return json.loads(capsys.readouterr().out)

    plain, first = said("evaluate", str(file)), said("predict", str(file), str(image))
    assert not asked
    frozen = said("evaluate", str(file), "--compile", "on")
    assert asked == [360]
    half = said("evaluate", str(file), "--compile", "on", "--precision", "bf16")
    assert asked == [360, 360]
    assert half["precision"] == "bf16"
    assert half["loss"] == pytest.approx(plain["loss"], rel=1e-2)
    asked.pop()
    again = said("predict", str(file), str(image), "--compile", "on")
    assert asked == [360, 1]
    assert again[0]["probability"] == pytest.approx(first[0]["probability"], abs=1e-4)
    assert frozen["samples"] == plain["samples"]
    assert frozen["top1_error"] == pytest.approx(plain["top1_error"], abs=0.3)
    assert frozen["loss"] == pytest.approx(plain["loss"], rel=1e-4)


# ---------------------------------------------------------------- what a user has


@pytest.fixture
def network(digits):
    """A network with its preprocessing, and digits to give to it."""
    return resode.load(digits)


TEST = resode.load_data("digits").test
GREY = np.array(TEST.pixels[..., 0])
FIRST = torch.from_numpy(np.array(TEST.pixels)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "data",
    [
        "digits",
        resode.load_data("digits"),
        TEST,
        (TEST.pixels, TEST.labels),
        (GREY, TEST.labels.tolist()),
        (FIRST, torch.from_numpy(TEST.labels)),
        (FIRST / 255, TEST.labels),
        (FIRST.double() / 255, TEST.labels),
        TensorDataset(FIRST, torch.from_numpy(TEST.labels)),
    ],
)
def test_evaluate_takes_the_data_that_a_user_has(network, digits, data):
    expected = evaluate(digits)
    found = evaluate(network, data)
    assert found.confusion.tolist() == expected.confusion.tolist()
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.classes == expected.classes


@pytest.mark.parametrize(
    "images",
    [
        TEST.pixels[:3],
        GREY[:3],
        FIRST[:3],
        FIRST[:3] / 255,
        [Image.fromarray(image) for image in GREY[:3]],
        list(GREY[:3]),
        list(FIRST[:3]),
        [GREY[0], FIRST[1], Image.fromarray(GREY[2])],
        Images.of(TEST.pixels[:3], TEST.labels[:3]),
    ],
)
def test_predict_takes_the_images_that_a_user_has(network, digits, images):
    logits, _ = logits_of(digits)
    found = predict(network, images)
    assert found.classes == [str(i) for i in logits[:3].argmax(1).tolist()]
    assert found.probabilities == pytest.approx(logits[:3].softmax(1).amax(1).tolist(), abs=1e-6)
    assert [each.file for each in found] == [None] * 3


@pytest.mark.parametrize("image", [TEST.pixels[0], GREY[0], FIRST[0], Image.fromarray(GREY[0])])
def test_a_single_image_is_one(network, image):
    assert len(predict(network, image)) == 1


def test_pixels_of_another_size_are_fitted_like_files(network, tmp_path):
    large = Image.fromarray(GREY[0]).resize((30, 20)).convert("RGB")
    large.save(tmp_path / "large.png")
    (file,) = predict(network, tmp_path / "large.png")
    (pixels,) = predict(network, np.array(large))
    assert file.probabilities == pixels.probabilities


def test_a_network_without_preprocessing_gets_pixels_from_0_to_1(network):
    plain, mode = torch.nn.Sequential(network), network.training
    found = evaluate(plain, (TEST.pixels, TEST.labels))
    with torch.inference_mode():
        right = network(FIRST / 255).argmax(1).numpy() == TEST.labels
    assert found.scores.correct == right.sum()
    assert "no preprocessing" in repr(found)
    assert predict(plain, TEST.pixels).classes == [str(i) for i in network(FIRST / 255).argmax(1).tolist()]
    assert network.training is mode


def test_a_network_keeps_its_mode_and_its_dtype(network):
    network.train().double()
    first = evaluate(network, "digits")
    assert first.scores.precision == "fp64"
    assert network.training
    predict(network, TEST.pixels[:1])
    assert network.training


def test_representations_fit_in_a_few_lines(network):
    assert (
        repr(evaluate(network, "digits"))
        .splitlines()[0]
        .startswith("digits_resnet8 on digits (test, 360 images")
    )
    shown = repr(predict(network, TEST.pixels)).splitlines()
    assert len(shown) == 7
    assert shown[-1] == "... and 355 more"


MISTAKES = {
    "no path": (lambda net: evaluate("nowhere"), "no such run, checkpoint or file"),
    "an empty folder": (lambda net: evaluate("."), "holds no run"),
    "a number": (lambda net: evaluate(3), "a value of type int; give a network"),
    "a class": (lambda net: evaluate(torch.nn.Linear), r"the class Linear; give .*Linear\(...\)"),
    "no data": (lambda net: evaluate(torch.nn.Sequential(net)), "does not say what it was trained on"),
    "a number as data": (lambda net: evaluate(net, 3), "data cannot be of type int"),
    "another split": (lambda net: evaluate(net, "digits", split="validation"), "give 'test' or 'train'"),
    "no batch": (lambda net: evaluate(net, "digits", batch_size=0), "batch_size cannot be 0"),
    "a precision": (lambda net: evaluate(net, "digits", precision="fp8"), "precision cannot be 'fp8'"),
    "floats to 255": (
        lambda net: evaluate(net, (GREY * 1.0, TEST.labels)),
        "floats from 0 to 255; give them in 0",
    ),
    "other labels": (
        lambda net: evaluate(net, (GREY, TEST.labels + 1)),
        "out of range; the network has classes 0",
    ),
    "another size": (lambda net: evaluate(net, (GREY[:, :7], TEST.labels)), "are 7x8, the network takes 8x8"),
    "colours": (lambda net: evaluate(net, (GREY[..., None].repeat(3, 3), TEST.labels)), "3 channels"),
    "no image": (lambda net: evaluate(net, (GREY[:0], TEST.labels[:0])), "there is none"),
    "no memory": (lambda net: evaluate(net.to("meta"), "digits"), "parameters on meta"),
    "too few logits": (
        lambda net: evaluate(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7)), TEST),
        r"shape \(1, 7\).*10 classes",
    ),
    "no logits": (
        lambda net: evaluate(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LSTM(64, 10)), TEST),
        "shape tuple",
    ),
    "a network of photos": (
        lambda net: evaluate(torch.nn.Sequential(torch.nn.Conv2d(3, 10, 8)), TEST),
        "does not take the images",
    ),
    "nothing to predict": (lambda net: predict(net, []), "there is none"),
    "None to predict": (lambda net: predict(net, None), "give files, folders"),
    "a number to predict": (lambda net: predict(net, [3]), "image 0 is of type int"),
    "pairs to predict": (lambda net: predict(net, [(GREY[0], 1)]), "image 0 is of type tuple"),
    "truth values": (lambda net: predict(net, GREY > 9), "dtype bool"),
    "floats of another size": (lambda net: predict(net, GREY[:2, :7] / 255), "the network takes 8x8x1"),
    "no class": (lambda net: predict(net, GREY, top=0), "top cannot be 0"),
    "unequal sizes": (
        lambda net: predict(torch.nn.Sequential(net), [GREY[0], GREY[1, :7]]),
        "unequal shape",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(network, mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message) as error:
        call(network)
    assert len(error.value.messages) == 1


# ---------------------------------------------------------------- classes


class Named(TensorDataset):
    """The test images of digits as a torch Dataset whose classes have names, in an order of their own."""

    def __init__(self, names):
        order = torch.tensor([names.index(name) for name in "0123456789"])
        super().__init__(FIRST, order[torch.from_numpy(TEST.labels)])
        self.classes = list(names)


class Torchvision:
    """Like a data set of torchvision: it has no tensors, and an attribute `classes`."""

    def __init__(self, names):
        self.inner, self.classes = Named(names), list(names)

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, position):
        return self.inner[position]


@pytest.mark.parametrize("kind", [Named, Torchvision])
def test_named_classes_of_a_torch_dataset_are_matched_by_name(network, kind):
    expected = evaluate(network, "digits")
    found = evaluate(network, kind(list("5170328946")))
    assert found.confusion.tolist() == expected.confusion.tolist()
    assert found.matching == found.record()["classes"] == "by-name"
    with pytest.raises(InputError, match=r"are not the network's .*--classes by-position"):
        evaluate(network, renamed(kind))


def renamed(kind):
    data = kind(list("0123456789"))
    data.classes = [f"digit {name}" for name in data.classes]
    return data


def test_classes_are_matched_as_the_user_says(network):
    expected = evaluate(network, "digits")
    data = renamed(Named)
    by_position = evaluate(network, data, classes="by-position")
    assert by_position.confusion.tolist() == expected.confusion.tolist()
    assert by_position.record()["classes"] == "by-position"
    assert any("by position" in note for note in by_position.notes)
    mapping = {f"digit {i}": str(9 - i) for i in range(10)}
    mapped = evaluate(network, data, classes=mapping)
    assert mapped.confusion.tolist() == expected.confusion.flip(0).tolist()
    assert json.loads(json.dumps(mapped.record()))["classes"] == mapping
    for wrong, message in (("by-nam", "not 'by-nam'"), (3, "classes cannot be"), ({}, "lacks its class")):
        with pytest.raises(InputError, match=message):
            evaluate(network, data, classes=wrong)


def test_numbers_of_arrays_are_positions_unless_they_are_mapped(network):
    network.preprocessing = replace(network.preprocessing, classes=tuple("abcdefghij"))
    arrays = (TEST.pixels, TEST.labels)
    found = evaluate(network, arrays)
    assert (found.matching, found.classes[0]) == ("by-position", "a")
    mapping = dict(zip("0123456789", "bacdefghij", strict=True))
    mapped = evaluate(network, arrays, classes=mapping)
    assert mapped.confusion.tolist() == found.confusion[[1, 0, *range(2, 10)]].tolist()
    with pytest.raises(InputError, match=r"digits: its classes .* are not the network's"):
        evaluate(network, "digits")  # names in a file are no positions


def test_assumed_names_pass_and_are_called_so(digits, tmp_path):
    network = resode.load(digits)
    card = replace(network.card, training={"data": "digits", "classes": "assumed"})
    letters = replace(card, preprocessing=replace(card.preprocessing, classes=tuple("abcdefghij")))
    expected = evaluate(digits)
    for each, how in ((card, "by-name"), (letters, "assumed")):
        save(network, tmp_path / "assumed.safetensors", each)
        found = evaluate(tmp_path / "assumed.safetensors")
        assert found.confusion.tolist() == expected.confusion.tolist()
        assert found.record()["classes"] == how
        assert any("the names of its classes are assumed" in note for note in found.notes)
    asked = evaluate(tmp_path / "assumed.safetensors", classes="by-position")
    assert asked.record()["classes"] == "by-position"


def test_predictions_of_nothing_say_why():
    network = create("digits_resnet8")
    with pytest.raises(InputError, match="images: there is none"):
        predict(network, np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"cat\.jpg: no such file"):
        predict(network, "cat.jpg")[0]
