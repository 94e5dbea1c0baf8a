"""Official layouts, on tiny copies of the data sets with lists in the official formats."""

import dataclasses
import json

import pytest
from support.corpora import make, rows_of

from scale_ray.config import CorpusOptions
from scale_ray.corpus.corpus import read_corpus
from scale_ray.corpus.layouts import LAYOUTS
from scale_ray.errors import UserError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def test_every_layout_is_an_option_and_every_option_a_layout():
    checks = {field.name: field.metadata["check"] for field in dataclasses.fields(CorpusOptions)}
    assert checks["layout"].expected == "one of " + ", ".join(["auto", "folder", *LAYOUTS])


@pytest.fixture
def ucf101(tmp_path):
    make(
        tmp_path / "UCF-101",
        "Archery/v_Archery_g01_c01.avi",
        "Archery/v_Archery_g01_c02.avi",
        "Archery/v_Archery_g08_c01.avi",
        "HandstandPushups/v_HandStandPushups_g08_c01.avi",
        "Archery/v_Archery_g26_c01.avi",
        "Archery/notes.txt",
    )
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 Archery\r\n2 HandstandPushups\r\n")
    hand = "HandstandPushups/v_HandStandPushups_g08_c01.avi"
    clip_1_1, clip_1_2, clip_8_1 = (f"Archery/v_Archery_{name}.avi" for name in ("g01_c01", "g01_c02", "g08_c01"))
    write(lists / "trainlist01.txt", f"{clip_8_1} 1\r\n{hand} 2\r\nArchery/v_Archery_g09_c01.avi 1\r\n")
    write(lists / "testlist01.txt", f"{clip_1_1}\r\n{clip_1_2}\r\n")
    write(lists / "trainlist02.txt", f"{clip_1_1} 1\n{clip_1_2} 1\n")
    write(lists / "testlist02.txt", f"{clip_8_1}\n{hand}\n")
    write(lists / "trainlist03.txt", f"{clip_1_1} 1\n{clip_1_2} 1\n{clip_8_1} 1\n")
    write(lists / "testlist03.txt", f"{hand}\n")
    return tmp_path / "UCF-101"


UCF101 = {
    "Archery/v_Archery_g01_c01.avi": ("Archery", "v_Archery_g01", {"1": "test", "2": "train", "3": "train"}),
    "Archery/v_Archery_g01_c02.avi": ("Archery", "v_Archery_g01", {"1": "test", "2": "train", "3": "train"}),
    "Archery/v_Archery_g08_c01.avi": ("Archery", "v_Archery_g08", {"1": "train", "2": "test", "3": "train"}),
    "Archery/v_Archery_g26_c01.avi": ("Archery", "v_Archery_g26", {}),
    "HandstandPushups/v_HandStandPushups_g08_c01.avi": (
        "HandstandPushups",
        "v_HandStandPushups_g08",
        {"1": "train", "2": "test", "3": "test"},
    ),
}


@pytest.mark.parametrize("layout", ["auto", "ucf101"])
def test_ucf101(ucf101, layout):
    corpus = read_corpus(str(ucf101), CorpusOptions(layout=layout))
    assert rows_of(corpus) == UCF101
    assert corpus.split_names == ("1", "2", "3")
    assert corpus.split_note == (
        f"official splits 1, 2, 3 of UCF-101, from {ucf101.parent}/ucfTrainTestlist"
        "; 1 listed video is missing; 1 video in no split"
    )


def test_the_lists_may_be_inside_the_folder_or_given_as_annotations(ucf101, tmp_path):
    corpus = read_corpus(str(tmp_path))
    assert rows_of(corpus) == {f"UCF-101/{video_id}": row for video_id, row in UCF101.items()}
    (tmp_path / "ucfTrainTestlist").rename(tmp_path / "elsewhere")
    assert "by a hash" in read_corpus(str(ucf101)).split_note
    options = CorpusOptions(annotations=str(tmp_path / "elsewhere"))
    assert rows_of(read_corpus(str(ucf101), options)) == UCF101
    single_list = CorpusOptions(annotations=str(tmp_path / "elsewhere" / "trainlist02.txt"))
    assert read_corpus(str(ucf101), single_list).split_names == ("2",)
    assert read_corpus(str(ucf101), single_list).split_note.startswith("official split 2 of UCF-101, from ")


