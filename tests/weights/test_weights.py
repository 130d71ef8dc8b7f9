"""Weights from every source: served, cached, local, in memory; whole, wrong and malicious files."""

import functools
import http.server
import json
import logging
import pickle
import shutil
import threading

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv

import dicenet
from dicenet.data.transforms import Preprocessing
from dicenet.models.fitting import adapt_in_channels, load_weights
from dicenet.weights import catalogue
from dicenet.weights.files import atomic_path, git_blob_sha1, read_checkpoint


@pytest.fixture(scope="session")
def official_state(shared):
    """A whole classifier under official names: width 0.2, 10 classes, trained for 224."""
    tensors = load_file(shared("reference/official/dicenet_s0.2_random_weights.safetensors"))
    return {key.removeprefix("state."): value for key, value in tensors.items()}


@pytest.fixture
def official_file(official_state, tmp_path):
    """The same as the authors store it: an ordered dictionary in torch's old format."""
    path = tmp_path / "dicenet_s_0.2.pth"
    torch.save(official_state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def served(official_file, tmp_path, monkeypatch):
    """The official file behind a server on loopback, in the catalogue with its hash; an empty cache."""
    entry = catalogue.find("dicenet_020.edgenets_in1k")._replace(
        git_blob_sha1=git_blob_sha1(official_file), path="zoo/dicenet_s_0.2_imagenet_224x224.pth"
    )
    (tmp_path / "web/zoo").mkdir(parents=True)
    shutil.copy(official_file, tmp_path / "web" / entry.path)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("DICENET_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(catalogue, "entries", lambda: (entry,))
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        yield entry
        server.shutdown()


def logits(net):
    with torch.no_grad():
        return net.eval()(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))


# -- the catalogue


def test_catalogue_equals_the_official_list(shared):
    lines = (shared("weights") / "edgenets_catalogue.tsv").read_text().splitlines()
    header, *rows = [line.split("\t") for line in lines if not line.startswith("#")]
    listed = [dict(zip(header, row, strict=True)) for row in rows]
    assert len(catalogue.entries()) == len(listed) == 63
    for entry, row in zip(catalogue.entries(), listed, strict=True):
        assert (entry.git_blob_sha1, entry.metric, entry.url) == (
            row["git_blob_sha1"],
            row["published_metric"],
            row["address"],
        )
        assert entry.architecture == f"{row['network']}_{round(float(row['scale']) * 100):03d}"
    names = [entry.name for entry in catalogue.entries()]
    assert len(set(names)) == 63
    assert {"dicenet_175.edgenets_city_512x256", "dicenet_020.edgenets_voc_384"} <= set(names)


def test_hashes_of_the_files_at_hand(shared):
    stored = [entry for entry in catalogue.entries() if (shared("weights") / entry.path.split("/")[-1]).exists()]
    assert len(stored) == 5
    for entry in stored:
        assert git_blob_sha1(shared("weights") / entry.path.split("/")[-1]) == entry.git_blob_sha1


def test_git_blob_sha1_of_a_known_file(tmp_path):
    (tmp_path / "file").write_text("hello\n")  # git hash-object
    assert git_blob_sha1(tmp_path / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_timm_knows_the_official_weights():
    assert timm.list_pretrained("dicenet*") == [
        f"dicenet_{n}.edgenets_in1k" for n in ("020", "050", "075", "100", "125", "150", "175", "200")
    ]
    assert set(timm.list_models("dicenet*")) == {width.name for width in dicenet.models.dicenet.WIDTHS}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("espnetv2_050.edgenets_in1k_onnx", "listed for completeness"),
        ("shufflenetv2_050.edgenets_in1k", "listed for completeness"),
        ("dicenet_240.edgenets_in1k", "no official checkpoint is called dicenet_240.edgenets_in1k: the nearest are"),
    ],
)
def test_not_loadable(name, message):
    with pytest.raises(dicenet.WeightsError, match=message):
        catalogue.fetch(name)


# -- fetching


def test_fetched_once_then_offline(served, monkeypatch, official_state):
    path = catalogue.fetch(served.name, progress=False)
    assert path == catalogue.cache_dir() / "dicenet_s_0.2_imagenet_224x224.pth"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    monkeypatch.setenv("DICENET_WEIGHTS_URL", "http://127.0.0.1:9/")  # nobody answers there
    assert catalogue.fetch(served.name) == path
    net = timm.create_model("dicenet_020", pretrained=True, num_classes=10)
    torch.testing.assert_close(net.classifier.bias, official_state["classifier.2.bias"])


