"""Manifests as other programs write them: quotes, separators, names of columns and cells."""

import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scale_ray.corpus import sizes as corpus_sizes
from scale_ray.corpus.corpus import read_corpus
from scale_ray.errors import UserError


def read_csv(tmp_path, data):
    (tmp_path / "m.csv").write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_corpus(str(tmp_path / "m.csv"))


def read_parquet(tmp_path, **columns):
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    return read_corpus(str(tmp_path / "m.parquet"))


def test_many_cells_with_line_breaks(tmp_path):
    caption = "one line, " * 10 + "\nand another"
    rows = "".join(f'{number}.mp4,"{caption}",a\n' for number in range(20_000))
    videos = read_csv(tmp_path, "path,caption,label\n" + rows).videos
    assert len(videos) == 20_000
    assert set(videos["caption"].to_pylist()) == {caption}
    assert set(videos["label"].to_pylist()) == {"a"}


def test_a_cell_of_more_than_a_megabyte(tmp_path):
    caption = "long\n" * 400_000
    videos = read_csv(tmp_path, f'path,caption\na.mp4,"{caption}"\nb.mp4,short\n').videos
    assert videos["caption"].to_pylist() == [caption, "short"]


@pytest.mark.parametrize("num_rows", [2, 20_000])
def test_a_quote_that_is_not_closed_is_refused_with_its_row(tmp_path, num_rows):
    rows = "".join(f"{number}.mp4,a\n" for number in range(num_rows))
    with pytest.raises(UserError, match="expected a closing quote, found none in row 2 or behind it"):
        read_csv(tmp_path, f'path,caption\nfirst.mp4,a\nx.mp4,"open\n{rows}')


def test_a_quote_inside_a_cell_is_a_character(tmp_path):
    videos = read_csv(tmp_path, 'path,caption\n3".mp4,a 5" nail\nb.mp4,"a ""word"""\n').videos
    assert videos["video_id"].to_pylist() == ['3".mp4', "b.mp4"]
    assert videos["caption"].to_pylist() == ['a 5" nail', 'a "word"']


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_and_the_byte_order_mark(tmp_path, separator, mark, end):
    rows = (("path", "label", "camera"), ("a.mp4", "001", "3"))
    text = mark + "".join(separator.join(row) + end for row in rows)
    [row] = read_csv(tmp_path, text).videos.select(["video_id", "label", "camera"]).to_pylist()
    assert row == {"video_id": "a.mp4", "label": "001", "camera": 3}


def test_another_encoding_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="expected text in UTF-8, found UTF-16"):
        read_csv(tmp_path, "path\na.mp4\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"expected a readable manifest, found: .*column #1.*UTF8"):
        read_csv(tmp_path, "path,label\na.mp4,é\n".encode("latin-1"))


@pytest.mark.parametrize("name", ["Label", "LABEL", " label ", "label "])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_is_nearly_one_of_ours_is_read_as_ours(tmp_path, name, suffix):
    if suffix == "csv":
        corpus = read_csv(tmp_path, f"PATH,{name}\na.mp4,007\n")
    else:
        corpus = read_parquet(tmp_path, **{"PATH": ["a.mp4"], name: ["007"]})
    assert corpus.videos["label"].to_pylist() == ["007"]
    assert name not in corpus.videos.column_names
    assert corpus.notes == ("column 'PATH' is read as 'path'", f"column {name!r} is read as 'label'")


def test_every_column_of_ours_is_recognised(tmp_path):
    corpus = read_csv(
        tmp_path,
        "Path,Video_ID, Labels,Target ,GROUP,Split,SPLIT_Loso\na.mp4,1,x|y,2.5,g,train,test\n",
    )
    [row] = corpus.videos.to_pylist()
    assert (row["video_id"], row["labels"], row["target"], row["group"]) == ("1", ["x", "y"], 2.5, "g")
    assert dict(row["splits"]) == {"default": "train", "Loso": "test"}
    assert corpus.videos.column_names[-1] == "splits"


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("label,Label", r"found 'label' more than once \('Label'\)"),
        ("Label,label ", r"found 'label' more than once \('Label', 'label '\)"),
        ("split_1,Split_1", r"found 'split_1' more than once \('Split_1'\)"),
        ("Splits,x", "expected columns 'split' or 'split_NAME', found 'splits'"),
    ],
)
def test_two_columns_for_one_of_ours_are_refused(tmp_path, header, found):
    with pytest.raises(UserError, match=found):
        read_csv(tmp_path, f"path,{header}\na.mp4,a,b\n")