def test_videos_and_lists_at_a_uri(ucf101):
    corpus = read_corpus(f"file://{ucf101}/")
    assert rows_of(corpus) == UCF101
    assert f"from file://{ucf101.parent}/ucfTrainTestlist;" in corpus.split_note
    assert corpus.videos["path"][0].as_py() == f"file://{ucf101}/Archery/v_Archery_g01_c01.avi"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_glob_finds_the_lists_too(ucf101, scheme):
    corpus = read_corpus(f"{scheme}{ucf101}/*/v_Archery_g0*.avi")
    assert set(rows_of(corpus)) == {video_id for video_id in UCF101 if "Archery_g0" in video_id}
    assert rows_of(corpus)["Archery/v_Archery_g01_c01.avi"] == UCF101["Archery/v_Archery_g01_c01.avi"]


def test_layout_folder_does_not_look_at_the_lists(ucf101):
    corpus = read_corpus(str(ucf101), CorpusOptions(layout="folder"))
    assert corpus.split_names == ("default",)
    assert "Archery/notes.txt" in rows_of(corpus)


def test_a_flat_folder_has_its_labels_from_the_lists(tmp_path):
    make(tmp_path, "v_Archery_g01_c01.mp4", "v_Archery_g99_c01.mp4")
    write(tmp_path / "testlist01.txt", "\ufeffArchery/v_Archery_g01_c01.avi\n")
    assert rows_of(read_corpus(str(tmp_path), CorpusOptions(layout="ucf101"))) == {
        "v_Archery_g01_c01.mp4": ("Archery", "v_Archery_g01", {"1": "test"}),
        "v_Archery_g99_c01.mp4": (None, "v_Archery_g99", {}),
    }


def test_the_lists_that_name_the_videos_are_used(ucf101):
    make(ucf101.parent / "other", "1.webm")
    write(ucf101.parent / "train.json", '[{"id": "1", "template": "Holding [something]"}]')
    assert rows_of(read_corpus(str(ucf101.parent / "other"))) == {
        "1.webm": ("Holding something", None, {"default": "train"})
    }
    assert rows_of(read_corpus(str(ucf101))) == UCF101


@pytest.fixture
def hmdb51(tmp_path):
    clips = [
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_1.avi",
        "brush_hair/#20_brush_hair_brush_hair_f_cm_np1_fr_med_0.avi",
        "wave/April_09_wave_f_cm_np1_ba_med_0.avi",
        "wave/cut_wave_f_cm_np1_ba_med_0.avi",
        "wave/cut_wave_f_cm_np1_ba_med_1.avi",
        "wave/new_wave_f_cm_np1_ba_med_0.avi",
    ]
    make(tmp_path / "hmdb51_org", *clips)
    lists = tmp_path / "testTrainMulti_7030_splits"
    hair = [clip.split("/")[1] for clip in clips[:3]]
    wave = [clip.split("/")[1] for clip in clips[3:6]]
    for number, marks in ((1, "110"), (2, "222"), (3, "001")):
        pairs = zip(hair, marks, strict=True)
        write(lists / f"brush_hair_test_split{number}.txt", "".join(f"{clip} {mark} \n" for clip, mark in pairs))
    for number, marks in ((1, "212"), (2, "011"), (3, "000")):
        pairs = zip(wave, marks, strict=True)
        write(lists / f"wave_test_split{number}.txt", "".join(f"{clip} {mark} \n" for clip, mark in pairs))
    return tmp_path / "hmdb51_org"