def test_no_connection(served, monkeypatch):
    monkeypatch.setenv("DICENET_WEIGHTS_URL", "http://127.0.0.1:9/")
    with pytest.raises(dicenet.WeightsError, match=r"cannot download .*place the file at"):
        catalogue.fetch(served.name)
    assert list(catalogue.cache_dir().iterdir()) == []


def test_missing_on_the_server(served, monkeypatch):
    monkeypatch.setattr(catalogue, "entries", lambda: (served._replace(path="zoo/gone.pth"),))
    with pytest.raises(dicenet.WeightsError, match=r"cannot download .*gone.pth: Not Found|File not found"):
        catalogue.fetch(served.name)


def test_wrong_hash_in_the_cache_deletes_nothing(served):
    path = catalogue.cache_dir() / "dicenet_s_0.2_imagenet_224x224.pth"
    path.parent.mkdir(parents=True)
    path.write_text("the user's own")
    with pytest.raises(dicenet.WeightsError) as caught:
        catalogue.fetch(served.name)
    assert served.git_blob_sha1 in str(caught.value)
    assert git_blob_sha1(path) in str(caught.value)
    assert path.read_text() == "the user's own"


def test_wrong_hash_of_a_download_is_not_kept(served, monkeypatch):
    monkeypatch.setattr(catalogue, "entries", lambda: (served._replace(git_blob_sha1="0" * 40),))
    with pytest.raises(dicenet.WeightsError, match=served.git_blob_sha1 + ".*" + "0" * 40):
        timm.create_model("dicenet_020", pretrained=True)
    assert list(catalogue.cache_dir().iterdir()) == []


# -- other classes, channels, features, from every source


@pytest.fixture(
    params=["catalogue", "EdgeNets file", "EdgeNets state", "own file", "pytorchcv state", "timm file", "timm state"]
)
def source(request, official_state, official_file, tmp_path):
    """The same network from every place that weights come from: something that builds it."""
    if request.param == "catalogue":
        entry = request.getfixturevalue("served")
        return lambda **kwargs: dicenet.load(entry.name, **kwargs)
    if request.param == "EdgeNets file":
        return lambda **kwargs: dicenet.load_edgenets(official_file, **kwargs)
    if request.param == "EdgeNets state":
        return lambda **kwargs: dicenet.load_edgenets(official_state, **kwargs)
    if request.param == "own file":
        dicenet.save(dicenet.load_edgenets(official_state), tmp_path / "own.safetensors")
        return lambda **kwargs: dicenet.load(tmp_path / "own.safetensors", **kwargs)
    if request.param.startswith("timm"):
        overlay = {"file": str(official_file)} if request.param == "timm file" else {"state_dict": official_state}
        defaults = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": 10}
        return lambda **kwargs: timm.create_model("dicenet_020", **{**defaults, **kwargs})
    from pytorchcv.model_provider import get_model

    theirs = get_model("dicenet_wd5", num_classes=10)
    ours = dicenet.load_edgenets(official_state).state_dict()
    names = dicenet.weights.pytorchcv.PYTORCHCV
    theirs.load_state_dict({key: ours[names._rename(key)] for key in theirs.state_dict()})
    return lambda **kwargs: dicenet.load_pytorchcv(theirs, **kwargs)


@pytest.fixture
def original(official_state):
    return dicenet.load_edgenets(official_state)


def test_as_it_is(source, original):
    torch.testing.assert_close(logits(source()), logits(original), rtol=0, atol=0)


def test_another_class_count(source, original):
    net = source(num_classes=3)
    assert logits(net).shape == (1, 3)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(net.eval().forward_features(x), original.eval().forward_features(x), rtol=0, atol=0)


def test_another_channel_count(source, original):
    net = source(in_chans=1).eval()
    grey = torch.rand(1, 1, 64, 64)
    # one channel stands for three equal ones
    expected = original.eval().forward_features(grey.expand(1, 3, 64, 64))
    torch.testing.assert_close(net.forward_features(grey), expected, rtol=1e-4, atol=1e-4)


