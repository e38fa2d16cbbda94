"""Tables of images in CSV and Parquet: what is right goes in, each odd row is one rejection, nothing else is read."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from import_samples import csv_manifest, rules, samples_of, split

from matchflow_cli.bulk_samples import FileContent, Rejection, image_id_of
from matchflow_cli.failures import CommandError
from matchflow_cli.manifest import Manifest, ManifestColumns
from matchflow_cli.manifest_csv import MAX_LINE_BYTES, CsvRows
from matchflow_cli.manifest_parquet import ParquetRows

if TYPE_CHECKING:
    from pathlib import Path

    from matchflow_cli.bulk_labels import LabelRules

OUTSIDE, ROW, LABEL = "PATH_OUTSIDE", "ROW_INVALID", "LABEL_INVALID"


def parquet(path: Path, columns: dict[str, Any], label_rules: LabelRules | None = None, **options: Any) -> Manifest:
    pq.write_table(pa.table(columns), path, row_group_size=options.pop("row_group_size", 1000))
    named = ManifestColumns(rules=label_rules or rules())
    return Manifest(table=ParquetRows(path, named), root=path.parent, rules=named.rules, **options)


def test_a_table_says_which_images_with_which_labels_and_ids(tmp_path: Path) -> None:
    text = "path,id,class,designer\nnoto/a.png,first,1f600,\n./noto/b.png,,1f601,google\n\nnoto/gone.png,,,\n"
    first, second, third = samples_of(csv_manifest(tmp_path / "t.csv", text, level_labels=("designer",)))
    assert (first.image_id, first.labels) == ("first", {"designer": "noto", "class": "1f600"})
    assert (second.image_id, second.labels) == ("noto:b.png", {"designer": "google", "class": "1f601"})
    assert (third.image_id, third.labels) == ("noto:gone.png", {"designer": "noto"})
    assert third.content == FileContent(tmp_path / "noto" / "gone.png")
    assert [each.place for each in (first, second, third)] == ["t.csv line 2", "t.csv line 3", "t.csv line 5"]


def test_paths_are_relative_to_the_root(tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    root.mkdir()
    (sample,) = samples_of(csv_manifest(tmp_path / "t.csv", "path\na.png\n", root=root))
    assert sample.content == FileContent(root / "a.png")


def test_columns_can_have_other_names_and_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("file,key,class,Odd Name\na.png,x,cat,whatever\n")
    columns = ManifestColumns(path="file", image_id="key", rules=rules("class"))
    (sample,) = samples_of(Manifest(table=CsvRows(path, columns), root=tmp_path, rules=columns.rules))
    assert (sample.image_id, sample.labels) == ("x", {"class": "cat"})


def test_numbers_and_times_of_a_csv_are_those_that_are_named(tmp_path: Path) -> None:
    text = "path,size,seen,code\na.png,12.5,2026-01-31T12:00:00Z,007\nb.png,,,1\n"
    label_rules = rules(numbers=["size"], times=["seen"])
    first, second = samples_of(csv_manifest(tmp_path / "t.csv", text, label_rules))
    assert first.labels == {"size": 12.5, "seen": dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC), "code": "007"}
    assert second.labels == {"code": "1"}


def test_a_table_from_a_spreadsheet_with_a_byte_order_mark_and_its_line_ends_is_read(tmp_path: Path) -> None:
    text = '\ufeffpath,class\r\na.png,x\r\nb.png,"two\r\nlines"\r\n'
    first, second = samples_of(csv_manifest(tmp_path / "t.csv", text))
    assert (first.labels, second.labels) == ({"class": "x"}, {"class": "two\r\nlines"})
    assert second.place == "t.csv lines 3-4"


@pytest.mark.parametrize(
    ("heading", "problem"),
    [
        ("", "needs a column 'path'; it has none"),
        ("\n", "needs a column 'path'; it has none"),
        ("file,class\n", "needs a column 'path'; it has file, class"),
        ("path;class\n", "it has path;class"),
        ("path,Class Name\n", "a label name has 1-64 characters"),
        ("path,\n", "a label name has 1-64 characters"),
        ("path,name,name\n", "has a column twice"),
        ("path,path\n", "has a column twice"),
        ('"path,class\n', "is no CSV in UTF-8"),
        ("path,größe\n".encode("latin-1"), "is no CSV in UTF-8"),
        ("path,class\n".encode("utf-16"), "is no CSV in UTF-8"),
        (b"path\0,class\n", "needs a column 'path'"),
        (b"x" * (MAX_LINE_BYTES + 10), "at most 1,048,576 bytes"),
        (b"\x89PNG\r\n\x1a\n", "is no CSV in UTF-8"),
    ],
)
def test_a_heading_that_makes_no_sense_is_refused(tmp_path: Path, heading: str | bytes, problem: str) -> None:
    with pytest.raises(CommandError, match=problem) as caught:
        csv_manifest(tmp_path / "t.csv", heading)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_that_are_asked_for_must_be_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    make: Any = csv_manifest if kind == "csv" else parquet
    content: Any = "path\n" if kind == "csv" else {"path": ["a.png"]}
    for label_rules in (rules("gone"), rules(numbers=["gone"]), rules(times=["gone"])):
        with pytest.raises(CommandError, match="has no column gone"):
            make(path, content, label_rules)


# Each stands between two good rows, which must go in whatever it is.
ODD_ROWS: list[tuple[bytes, str | None]] = [
    (b"/etc/passwd,,,", OUTSIDE),
    (b"//etc/passwd,,,", OUTSIDE),
    (b"../a.png,,,", OUTSIDE),
    (b"x/../../a.png,,,", OUTSIDE),
    (b"..,,,", OUTSIDE),
    (b".,,,", OUTSIDE),
    (b"./,,,", OUTSIDE),
    (b"x/..,,,", OUTSIDE),
    (b"out/a.png,,,", OUTSIDE),
    (b"out,,,", OUTSIDE),
    (b"in/../out/x,,,", OUTSIDE),
    (b"...,,,", None),
    (b"..a.png,,,", None),
    (b"x/../b.png,,,", None),
    (b"a//b.png,,,", None),
    (b"..\\a.png,,,", None),
    (b"~/a.png,,,", None),
    (b"file:///etc/passwd,,,", None),
    (b"C:\\a.png,,,", None),
    (b"in/a.png,,,", None),
    (b" a.png ,,,", None),
    (b",,,", ROW),
    (b",x,,", ROW),
    (b'"",,,', ROW),
    (b"nul\0.png,,,", ROW),
    (b"one", ROW),
    (b"a,b", ROW),
    (b"a,b,c", ROW),
    (b"a,b,c,d,e", ROW),
    (b"a,,,,,,,,,,", ROW),
    (b'a"b.png,,,', None),
    (b'"a"b.png,,,', ROW),
    (b'"a""b.png",,,', None),
    (b'"a,b.png",,,', None),
    (b'"a\nb.png",,,', None),
    (b"\xff.png,,,", ROW),
    (b"\xed\xa0\x80,,,", ROW),
    (b"\xc0\xaf,,,", ROW),
    ("Grüße 😀.png,,,".encode(), None),
    ("\u202egnp.exe,,,".encode(), None),
    (b"\x1b[31m.png,,,", None),
    (b"new\rline.png,,,", ROW),
    (b"a.png,,three,", LABEL),
    (b"a.png,,nan,", LABEL),
    (b"a.png,,inf,", LABEL),
    (b"a.png,,1e400,", LABEL),
    (b"a.png,,9007199254740993,", LABEL),
    (b"a.png,,1_0,", LABEL),
    (b'a.png,,"1,5",', LABEL),
    (b"a.png,,3,", None),
    (b"a.png,,,yesterday", LABEL),
    (b"a.png,,,2026-13-01", LABEL),
    (b"a.png,,,1769860800", LABEL),
    (b"a.png,,,0001-01-01T00:00:00+14:00", LABEL),
    (b"a.png,,,2026-01-31", None),
    (b"x" * 5000 + b",,,", None),
    (b"a.png," + b"x" * 200_000 + b",,", ROW),
    (b"a.png,,,," + b"x" * (2 * MAX_LINE_BYTES), ROW),
    (b"x" * (MAX_LINE_BYTES - 1), ROW),
    (b"x" * MAX_LINE_BYTES, ROW),
    (b"x" * (MAX_LINE_BYTES + 1), ROW),
    (b"#a comment", ROW),
    (b"path,id,size,seen", LABEL),
    (b"   ", ROW),
    (b"\t", ROW),
    (b";;;", ROW),
    (b"PK\x03\x04,,,", None),
    (b"%00.png,,,", None),
    (b"CON,,,", None),
    (b"-rf,,,", None),
    (b"$HOME/a.png,,,", None),
    (b"a.png/,,,", None),
    (b"a.png/b.png,,,", None),
]


@pytest.mark.parametrize(("odd", "reason"), ODD_ROWS, ids=[re.sub(r"\W", ".", repr(row[:30])) for row, _ in ODD_ROWS])
def test_an_odd_row_is_a_rejection_or_an_image_and_stops_nothing(
    tmp_path: Path, odd: bytes, reason: str | None
) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    text = b"path,id,size,seen\nfirst.png,,1,\n" + odd + b"\nlast.png,,2,2026-01-31\n"
    label_rules = rules(numbers=["size"], times=["seen"])
    good, bad = split(csv_manifest(tmp_path / "t.csv", text, label_rules, root=root))
    assert good[0] == "first.png"
    assert good[-1] == "last.png"
    assert len(good) == (3 if reason is None else 2)
    assert [each for _, each in bad] == ([] if reason is None else [reason])


def test_a_blank_line_is_no_row(tmp_path: Path) -> None:
    assert split(csv_manifest(tmp_path / "t.csv", "path\n\na.png\n\r\n\nb.png")) == (["a.png", "b.png"], [])


def test_a_quote_that_is_never_closed_is_one_rejection_that_names_what_it_swallowed(tmp_path: Path) -> None:
    good, bad = split(csv_manifest(tmp_path / "t.csv", 'path\na.png\n"b.png\nc.png\nd.png\n'))
    assert good == ["a.png"]
    assert bad == [("t.csv lines 3-5", ROW)]


def test_after_a_quote_that_is_never_closed_a_long_table_goes_on(tmp_path: Path) -> None:
    rows = "".join(f"image-{i:06}.png\n" for i in range(30_000))
    good, bad = split(csv_manifest(tmp_path / "t.csv", f'path\na.png\n"b.png\n{rows}'))
    assert len(bad) == 1
    assert good[0] == "a.png"
    assert good[-1] == "image-029999.png"
    assert len(good) > 20_000


@pytest.mark.parametrize("path", ["/data/a.png", "../a.png", "out/a.png"])
def test_paths_outside_are_taken_when_that_is_allowed(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (sample,) = samples_of(csv_manifest(tmp_path / "t.csv", f"path\n{path}\n", root=root, allow_outside=True))
    assert sample.content == FileContent(root / path)
    assert sample.image_id == image_id_of(path)


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert split(csv_manifest(tmp_path / "t.csv", "path\na.png\n", root=tmp_path / "root")) == (["a.png"], [])


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_every_row_that_csv_can_write_is_a_sample_or_a_rejection_in_its_place(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([("path", "class"), *cells])
    manifest = csv_manifest(tmp_path_factory.mktemp("hypothesis") / "t.csv", buffer.getvalue())
    found = list(manifest.samples())
    assert len(found) == len(cells)
    for (path, label), each in zip(cells, found, strict=True):
        if isinstance(each, Rejection):
            assert not path or path.startswith(("/", ".")) or ".." in path
        else:
            assert each.labels == ({"class": label} if label else {})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_below_a_heading_are_samples_or_rejections(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    split(csv_manifest(tmp_path_factory.mktemp("hypothesis") / "t.csv", b"path,id\n" + data))


def test_labels_of_a_parquet_table_have_the_types_of_their_columns(tmp_path: Path) -> None:
    noon = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    columns = {
        "path": pa.array(["a.png", "b.png"]),
        "id": pa.array([7, None], pa.int64()),
        "text": pa.array(["x", None], pa.large_string()),
        "word": pa.array(["cat", "cat"]).dictionary_encode(),
        "whole": pa.array([3, None], pa.uint8()),
        "real": pa.array([0.5, None], pa.float32()),
        "money": pa.array([Decimal("2.50"), None], pa.decimal128(10, 2)),
        "flag": pa.array([True, None]),
        "day": pa.array([dt.date(2026, 1, 31), None]),
        "zoned": pa.array([noon, None], pa.timestamp("ns", tz="Asia/Tokyo")),
        "naive": pa.array([noon.replace(tzinfo=None), None], pa.timestamp("ms")),
        "nothing": pa.nulls(2),
    }
    first, second = samples_of(parquet(tmp_path / "t.parquet", columns))
    assert (first.image_id, second.image_id) == ("7", "b.png")
    assert first.labels == {
        "text": "x",
        "word": "cat",
        "whole": 3.0,
        "real": 0.5,
        "money": 2.5,
        "flag": "true",
        "day": noon.replace(hour=0),
        "zoned": noon,
        "naive": noon,
    }
    assert second.labels == {"word": "cat"}
    assert [first.place, second.place] == ["t.parquet row 1", "t.parquet row 2"]


def test_texts_of_a_parquet_table_can_be_numbers_and_times_too(tmp_path: Path) -> None:
    columns = {"path": ["a.png", "b.png"], "size": ["1.5", "big"], "seen": ["2026-01-31", None]}
    manifest = parquet(tmp_path / "t.parquet", columns, rules(numbers=["size"], times=["seen"]))
    good, bad = manifest.samples()
    assert not isinstance(good, Rejection)
    assert good.labels == {"size": 1.5, "seen": dt.datetime(2026, 1, 31, tzinfo=dt.UTC)}
    assert isinstance(bad, Rejection)
    assert (bad.reason, bad.place) == (LABEL, "t.parquet row 2")


ODD_COLUMNS: list[tuple[Any, list[str | None]]] = [
    (pa.array([1.5, float("nan"), float("inf")]), [None, LABEL, LABEL]),
    (pa.array([2**53, 2**53 + 1, -(2**63)]), [None, LABEL, LABEL]),
    (pa.array([0, 10**12, -(10**12)], pa.timestamp("s", tz="UTC")), [None, LABEL, LABEL]),
    (pa.array([0, 2**60, 253402300800000000], pa.timestamp("us")), [None, LABEL, LABEL]),
    (pa.array([0, 2**30, -(2**30)], pa.int32()).cast(pa.date32()), [None, LABEL, LABEL]),
    (pa.array([b"fine", b"\xff", b"ok"]).cast(pa.string(), safe=False), [None, LABEL, None]),
    (pa.array(["x", "y" * 100_000, "z"]), [None, LABEL, None]),
    (pa.array(["x", "y" * 100_000, "z"]).dictionary_encode(), [None, LABEL, None]),
    (pa.array([Decimal("1e30"), Decimal(1), None], pa.decimal256(60, 2)), [None, None, None]),
]


@pytest.mark.parametrize(("column", "reasons"), ODD_COLUMNS, ids=[str(column.type) for column, _ in ODD_COLUMNS])
def test_an_odd_value_of_a_parquet_table_is_the_rejection_of_its_row(
    tmp_path: Path, column: Any, reasons: list[str | None]
) -> None:
    manifest = parquet(tmp_path / "t.parquet", {"path": ["a.png", "b.png", "c.png"], "x": column})
    assert [each.reason if isinstance(each, Rejection) else None for each in manifest.samples()] == reasons


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/etc/passwd", OUTSIDE), ("../a.png", OUTSIDE), ("", ROW), (None, ROW), ("nul\0", ROW), ("x" * 70_000, ROW)],
)
def test_an_odd_path_of_a_parquet_table_is_the_rejection_of_its_row(
    tmp_path: Path, path: str | None, reason: str
) -> None:
    good, bad = split(parquet(tmp_path / "t.parquet", {"path": ["a.png", path, "c.png"]}))
    assert (good, [each for _, each in bad]) == (["a.png", "c.png"], [reason])


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"file": ["a.png"]}, "needs a column 'path'; it has file"),
        ({"path": ["a.png"], "Odd": ["x"]}, "a label name has"),
        ({"path": ["a.png"], "vector": [[1.0, 2.0]]}, "column 'vector' has the type list<.*--label-column"),
        ({"path": ["a.png"], "raw": [b"x"]}, "column 'raw' has the type binary"),
        ({"path": [["a.png"]]}, "column 'path' has the type list"),
    ],
)
def test_a_parquet_table_that_makes_no_sense_is_refused(tmp_path: Path, columns: dict[str, Any], problem: str) -> None:
    with pytest.raises(CommandError, match=problem) as caught:
        parquet(tmp_path / "t.parquet", columns)
    assert caught.value.exit_code == 2


def test_columns_that_no_label_can_have_are_left_out_when_the_labels_are_named(tmp_path: Path) -> None:
    columns = {"path": ["a.png"], "vector": [[1.0]], "class": ["cat"]}
    (sample,) = samples_of(parquet(tmp_path / "t.parquet", columns, rules("class")))
    assert sample.labels == {"class": "cat"}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"path\na.png\n", b"PAR1" + b"\xff" * 100 + b"PAR1"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(CommandError, match="is no Parquet file"):
        ParquetRows(path, ManifestColumns())


def test_a_damaged_row_group_is_a_rejection_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {"path": [f"image-{i}.png" for i in range(3000)]}
    pq.write_table(pa.table(columns), path, row_group_size=1000, use_dictionary=False, compression="snappy")
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    begin = chunk.data_page_offset + 40
    data[begin : begin + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    good, bad = split(Manifest(table=ParquetRows(path, ManifestColumns()), root=tmp_path, rules=rules()))
    assert good[:1000] == [f"image-{i}.png" for i in range(1000)]
    assert good[-1000:] == [f"image-{i}.png" for i in range(2000, 3000)]
    assert bad == [("t.parquet rows 1001-2000", ROW)]


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": ["a.png"]}), path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(CommandError, match=re.escape("pip install 'matchflow[bulk]'")):
        ParquetRows(path, ManifestColumns())


def test_a_long_csv_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("w") as file:
        file.write("path,class\n")
        file.writelines(f"folder/{'x' * 100}/image-{i}.png,class-{i}\n" for i in range(50_000))
    manifest = Manifest(table=CsvRows(path, ManifestColumns()), root=tmp_path, rules=rules(), allow_outside=True)
    tracemalloc.start()
    try:
        assert sum(1 for _ in manifest.samples()) == 50_000
        # Of this, Python's own table of interned texts takes 4 or 8 MB when it grows, whoever filled it before.
        assert tracemalloc.get_traced_memory()[1] < 11_500_000, "the table itself has 8 MB more, its rows as objects 40"
    finally:
        tracemalloc.stop()


MEASURE = """
import resource, sys
from pathlib import Path
from matchflow_cli.bulk_labels import LabelRules
from matchflow_cli.manifest import Manifest, ManifestColumns
from matchflow_cli.manifest_parquet import ParquetRows
path = Path(sys.argv[1])
table = ParquetRows(path, ManifestColumns())
samples = Manifest(table=table, root=path.parent, rules=LabelRules(), allow_outside=True).samples()
next(samples)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = 1 + sum(1 for _ in samples)
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["many", "bomb"])
def test_a_large_parquet_table_is_read_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    """Many: one row group of 200,000 long paths, 40 MB. Bomb: a text of 10 MB that 20,000 rows share, 200 GB."""
    path = tmp_path / "t.parquet"
    rows = 200_000 if kind == "many" else 20_000
    columns: dict[str, Any] = {"path": [f"folder/{'x' * 170}/image-{i}.png" for i in range(rows)]}
    if kind == "bomb":
        columns["text"] = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 10**7]))
    pq.write_table(pa.table(columns), path, row_group_size=rows, compression="zstd", store_schema=False)
    command = [sys.executable, "-c", MEASURE, str(path)]
    measured = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(measured[0]) == rows
    assert int(measured[1]) < 150, "MB more after the first row than before"