@pytest.mark.parametrize("layout", ["auto", "hmdb51"])
def test_hmdb51(hmdb51, layout):
    corpus = read_corpus(str(hmdb51), CorpusOptions(layout=layout))
    april = "brush_hair/April_09"
    assert rows_of(corpus) == {
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi": ("brush_hair", april, {"1": "train", "2": "test"}),
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_1.avi": ("brush_hair", april, {"1": "train", "2": "test"}),
        "brush_hair/#20_brush_hair_brush_hair_f_cm_np1_fr_med_0.avi": (
            "brush_hair",
            "brush_hair/#20_brush_hair",
            {"2": "test", "3": "train"},
        ),
        # The same movie in another class is another group, because the splits are drawn per class.
        "wave/April_09_wave_f_cm_np1_ba_med_0.avi": ("wave", "wave/April_09", {"1": "test"}),
        # Split 1 divides this group, so its videos have no group.
        "wave/cut_wave_f_cm_np1_ba_med_0.avi": ("wave", None, {"1": "train", "2": "train"}),
        "wave/cut_wave_f_cm_np1_ba_med_1.avi": ("wave", None, {"1": "test", "2": "train"}),
        "wave/new_wave_f_cm_np1_ba_med_0.avi": ("wave", "wave/new", {}),
    }
    assert corpus.split_note == (
        f"official splits 1, 2, 3 of HMDB-51, from {hmdb51.parent}/testTrainMulti_7030_splits; 1 video in no split"
    )


def test_a_path_below_a_uri_is_encoded(hmdb51):
    paths = read_corpus(f"file://{hmdb51}").videos["path"].to_pylist()
    assert paths[0] == f"file://{hmdb51}/brush_hair/%2320_brush_hair_brush_hair_f_cm_np1_fr_med_0.avi"


@pytest.fixture
def kinetics(tmp_path):
    make(
        tmp_path / "k400",
        "train/air drumming/abcdefghijk_000001_000011.mp4",
        "train/air drumming/-_3B32lo_2M_000059_000069.mkv",
        "val/plain______.webm",
        "test/test_000_id_000000_000010.mp4",
        "test/twice______.mp4",
        "test/twice_______000010_000020.mp4",
        "train/air drumming/stranger____.mp4",
    )
    lists = tmp_path / "k400" / "annotations"
    header = "label,youtube_id,time_start,time_end,split\n"
    write(
        lists / "train.csv",
        header + '"air drumming",abcdefghijk,1,11,train\nair drumming,-_3B32lo_2M,59.0,69.0,train\n'
        "air drumming,gone_______,0,10,train\ngargling,gone_______,20,30,train\n",
    )
    write(lists / "validate.csv", header + "gargling,plain______,3,13,validate\n")
    write(
        lists / "test.csv",
        "youtube_id,time_start,time_end,split\ntest_000_id,0,10,test\ntwice______,0,10,test\ntwice______,10,20,test\n",
    )
    return tmp_path / "k400"


@pytest.mark.parametrize("layout", ["auto", "kinetics"])
def test_kinetics(kinetics, layout):
    corpus = read_corpus(str(kinetics), CorpusOptions(layout=layout))
    assert rows_of(corpus) == {
        "train/air drumming/abcdefghijk_000001_000011.mp4": ("air drumming", None, {"default": "train"}),
        "train/air drumming/-_3B32lo_2M_000059_000069.mkv": ("air drumming", None, {"default": "train"}),
        "val/plain______.webm": ("gargling", None, {"default": "test"}),
        "test/test_000_id_000000_000010.mp4": (None, None, {"default": "test"}),
        "test/twice_______000010_000020.mp4": (None, None, {"default": "test"}),
    }
    assert corpus.split_note == (
        f"official split of Kinetics, from {kinetics}/annotations"
        "; 3 listed videos are missing; 2 unlisted videos left out"
    )