def test_features_only(source, original):
    net = source(features_only=True, out_indices=(2, 4)).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = original.eval().forward_intermediates(x, [2, 4], intermediates_only=True)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    assert net.feature_info.channels() == [32, 128]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_channels_are_adapted_as_in_timm(channels):
    weight = torch.randn(8, 3, 3, 3)
    torch.testing.assert_close(adapt_in_channels(weight, channels), adapt_input_conv(channels, weight))


def test_grey_to_colour_keeps_the_response():
    weight = torch.randn(8, 1, 3, 3)
    torch.testing.assert_close(adapt_in_channels(weight, 3).sum(1), weight[:, 0])


def test_segmentation_backbone_through_timm(shared):
    file = str(shared("weights") / "dicenet_s_1.0_pascal_384x384.pth")
    net = timm.create_model(
        "dicenet_100", pretrained=True, pretrained_cfg_overlay={"file": file}, features_only=True, out_indices=(0, 3)
    )
    expected = dicenet.load_edgenets(file, features_only=True, out_indices=(0, 3))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(net.eval()(x), expected.eval()(x), rtol=0, atol=0)


def test_report_names_what_is_left_out(official_state, caplog):
    net = timm.create_model("dicenet_020", num_classes=3, in_chans=4)
    with caplog.at_level(logging.INFO, "dicenet"):
        report = load_weights(net, official_state)
    assert report.format == "EdgeNets"
    assert set(report.left_out) == set(report.initialised) == {"classifier.weight", "classifier.bias"}
    assert "adapted from 3 to 4 channels" in caplog.text
    assert "classifier of 10 classes not used" in caplog.text
    assert all(record.levelno == logging.INFO for record in caplog.records)


