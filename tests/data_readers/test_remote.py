"""Shards by URL, command and pattern: the same samples as local ones, each once; faults of the way are not silent."""

import json
import shutil
import tarfile
from types import SimpleNamespace

import pytest
import torch

import dicenet
from dicenet.data import shards as shards_module
from dicenet.data import streams
from dicenet.data.classification import open_classification_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import Preprocessing, evaluation_transform
from dicenet.tasks.classify import prepare
from prepared_cases import class_folders, serving

TRANSFORM = evaluation_transform(Preprocessing((32, 32)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """24 and 12 pictures, 8 a shard: 3 and 2 shards."""
    root = tmp_path_factory.mktemp("remote")
    source = class_folders(root / "source", {"train": 8, "val": 4}, size=(80, 90))
    return prepare(str(source), str(root / "out"), shard_size=8, workers=0)


@pytest.fixture
def server(prepared):
    with serving(prepared) as (url, faults, asked):
        yield SimpleNamespace(url=url, faults=faults, asked=asked)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(streams, "PAUSE", 0.001)


def samples(path):
    """(part, name, class, pixels) of all samples of a data set, read in order."""
    found = []
    for part, data in open_classification_data(str(path)).parts.items():
        for sample in data.span(range(len(data.files)), 0, len(data)):
            found.append((part, sample.name, sample.target, sample.read().tobytes()))
    return found


def batches(path, train, workers):
    part = open_classification_data(str(path)).parts["train"]
    return list(part.loader(TRANSFORM, train, LoaderSettings(5, workers, seed=4)))


def test_addresses(prepared, server):
    """Folder by URL, URL with a place for the name, command, patterns: all give what the folder gives."""
    local = samples(prepared)
    assert len({pixels for *_, pixels in local}) == 24 + 12
    for path in (
        server.url,
        f"{server.url}/",
        f"{server.url}/{{}}?key=1",
        f"pipe:cat {prepared}/{{}}",
        f"pipe:cd {prepared} && cat {{}}",
        f"file://{prepared}",
        f"{server.url}/{{train/train-{{000000..000002}},val/val-{{000000..000001}}}}.tar",
        f"{prepared}/{{train,val}}/*.tar",
    ):
        assert samples(path) == local, path
    one_part = samples(f"{prepared}/train/train-00000{{0,2}}.tar")
    assert [s[1:] for s in one_part] == [s[1:] for s in local if s[0] == "train" and "train-000001" not in s[1]]
    assert {s[0] for s in one_part} == {"train"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("train", [False, True])
def test_batches_are_those_of_the_local_folder(prepared, server, train, workers):
    expected = batches(prepared, train, workers)
    for path in (server.url, f"pipe:cat {prepared}/{{}}"):
        for batch, other in zip(batches(path, train, workers), expected, strict=True):
            assert batch["name"] == other["name"]
            assert torch.equal(batch["target"], other["target"])
            assert torch.equal(batch["image"], other["image"])


@pytest.mark.parametrize("processes", [1, 2])
def test_each_sample_once_with_more_readers_than_shards(server, monkeypatch, processes):
    """3 shards, 4 workers, which begin and end within shards."""
    part = open_classification_data(server.url).parts["train"]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: processes > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    for train in (False, True):
        seen = []
        for rank in range(processes):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            data = shards_module.ShardBatches(part, TRANSFORM, train, LoaderSettings(3, 4))
            for worker in range(4):
                monkeypatch.setattr(shards_module, "get_worker_info", lambda worker=worker: SimpleNamespace(id=worker))
                seen += [name for batch in data for name in batch["name"]]
        assert len(seen) == len(set(seen)) == 24


# -- faults


def test_what_breaks_off_is_taken_up_again(prepared, server, caplog):
    """Answers that may be better next time, and connections that end within a shard, at different places."""
    size = (prepared / "train/train-000001.tar").stat().st_size
    server.faults["/manifest.json"] = [503, 40]
    server.faults["/train/train-000000.tar"] = [500, 429, 503, 502]
    # as long as each try brings new samples there may be any number of them
    server.faults["/train/train-000001.tar"] = [1000, *(size * n // 10 for n in range(1, 9)), 0, 503]
    assert samples(server.url) == samples(prepared)
    assert not any(server.faults.values())
    assert "/train/train-000000.tar: the server answers 500 Internal Server Error; trying again" in caplog.text


def test_a_server_that_stays_away_is_named(server):
    def refused(message, path=server.url):
        with pytest.raises(dicenet.DataError, match=message) as caught:
            samples(path)
        assert "\n" not in str(caught.value)

    server.faults["/train/train-000001.tar"] = [503] * 99
    refused(rf"^{server.url}/train/train-000001.tar cannot be read: the server answers 503 .* \(tried 5 times\)$")
    assert server.asked.count("/train/train-000001.tar") == 5
    server.faults["/train/train-000001.tar"] = [403] * 99
    refused(r"train-000001.tar cannot be read: the server answers 403 Forbidden$")
    assert server.asked.count("/train/train-000001.tar") == 6, "an answer that stays is not asked for again"
    server.faults["/train/train-000001.tar"] = [2000] * 99
    refused(r"train-000001.tar cannot be read: .*(damaged, cut off|ended after 0 of 8).*\(tried 5 times\)")
    server.faults["/train/train-000001.tar"] = [2000] * 99
    with pytest.raises(dicenet.DataError, match=r"train-000001.tar cannot be read"):  # in a reading process
        batches(server.url, True, 2)
    elsewhere = f"{server.url}/elsewhere"
    refused(r"/elsewhere/manifest.json cannot be read: the server answers 404 .*'dicenet prepare'", elsewhere)
    server.faults["/manifest.json"] = [40] * 99
    refused(r"/manifest.json cannot be read: the connection ended early \(tried 5 times\)")


def test_no_server_at_all(prepared):
    with serving(prepared) as (url, _, _):
        pass
    with pytest.raises(dicenet.DataError, match=r"manifest.json cannot be read: Connection refused \(tried 5 times\)"):
        open_classification_data(url)


@pytest.mark.parametrize("kept", [1, 5, 7])
@pytest.mark.parametrize("way", ["file", "http", "pipe"])
def test_a_shard_with_fewer_samples_than_it_should_have(prepared, tmp_path, kept, way):
    """Cut at the edge of a sample it is a sound tar file, without an end: only the count tells."""
    folder = tmp_path / "short"
    shutil.copytree(prepared, folder)
    shard = folder / "train/train-000001.tar"
    with tarfile.open(shard) as archive:
        end = archive.getmembers()[2 * kept].offset
    shard.write_bytes(shard.read_bytes()[:end])
    message = rf"train-000001.tar cannot be read: it ended after {kept} of 8 samples"
    with serving(folder) as (url, _, _):
        path = {"file": folder, "http": url, "pipe": f"pipe:cat {folder}/{{}}"}[way]
        with pytest.raises(dicenet.DataError, match=message):
            samples(path)


def test_a_shard_cut_anywhere(prepared, tmp_path):
    """All cuts are told, those within the last sample too."""
    folder = tmp_path / "short"
    shutil.copytree(prepared, folder)
    shard = folder / "val/val-000001.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        end = archive.getmembers()[-1].offset + 513  # the last file's one byte
    for size in (0, 1, 511, 512, 600, *range(end - 1100, end, 97), end - 1):
        shard.write_bytes(whole[:size])
        with pytest.raises(dicenet.DataError, match=r"val-000001.tar cannot be read"):
            samples(folder)


def test_a_shard_with_more_samples_than_it_should_have(prepared, tmp_path):
    folder = tmp_path / "long"
    shutil.copytree(prepared, folder)
    sizes = json.loads((folder / "val/sizes.json").read_text())
    (folder / "val/sizes.json").write_text(json.dumps({**sizes, "val-000000.tar": 7}))
    with pytest.raises(dicenet.DataError, match=r"val-000000.tar holds more than 7 samples"):
        samples(folder)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pipe:cat /nowhere/{}", "cannot be read: the command failed with exit code 1"),
        ("pipe:exit 7; {}", "the command failed with exit code 7"),
        ("pipe:echo {}", "is not a manifest of 'dicenet prepare'"),
        ("pipe:cat /nowhere", r"needs \{\} where the name of a file is to stand"),
        ("nothing://host/path", "nothing is no scheme that can be read"),
        ("/nowhere/{0..3}.tar", "/nowhere/0.tar does not exist"),
        ("/nowhere/*.tar", "fits no file"),
    ],
)
def test_commands_and_addresses_that_give_nothing(command, message, capfd):
    with pytest.raises(dicenet.DataError, match=message) as caught:
        open_classification_data(command)
    assert "\n" not in str(caught.value)


def test_patterns_need_what_lies_beside_them(prepared, tmp_path, server):
    folder = tmp_path / "bare"
    shutil.copytree(prepared / "train", folder)
    with pytest.raises(dicenet.DataError, match=r"neither .*bare/classes.txt nor one a folder above"):
        open_classification_data(f"{folder}/*.tar")
    shutil.copy(prepared / "classes.txt", folder)
    (folder / "sizes.json").unlink()
    assert {part: len(p) for part, p in open_classification_data(f"{folder}/*.tar").parts.items()} == {"train": 24}
    (folder / "train-000001.tar").rename(folder / "other.tar")
    with pytest.raises(dicenet.DataError, match=r"other.tar is of no part"):
        open_classification_data(f"{folder}/*.tar")
    with pytest.raises(dicenet.DataError, match=r"sizes.json does not say how many samples train-000009.tar holds"):
        open_classification_data(f"{server.url}/train/train-00000{{0,9}}.tar")


@pytest.mark.parametrize("name", ["../secret.tar", "a b.tar", "$(touch made).tar", "a;b.tar", "'a'.tar"])
def test_names_in_a_manifest_cannot_be_commands(prepared, tmp_path, name):
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["parts"]["train"]["shards"][0]["name"] = name
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(dicenet.DataError, match="names parts or files that cannot be"):
        open_classification_data(f"pipe:cat {tmp_path}/{{}}")


def test_manifests_of_others_and_of_newer_versions(prepared, tmp_path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    for content, message in (
        ("[]", "is not a manifest"),
        ("{", "is not a manifest"),
        ('{"format": 1}', "is not a manifest"),
        (json.dumps({**manifest, "format": 2}), "written by a newer dicenet"),
        (json.dumps({**manifest, "classes": [1, 2]}), "that cannot be"),
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(dicenet.DataError, match=message):
            open_classification_data(f"pipe:cat {tmp_path}/{{}}")