def test_kinetics_lists_beside_a_flat_folder(tmp_path):
    make(tmp_path / "clips", "abcdefghijk_000001_000011.mp4", "ABCDEFGHIJK.mp4")
    write(
        tmp_path / "kinetics_val.csv", "label,youtube_id,time_start,time_end\nrun,abcdefghijk,1,11\nsit,ABCDEFGHIJK,,\n"
    )
    assert rows_of(read_corpus(str(tmp_path / "clips"))) == {
        "abcdefghijk_000001_000011.mp4": ("run", None, {"default": "test"}),
        "ABCDEFGHIJK.mp4": ("sit", None, {"default": "test"}),
    }


def test_with_labelled_test_videos_the_validation_videos_stay_what_they_are(tmp_path):
    make(tmp_path, "abcdefghijk.mp4", "ABCDEFGHIJK.mp4")
    write(tmp_path / "val.csv", "label,youtube_id\nrun,abcdefghijk\n")
    write(tmp_path / "test.csv", "label,youtube_id\nsit,ABCDEFGHIJK\n")
    assert rows_of(read_corpus(str(tmp_path))) == {
        "abcdefghijk.mp4": ("run", None, {"default": "validation"}),
        "ABCDEFGHIJK.mp4": ("sit", None, {"default": "test"}),
    }


def test_a_clip_in_two_lists_is_a_test_video(tmp_path):
    make(tmp_path, "abcdefghijk.mp4")
    for name in ("train", "val", "test"):
        write(tmp_path / f"{name}.csv", "label,youtube_id\nrun,abcdefghijk\n")
    assert rows_of(read_corpus(str(tmp_path))) == {"abcdefghijk.mp4": ("run", None, {"default": "test"})}


@pytest.fixture(params=["", "something-something-v2-"])
def ssv2(tmp_path, request):
    make(tmp_path / "20bn-something-something-v2", *(f"{number}.webm" for number in (1, 2, 3, 4)))
    label = "putting a white remote on a table"
    entry = {"label": label, "template": "Putting [something] on [a surface]", "placeholders": ["a white remote"]}
    lists = {
        "train": [{"id": "1", **entry}, {"id": "5", **entry}],
        "validation": [{"id": "2", **entry, "template": "Holding [something]"}],
        "test": [{"id": "3"}],
        "labels": {"Putting something on a surface": "0", "Holding something": "1"},
    }
    for name, entries in lists.items():
        write(tmp_path / "labels" / f"{request.param}{name}.json", json.dumps(entries))
    return tmp_path / "20bn-something-something-v2"


@pytest.mark.parametrize("layout", ["auto", "ssv2"])
def test_ssv2(ssv2, layout):
    corpus = read_corpus(str(ssv2), CorpusOptions(layout=layout))
    assert rows_of(corpus) == {
        "1.webm": ("Putting something on a surface", None, {"default": "train"}),
        "2.webm": ("Holding something", None, {"default": "test"}),
        "3.webm": (None, None, {"default": "test"}),
        "4.webm": (None, None, {}),
    }
    assert corpus.split_note == (
        f"official split of Something-Something V2, from {ssv2.parent}/labels"
        "; 1 listed video is missing; 1 video in no split"
    )


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_layout_without_its_lists_is_refused(tmp_path, layout):
    make(tmp_path / "videos", "a/1.mp4")
    with pytest.raises(
        UserError, match=rf"^expected .*{LAYOUTS[layout].title}.* in .*/videos or beside it, found none$"
    ):
        read_corpus(str(tmp_path / "videos"), CorpusOptions(layout=layout))


def test_annotations_that_are_none_are_refused(tmp_path):
    make(tmp_path, "videos/a/1.mp4", "lists/read-me.txt", "train.csv")
    videos = str(tmp_path / "videos")
    with pytest.raises(UserError, match="annotations: expected a folder or file of official lists, found nothing"):
        read_corpus(videos, CorpusOptions(annotations=str(tmp_path / "nowhere")))
    for name in ("lists", "train.csv"):
        with pytest.raises(UserError, match=f"expected ucfTrainTestlist.* in .*/{name}, found none"):
            read_corpus(videos, CorpusOptions(annotations=str(tmp_path / name)))
    with pytest.raises(UserError, match="annotations: expected none with layout folder"):
        read_corpus(videos, CorpusOptions(layout="folder", annotations=str(tmp_path / "lists")))