def test_wrapped_states(official_state, tmp_path):
    wrapped = {"state_dict": {f"module.{key}": value for key, value in official_state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "run.pth.tar")
    torch.testing.assert_close(
        logits(dicenet.load(tmp_path / "run.pth.tar")), logits(dicenet.load(official_state)), rtol=0, atol=0
    )


# -- what does not fit


def test_another_width(official_state):
    with pytest.raises(dicenet.WeightsError, match="of another width than dicenet_050"):
        load_weights(timm.create_model("dicenet_050", num_classes=10), official_state)


@pytest.mark.parametrize("img_size", [256, (224, 256)])
def test_another_trained_size(official_state, img_size):
    with pytest.raises(dicenet.WeightsError, match=r"trained for pictures of 224x224.*img_size=\(224, 224\).*rebase"):
        load_weights(timm.create_model("dicenet_020", num_classes=10, img_size=img_size), official_state)


def test_another_stem(official_state):
    net = timm.create_model("dicenet_020", num_classes=10, img_size=56, stem="small")
    assert net.stages[0][0].right[1].dim_conv.feature_size == (28, 28)  # the shapes would fit
    with pytest.raises(dicenet.WeightsError, match="standard stem"):
        load_weights(net, official_state)


def test_bare_states_of_ours_do_not_say_their_stem(caplog):
    net = timm.create_model("dicenet_010", num_classes=3, img_size=32, stem="small")
    loaded = dicenet.load(net.state_dict(), stem="small")
    assert (loaded.trained_size, loaded.stem_type) == ((32, 32), "small")
    torch.testing.assert_close(logits(loaded), logits(net), rtol=0, atol=0)
    assert caplog.text == ""
    dicenet.load(net.state_dict())
    assert "does not say which stem" in caplog.text


def test_missing_level_of_a_segmentation_backbone(shared):
    with pytest.raises(dicenet.WeightsError, match="has no level 4: it holds levels 0 to 3"):
        dicenet.load_edgenets(shared("weights/dicenet_s_0.2_pascal_384x384.pth"), features_only=True, out_indices=(4,))


def test_cache_dir_of_timm(served, tmp_path):
    timm.create_model("dicenet_020", pretrained=True, cache_dir=str(tmp_path / "mine"))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["dicenet_s_0.2_imagenet_224x224.pth"]


def test_another_network():
    with pytest.raises(dicenet.WeightsError, match="of another network"):
        dicenet.load(timm.create_model("mobilenetv3_small_050").state_dict())


def test_wrong_loader(official_state):
    with pytest.raises(dicenet.WeightsError, match="of EdgeNets, not of pytorchcv"):
        dicenet.load_pytorchcv(official_state)


class Malicious:
    def __reduce__(self):
        return print, ("code ran",)


def damaged(tmp_path, kind):
    path = tmp_path / f"{kind}.pth"
    net = timm.create_model("dicenet_010", num_classes=2, img_size=32)
    match kind:
        case "missing":
            pass
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "text":
            path.write_text("<!DOCTYPE html>\n<html>not found</html>\n" * 20)
        case "pickle":
            path.write_bytes(pickle.dumps({"state_dict": Malicious()}))
        case "torch pickle":
            torch.save({"a": Malicious()}, path)
        case "cut pth":
            torch.save(net.state_dict(), path)
            path.write_bytes(path.read_bytes()[:-5000])
        case "cut safetensors":
            dicenet.save(net, path)
            path.write_bytes(path.read_bytes()[:-5000])
        case "list":
            torch.save([1, 2], path)
        case "no tensors":
            torch.save({"a": 1}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "is not a file"),
        ("folder", "is not a file"),
        ("empty", "is empty"),
        ("text", "is not a checkpoint"),
        ("pickle", "refused"),
        ("torch pickle", "refused: .*would run code"),
        ("cut pth", "cannot be read"),
        ("cut safetensors", "not a whole safetensors file"),
        ("list", "holds a list"),
        ("no tensors", "holds no tensors"),
    ],
)
def test_unreadable_files(tmp_path, capsys, kind, message):
    path = damaged(tmp_path, kind)
    with pytest.raises(dicenet.WeightsError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def _write_half(path):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stopped")


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(RuntimeError, match="stopped"):
        _write_half(path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "flat").touch()
    with (
        pytest.raises(dicenet.DicenetError, match=r"cannot write .*flat/file: .*"),
        atomic_path(tmp_path / "flat" / "file"),
    ):
        pass


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("{", "damaged description"),
        ("[]", "incomplete description"),
        ('{"architecture": "dicenet_010"}', "incomplete description"),
        ('{"architecture": "dicenet_011", "model_args": {}}', "'dicenet_011' is unknown"),
        ('{"architecture": "dicenet_010", "model_args": {}, "format": 99}', "newer dicenet"),
        ('{"architecture": "dicenet_010", "model_args": {"pretrained": true}}', "pretrained is True"),
        ('{"architecture": "dicenet_010", "model_args": [1]}', r"model_args is \[1\]"),
        ('{"architecture": 7, "model_args": {}}', "architecture is 7"),
        ('{"architecture": "dicenet_010", "model_args": {}, "input_size": 64}', "input_size is 64"),
        ('{"architecture": "dicenet_010", "model_args": {}, "class_names": 2}', "class_names is 2"),
        ('{"architecture": "dicenet_010", "model_args": {"checkpoint_path": "a"}}', "checkpoint_path is 'a'"),
        ('{"architecture": "dicenet_010", "model_args": {"img_size": "64"}}', "img_size is '64'"),
    ],
)
def test_damaged_descriptions(tmp_path, description, message):
    net = timm.create_model("dicenet_010", num_classes=2, img_size=32)
    save_file(net.state_dict(), tmp_path / "net.safetensors", {"dicenet": description})
    with pytest.raises(dicenet.DicenetError, match=message):
        dicenet.load(tmp_path / "net.safetensors")


def test_only_preprocessing_is_taken_from_a_description(tmp_path):
    net = timm.create_model("dicenet_010", num_classes=2, img_size=32)
    arguments = {"num_classes": 2, "img_size": [32, 32]}
    text = {"architecture": "dicenet_010", "model_args": arguments, "preprocessing": {"crop_pct": 0.5, "file": "x"}}
    save_file(net.state_dict(), tmp_path / "net.safetensors", {"dicenet": json.dumps(text)})
    cfg = dicenet.load(tmp_path / "net.safetensors").pretrained_cfg
    assert cfg["crop_pct"] == 0.5
    assert "file" not in cfg
    for wrong in ({"crop_pct": "x"}, {"crop_pct": 0}, {"mean": 3}, {"std": ["a"]}, {"interpolation": "random"}):
        with pytest.raises(dicenet.ConfigError, match="preprocessing needs"):
            Preprocessing.of({**cfg, **wrong})


def test_saving_checks_the_class_names(tmp_path):
    net = timm.create_model("dicenet_010", num_classes=2, img_size=32)
    with pytest.raises(dicenet.ConfigError, match="3 class names were given for a network of 2 classes"):
        dicenet.save(net, tmp_path / "a.safetensors", ["a", "b", "c"])