def test_a_column_called_id_beside_video_id_stays_the_users_own(tmp_path):
    corpus = read_csv(tmp_path, "path,video_id,ID,labelled\na.mp4,1,5,yes\n")
    assert corpus.videos.select(["video_id", "ID", "labelled"]).to_pylist() == [
        {"video_id": "1", "ID": 5, "labelled": "yes"}
    ]
    assert corpus.notes == ()


def test_blanks_around_a_path_are_left_out_and_said(tmp_path):
    for name in ("a.mp4", "b.mp4", "b.mp4 "):
        (tmp_path / name).write_text(name)
    rows = ["a.mp4 ", f" {tmp_path}/a.mp4", "b.mp4 ", " gone.mp4", "\thttps://host.invalid/c.mp4", "b.mp4"]
    table = {"video_id": list("123456"), "path": rows, "size_bytes": [None, None, None, None, 7, None]}
    corpus = read_parquet(tmp_path, **table)
    assert corpus.videos["path"].to_pylist() == [
        f"{tmp_path}/a.mp4",
        f"{tmp_path}/a.mp4",
        f"{tmp_path}/b.mp4 ",  # there is a file of exactly this name
        f"{tmp_path}/gone.mp4",
        "https://host.invalid/c.mp4",
        f"{tmp_path}/b.mp4",
    ]
    assert corpus.videos["size_bytes"].to_pylist()[:4] == [5, 5, 6, None]
    assert corpus.notes[0] == "read 4 paths without the blanks around them, such as 'a.mp4 '"
    assert len(corpus.notes) == 2
    assert corpus.notes[1].startswith("1 file is at https://host.invalid, which cannot be reached: ")


def test_blanks_around_a_path_of_a_manifest_at_a_uri(tmp_path):
    (tmp_path / "a.mp4").write_text("video")
    (tmp_path / "m.csv").write_text("path,label\na.mp4 ,x\n")
    corpus = read_corpus(f"file://{tmp_path}/m.csv")
    assert corpus.videos["path"].to_pylist() == [f"file://{tmp_path}/a.mp4"]
    assert corpus.videos["size_bytes"].to_pylist() == [5]
    assert corpus.notes == ("read 1 path without the blanks around it, such as 'a.mp4 '",)


@pytest.mark.parametrize("path", [" https://host/a?x://y", "s3://bucket/a?region=here ", " ftp://host/a.mp4"])
def test_blanks_do_not_hide_a_uri_that_is_refused(tmp_path, path):
    if path.startswith(" https"):
        assert read_csv(tmp_path, f"path\n{path}\n").videos["path"].to_pylist() == [path.strip()]
        return
    with pytest.raises(UserError, match=r"m\.csv, row 1: expected a"):
        read_csv(tmp_path, f"path\n{path}\n")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [["a", "b"]], "text or numbers in column 'label', found list<.*; several labels belong in 'labels'"),
        ("labels", [[["a"]]], "text or numbers in column 'labels', found list<"),
        ("labels", [{"a": 1}], "text or numbers in column 'labels', found struct<"),
        ("group", [{"a": 1}], "text or numbers in column 'group', found struct<"),
        ("split", [["train"]], "text or numbers in column 'split', found list<"),
        ("video_id", [b"\xff"], "text in UTF-8 in column 'video_id', found other bytes"),
        ("labels", [[b"\xff"]], "text in UTF-8 in column 'labels', found other bytes"),
    ],
)
def test_cells_of_another_kind_are_refused_in_one_line(tmp_path, column, values, message):
    with pytest.raises(UserError, match=f"m.parquet: expected {message}") as caught:
        read_parquet(tmp_path, path=["a.mp4"], **{column: values})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary(), pa.binary(5), pa.dictionary(pa.int8(), pa.binary())])