def test_a_manifest_has_no_layout(tmp_path):
    write(tmp_path / "m.csv", "path\na.mp4\n")
    for options in (CorpusOptions(layout="ucf101"), CorpusOptions(annotations=str(tmp_path))):
        with pytest.raises(UserError, match="expected a folder or a glob with them, found the manifest"):
            read_corpus(str(tmp_path / "m.csv"), options)


def test_lists_of_other_videos_beside_a_folder_do_not_matter(ucf101):
    other = ucf101.parent / "mine"
    make(other, "a/1.mp4", "b/2.mp4")
    write(ucf101.parent / "train.csv", "path,label\nx,y\n")
    write(ucf101.parent / "train.json", '{"id": 3}')
    assert "by a hash" in read_corpus(str(other)).split_note
    with pytest.raises(
        UserError, match=r"expected the videos of the UCF-101 lists .* found 0 of 2 videos in these lists$"
    ):
        read_corpus(str(other), CorpusOptions(layout="ucf101"))


def test_lists_that_name_few_of_the_videos_need_an_explicit_layout(ucf101):
    make(ucf101, *(f"Mine/{number}.mp4" for number in range(9)))
    with pytest.raises(
        UserError, match="found 4 of 14 videos in these lists; use --layout to accept or ignore the lists"
    ):
        read_corpus(str(ucf101))
    corpus = read_corpus(str(ucf101), CorpusOptions(layout="ucf101"))
    assert rows_of(corpus)["Mine/3.mp4"] == ("Mine", None, {})
    assert "10 videos in no split" in corpus.split_note


def test_a_folder_above_that_cannot_be_listed_does_not_matter(tmp_path, monkeypatch):
    make(tmp_path / "videos", "a/1.mp4")

    def refuse(location):
        raise PermissionError(location)

    monkeypatch.setattr("scale_ray.corpus.annotations.filesystem_of", refuse)
    assert "by a hash" in read_corpus(str(tmp_path / "videos")).split_note


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("trainlist01.txt", "v_Archery_g01_c01.avi 1\n", r"trainlist01.txt: expected lines such as .*, found 'v_Arch"),
        ("wave_test_split1.txt", "a.avi 3\n", "wave_test_split1.txt: expected lines such as NAME.avi 1.*'a.avi 3'"),
        (
            "train.csv",
            "youtube_id,split\na,tset\n",
            "train.csv, line 2: expected one of train, validation, test as split, found 'tset'",
        ),
        (
            "train.csv",
            "youtube_id,time_start,time_end\na,x,9\n",
            "line 2: expected start and end in seconds, found 'x' and '9'",
        ),
        ("train.csv", "youtube_id,label\n,run\n", "line 2: expected a youtube_id, found none"),
        ("train.json", '[{"id": "1"', "train.json: expected a list of objects with an id, found"),
        ("train.json", '[{"id": "1"}, 3]', "train.json: expected a list of objects with an id, found"),
    ],
)
def test_a_damaged_list_is_refused_in_one_line(tmp_path, name, text, message):
    make(tmp_path / "videos", "a/1.mp4")
    write(tmp_path / name, text)
    with pytest.raises(UserError, match=message) as caught:
        read_corpus(str(tmp_path / "videos"))
    assert "\n" not in str(caught.value)


def test_a_list_that_is_no_text_is_refused(tmp_path):
    make(tmp_path / "videos", "a/1.mp4")
    (tmp_path / "trainlist01.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"trainlist01\.txt: expected text in UTF-8"):
        read_corpus(str(tmp_path / "videos"))


def test_official_lists_come_before_the_names_of_the_folders(kinetics):
    assert read_corpus(str(kinetics)).split_note.startswith("official split of Kinetics")
    corpus = read_corpus(str(kinetics), CorpusOptions(layout="folder"))
    assert corpus.notes
