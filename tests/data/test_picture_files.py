"""Pictures by their paths."""

import pytest

from trainer.data.picture_files import Found, find_pictures

ADDRESSES = {
    "https://example.com/a.jpg?size=*": "curl -O",
    "http://example.com/a.jpg": "curl -O",
    "gs://bucket/a.jpg": "gcloud storage cp",
    "s3://bucket/a.jpg": "aws s3 cp",
}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_says_what_to_do_instead(address, listed):
    paths, lines = (["-"], [address.encode() + b"\n"]) if listed else ([address], [])
    reason = f"an address, and only files are read: download it first, as with {ADDRESSES[address]} {address}"
    assert list(find_pictures(paths, lines=lines)) == [Found(address, reason)]


def test_a_file_url_is_a_path(tmp_path):
    (tmp_path / "a b%.jpg").write_bytes(b"x")
    for host in ("", "localhost"):
        (found,) = find_pictures([f"file://{host}{tmp_path}/a%20b%25.jpg"])
        assert found == Found(str(tmp_path / "a b%.jpg"))
    (found,) = find_pictures(["file://elsewhere/a.jpg"])
    assert found == Found("file://elsewhere/a.jpg", "an address, and only files are read: download it first")


def test_a_file_that_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "https:" / "x").mkdir(parents=True)
    (tmp_path / "https:" / "x" / "a.jpg").write_bytes(b"x")
    assert list(find_pictures(["https://x/a.jpg"])) == [Found("https://x/a.jpg")]