def test_bytes_are_read_as_text(tmp_path, type_):
    plain = pa.array([b"a.mp4", b"b.mp4"])
    cells = plain.dictionary_encode().cast(type_) if pa.types.is_dictionary(type_) else plain.cast(type_)
    corpus = read_parquet(tmp_path, path=cells, label=cells, labels=[[b"x", b"y"], None], camera=cells)
    assert corpus.videos["video_id"].to_pylist() == ["a.mp4", "b.mp4"]
    assert corpus.videos["path"][0].as_py() == f"{tmp_path}/a.mp4"
    assert corpus.videos["label"].to_pylist() == ["a.mp4", "b.mp4"]
    assert corpus.videos["labels"].to_pylist() == [["x", "y"], None]
    assert corpus.videos["camera"].to_pylist() == [b"a.mp4", b"b.mp4"]


@pytest.mark.parametrize("type_", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2)])
def test_lists_of_every_kind_are_labels(tmp_path, type_):
    corpus = read_parquet(tmp_path, path=["a.mp4"], labels=pa.array([["x", "y"]], type_))
    assert corpus.videos["labels"].to_pylist() == [["x", "y"]]


class Servers:
    """File systems in place of remote ones: every file has 5 bytes; a bucket `gone` fails, `silent` never answers."""

    def __init__(self, monkeypatch):
        self.asked, self.released = [], threading.Event()
        original = corpus_sizes.filesystem_of
        monkeypatch.setattr(
            corpus_sizes,
            "filesystem_of",
            lambda location: (self, location) if location.startswith("s3://") else original(location),
        )

    def get_file_info(self, path):
        self.asked.append(path)
        if path.startswith("s3://gone/"):
            raise OSError("no such host\nsecond line")
        if path.startswith("s3://silent/"):
            self.released.wait(60)
        return pa.fs.FileInfo(path, size=5)


def test_a_given_size_of_a_remote_file_is_believed(tmp_path, monkeypatch):
    servers = Servers(monkeypatch)
    (tmp_path / "c.mp4").write_text("abc")
    text = "path,Size_Bytes\ns3://bucket/a.mp4,70\ns3://bucket/b.mp4,\nc.mp4,70\ns3://bucket/d.mp4,8.0\n"
    assert read_csv(tmp_path, text).videos["size_bytes"].to_pylist() == [3, 70, 5, 8]
    assert servers.asked == ["s3://bucket/b.mp4"]


@pytest.mark.parametrize("size", ["big", "inf"])
def test_a_given_size_that_is_no_number_is_refused(tmp_path, size):
    with pytest.raises(UserError, match=f"expected a finite number as size_bytes, found '{size}' in row 1"):
        read_csv(tmp_path, f"path,size_bytes\na.mp4,{size}\n")


def test_a_server_that_does_not_answer_is_one_line_and_the_others_are_asked(tmp_path, monkeypatch):
    servers = Servers(monkeypatch)
    monkeypatch.setattr(corpus_sizes, "_PATIENCE_S", 0.2)
    rows = "".join(f"s3://{name}/{number}.mp4\n" for name in ("gone", "silent", "here") for number in range(100))
    try:
        corpus = read_csv(tmp_path, "path\n" + rows)
    finally:
        servers.released.set()
    sizes = dict(zip(corpus.videos["video_id"].to_pylist(), corpus.videos["size_bytes"].to_pylist(), strict=True))
    assert {size for path, size in sizes.items() if path.startswith("s3://here/")} == {5}
    assert {size for path, size in sizes.items() if not path.startswith("s3://here/")} == {None}
    assert corpus.notes == (
        "100 files are at s3://gone, which cannot be reached: no such host",
        "100 files are at s3://silent, which cannot be reached: no answer within 0 s",
    )
    assert sum(path.startswith("s3://gone/") for path in servers.asked) <= 16


def test_one_file_is_asked_for_where_all_sizes_are_given(tmp_path, monkeypatch):
    servers = Servers(monkeypatch)
    corpus = read_csv(tmp_path, "path,size_bytes\n" + "".join(f"s3://here/{number},7\n" for number in range(50)))
    assert set(corpus.videos["size_bytes"].to_pylist()) == {7}
    assert len(servers.asked) == 1
    assert corpus.notes == ()


def test_files_that_are_all_on_servers_that_cannot_be_reached_are_refused_when_they_are_needed(tmp_path, monkeypatch):
    servers = Servers(monkeypatch)
    monkeypatch.setattr(corpus_sizes, "_PATIENCE_S", 0.2)
    try:
        corpus = read_csv(tmp_path, "path,size_bytes\ns3://gone/a,7\ns3://silent/b,7\nhere.mp4,\n")
    finally:
        servers.released.set()
    assert corpus.unreachable == {"s3://gone": "no such host", "s3://silent": "no answer within 0 s"}
    corpus.check_reachable([])
    corpus.check_reachable(corpus.videos["path"].to_pylist())
    with pytest.raises(UserError, match="expected to reach s3://gone, found: no such host"):
        corpus.check_reachable(["s3://silent/b", "s3://gone/a"])


def test_a_server_that_refuses_was_reached(tmp_path, monkeypatch):
    servers = Servers(monkeypatch)
    monkeypatch.setattr(servers, "get_file_info", lambda path: (_ for _ in ()).throw(OSError("ACCESS_DENIED during")))
    corpus = read_csv(tmp_path, "path\ns3://closed/a\n")
    assert corpus.unreachable == {}
    assert corpus.notes == ("sizes of files at s3://closed are not known (1): ACCESS_DENIED during",)


class Listed(Servers):
    """Servers whose folders can be listed: `folder_N` holds `0.mp4` to `99.mp4` of as many bytes as their number."""

    def get_file_info(self, path):
        if not isinstance(path, pa.fs.FileSelector):
            return super().get_file_info(path)
        self.asked.append(path.base_dir)
        if path.base_dir.endswith("folder_1"):
            raise OSError("cannot be listed")
        names = [f"{number}.mp4" for number in range(100)]
        file = pa.fs.FileType.File
        return [pa.fs.FileInfo(f"{path.base_dir}/{name}", file, size=int(name[:-4])) for name in names]


def test_folders_of_many_files_are_listed(tmp_path, monkeypatch):
    servers = Listed(monkeypatch)
    monkeypatch.setattr(corpus_sizes, "_MOST_ASKED", 10)
    rows = [f"s3://here/folder_{folder}/{number}.mp4" for folder in range(3) for number in range(101)]
    corpus = read_csv(tmp_path, "path\n" + "\n".join(rows) + "\n")
    sizes = dict(zip(corpus.videos["video_id"].to_pylist(), corpus.videos["size_bytes"].to_pylist(), strict=True))
    probed = {path for path in servers.asked if path.endswith(".mp4")}
    assert len(probed) == 16
    assert len(servers.asked) == 16 + 3
    for path in set(rows) - probed:
        folder, _, name = path.removeprefix("s3://here/").rpartition("/")
        expected = None if folder == "folder_1" or name == "100.mp4" else int(name.removesuffix(".mp4"))
        assert sizes[path] == expected
    unknown = sum("folder_1/" in path for path in set(rows) - probed)
    assert corpus.notes == (f"{unknown} sizes are not known before the files are opened",)


@pytest.mark.parametrize("rows", ["https://here/{n}.mp4", "s3://here/{n}/v.mp4"])
def test_sizes_that_would_take_a_request_each_are_left_until_the_files_are_opened(tmp_path, monkeypatch, rows):
    servers = Listed(monkeypatch)
    original = corpus_sizes.filesystem_of
    monkeypatch.setattr(
        corpus_sizes, "filesystem_of", lambda at: (servers, at) if at.startswith("https") else original(at)
    )
    monkeypatch.setattr(corpus_sizes, "_MOST_ASKED", 10)
    monkeypatch.setattr(corpus_sizes, "info_of", lambda filesystem, path: filesystem.get_file_info(path))
    corpus = read_csv(tmp_path, "path\n" + "".join(rows.format(n=n) + "\n" for n in range(200)))
    assert len(servers.asked) == 16
    assert corpus.notes == ("184 sizes are not known before the files are opened",)
    assert corpus.videos["size_bytes"].null_count == 184
