"""Files of text from other tools: quotes, encodings, ragged lines, compressed files, folders of files."""

from __future__ import annotations

import csv
import gzip
import json

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.cli import main
from distilrec.data.dataset import load_dataset
from distilrec.data.lines import TextFormat, _blank_lines
from distilrec.data.preparation import prepare_dataset
from distilrec.data.readers import open_log, read_table
from distilrec.data.schema import Schema
from distilrec.errors import (
    ColumnTypeError,
    ConfigError,
    DataError,
    FileMissingError,
    NotEnoughDataError,
)
from distilrec.runs.config import read_config

SCHEMA = Schema(timestamp="timestamp")
START = 1_700_000_000


def rows(users=4, items=5):
    return [
        (f"u{u}", f"i{(u + i) % items}", START + 1_000 * u + i)
        for u in range(users)
        for i in range(items)
    ]


def write_log(path, extra=lambda n: "", separator=",", header="query"):
    lines = [separator.join(["user_id", "item_id", "timestamp", header])]
    lines += [separator.join([u, i, str(t), extra(n)]) for n, (u, i, t) in enumerate(rows())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refused(path, text=None, columns=None):
    with pytest.raises(DataError) as caught:
        read_table(path, columns, text)
    return caught.value


# Quotes.


def test_escaped_quotes_are_read_where_the_escape_is_named_and_name_their_line_elsewhere(tmp_path):
    path = write_log(tmp_path / "log.csv", lambda n: r'"a 24\" screen"' if n == 7 else "shoes")
    problem = refused(path)
    assert problem.context["row"] == 9
    assert 'escape = "\\\\"' in problem.fix
    table = read_table(path, None, TextFormat(escape="\\"))
    assert table.height == 20
    assert table["query"][7] == 'a 24" screen'


def test_doubled_quotes_separators_and_line_ends_inside_cells_are_read(tmp_path):
    cells = ['say "hi"', "a,b", "two\nlines, of text", "", "plain"]
    path = tmp_path / "log.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "query"])
        writer.writerows([[f"u{n}", cell] for n, cell in enumerate(cells)])
    assert read_table(path)["query"].to_list() == [
        'say "hi"',
        "a,b",
        "two\nlines, of text",
        None,
        "plain",
    ]


@pytest.mark.parametrize("line", [0, 3, 18, 19])
@pytest.mark.parametrize("cell", ['"open', '"open" shoes', '"open, shoes'])
def test_a_quote_that_is_not_closed_names_its_line(tmp_path, line, cell):
    path = write_log(tmp_path / "log.csv", lambda n: cell if n == line else '"closed, rightly"')
    assert refused(path).context["row"] == line + 2


@pytest.mark.parametrize("between", [1, 2, 7])
def test_two_quotes_far_apart_swallow_nothing(tmp_path, between):
    path = write_log(
        tmp_path / "log.csv", lambda n: {4: '"red shoes', 4 + between: '24"'}.get(n, "x")
    )
    problem = refused(path)
    assert problem.context["row"] == 6
    assert "quote" in problem.fix
    table = read_table(path, None, TextFormat(quote=""))
    assert table.height == 20
    assert table["query"][4] == '"red shoes'
    assert (
        read_table(path, None, TextFormat(quote='"')).height == 20 - between
    )  # asked for: that cell holds the lines


def test_quotes_in_tab_separated_text_are_ordinary_characters(tmp_path):
    path = write_log(
        tmp_path / "log.tsv",
        lambda n: {2: '"red', 15: 'shoes"', 9: 'a 24" screen'}.get(n, "x"),
        "\t",
    )
    data = prepare_dataset(path, SCHEMA)
    assert data.info.cleaning_report.rows_in == data.info.cleaning_report.rows_out == 20
    assert read_table(path)["query"][2] == '"red'


def test_a_tab_separated_file_with_a_quoted_header_has_quotes(tmp_path):
    (tmp_path / "items.tsv").write_text('"sku"\t"name"\n"1"\t"a\tb"\n"2"\t"say ""hi"""\n')
    assert read_table(tmp_path / "items.tsv").rows() == [("1", "a\tb"), ("2", 'say "hi"')]


def test_quotes_and_escapes_are_settings_of_the_file(tmp_path, capsys):
    write_log(tmp_path / "log.csv", lambda n: "'a, b'")
    items = tmp_path / "items.csv"
    items.write_text('sku,name\ni1,"One, two"\ni2,"say \\"hi\\""\n')
    text = """
    [data]
    interactions = "log.csv"
    items = "items.csv"
    quote = "'"
    item_format = { quote = '"', escape = '\\' }
    [data.schema]
    timestamp = "timestamp"
    item_key = "sku"
    title = "name"
    """
    (tmp_path / "run.toml").write_text(text)
    main(["prepare", "--config", str(tmp_path / "run.toml"), "--run", str(tmp_path / "run")])
    info = load_dataset(tmp_path / "run" / "data").info
    assert info.cleaning_report.rows_out == 20
    assert info.titles[info.item_ids.index("i1")] == "One, two"
    assert info.titles[info.item_ids.index("i2")] == 'say "hi"'
    for bad in ('quote = "ab"', 'escape = "é"', 'encoding = "latin-99"', 'encoding = "base64"'):
        (tmp_path / "bad.toml").write_text(f'[data]\ninteractions = "log.csv"\n{bad}\n')
        with pytest.raises(ConfigError, match=bad.split()[0]):
            read_config(tmp_path / "bad.toml")


cell = st.text(st.sampled_from('ab", ;\t\n1\\'), max_size=6)


@pytest.mark.slow
@settings(deadline=None)
@given(
    table=st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=12),
    quoting=st.sampled_from([0, 1]),
)
def test_what_a_csv_writer_wrote_is_read_back(table, quoting, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=quoting)
        writer.writerow(["a", "b", "c"])
        writer.writerows(table)
    expected = [tuple(value or None for value in row) for row in table]
    assert read_table(path, None, TextFormat(quote='"')).rows() == expected
    with path.open(newline="", encoding="utf-8") as file:
        try:
            assert read_table(path).rows() == expected
        except ColumnTypeError as problem:  # only where lines of one cell look like records
            assert "every line of it is a record" in problem.message
            assert any("\n" in value for row in csv.reader(file) for value in row)


noise = st.text(st.sampled_from('a1",\\\n'), min_size=1, max_size=60)


@settings(deadline=None)
@given(text=noise)
def test_no_line_disappears(text, tmp_path_factory):
    """Whatever stands in a file: each line is in a row of its own or inside a closed cell, or a line is named."""
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    path.write_text("x,y,z\n" + text, newline="")
    try:
        table = read_table(path)
    except DataError as problem:
        assert problem.context.get("row") or "has two columns" in problem.message
        return
    lines = [line for line in text.split("\n") if line]
    inside = sum(value.count("\n") for row in table.rows() for value in row if value)
    blank_inside = sum(
        value.split("\n")[1:-1].count("") for row in table.rows() for value in row if value
    )
    assert table.height + inside - blank_inside == len(lines)


# Lines with too many or too few fields.


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("u1,i1,1700000000,3,5", "line 3: 5 fields where the header names 4"),  # a decimal comma
        (
            "0,u1,i1,1700000000,x",
            "line 3: 5 fields where the header names 4",
        ),  # a column of row numbers
    ],
)
@pytest.mark.parametrize("quoted", ["", '"q"'])
def test_a_line_with_too_many_fields_is_named(tmp_path, line, says, quoted):
    path = tmp_path / "log.csv"
    path.write_text(
        f"user_id,item_id,timestamp,rating\nu1,i2,1700000001,{quoted}\n{line}\nu1,i3,1700000002,4\n"
    )
    problem = refused(path)
    assert says in problem.message
    assert problem.context["row"] == 3
    assert "decimal commas" in problem.fix


@pytest.mark.parametrize("quoted", ["x", '"x"'])
def test_short_lines_are_filled_and_reported(tmp_path, quoted):
    path = write_log(tmp_path / "log.csv", lambda n: quoted)
    text = path.read_text().splitlines()
    text[5] = text[5].rsplit(",", 1)[0]
    path.write_text("\n".join(text) + "\n")
    data = prepare_dataset(path, SCHEMA)
    assert data.info.cleaning_report.rows_out == 20
    assert any(
        "1 lines have fewer fields than the header, the first is line 6" in n
        for n in data.info.cleaning_report.notes
    )


def test_blank_lines_are_no_rows(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"user_id,item_id\r\n\r\na,x\r\n\r\nb,y\r\n\r\n")
    assert read_table(tmp_path / "log.csv").rows() == [("a", "x"), ("b", "y")]


@given(st.text("a\r\n", max_size=40), st.integers(1, 9))
def test_blank_lines_are_counted_in_pieces_of_any_size(text, size):
    pieces = [text[first : first + size] for first in range(0, len(text), size)]
    # A piece of a real file is megabytes long; "\r" and "\n" of one line end may be in two pieces.
    pieces = [piece for piece in pieces if piece]
    whole = "".join(pieces)
    if any(one.endswith("\r") for one in pieces[:-1]):
        return
    befores = ["\n", *(piece[-1] for piece in pieces)]
    counted = sum(
        _blank_lines(piece, before) for piece, before in zip(pieces, befores, strict=False)
    )
    assert counted == sum(line in ("", "\r") for line in whole.split("\n")[:-1])


def test_line_ends_of_all_systems(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "log.csv").write_text(end.join(["user_id,item_id", "a,x", "b,y"]), newline="")
        assert read_table(tmp_path / "log.csv").rows() == [("a", "x"), ("b", "y")], repr(end)


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,item\na,x,1\n")
    assert "two columns 'item'" in refused(tmp_path / "log.csv").message
    with pytest.raises(ColumnTypeError, match="two columns 'a'"):
        (tmp_path / "plain.csv").write_text("1,2\n")
        read_table(tmp_path / "plain.csv", ["a", "a"])


def test_a_column_without_a_name_is_only_an_unused_column(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        ",user_id,item_id,timestamp\n"
        + "".join(f"{n},{u},{i},{t}\n" for n, (u, i, t) in enumerate(rows()))
    )
    assert prepare_dataset(path, SCHEMA).info.cleaning_report.rows_out == 20


def test_the_separator_is_found_outside_of_quotes_and_by_the_number_of_names(tmp_path):
    (tmp_path / "a.csv").write_text('"user, who";item\na;x\n')
    assert read_table(tmp_path / "a.csv").columns == ["user, who", "item"]
    (tmp_path / "b.csv").write_text("1;2;3,5\n4;5;6,5\n")
    assert read_table(tmp_path / "b.csv", ["a", "b", "c"])["c"].to_list() == ["3,5", "6,5"]


# Encodings.


WORDS = ["Crêpe", "Noël", "Crème"]


@pytest.mark.parametrize(
    "encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16", "utf-8-sig", "mac_roman"]
)
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.jsonl", "log.dat", "log.inter"])
def test_text_in_other_encodings_is_read_where_they_are_named(tmp_path, encoding, name):
    made = {
        "log.csv": "user_id,item_id\n" + "".join(f"u,{word}\n" for word in WORDS),
        "log.tsv": "user_id\titem_id\n" + "".join(f"u\t{word}\n" for word in WORDS),
        "log.jsonl": "".join(f'{{"user_id": "u", "item_id": "{word}"}}\n' for word in WORDS),
        "log.dat": "".join(f"u::{word}\n" for word in WORDS),
        "log.inter": "user_id:token\titem_id:token\n" + "".join(f"u\t{word}\n" for word in WORDS),
    }[name]
    (tmp_path / name).write_bytes(made.encode(encoding))
    columns = ["user_id", "item_id"] if name == "log.dat" else None
    assert read_table(tmp_path / name, columns, TextFormat(encoding))["item_id"].to_list() == WORDS
    if encoding in ("utf-16", "utf-8-sig"):  # a byte order mark says so
        assert read_table(tmp_path / name, columns)["item_id"].to_list() == WORDS
    elif encoding == "utf-16-le":
        assert "utf-16" in refused(tmp_path / name, None, columns).fix
    else:
        line = {"log.dat": 1, "log.jsonl": 1}.get(name, 2)
        problem = refused(tmp_path / name, None, columns)
        assert f"{name}, line {line}: the byte" in problem.message
        assert problem.context["row"] == line
        assert "encoding" in problem.fix


def test_a_bad_byte_far_down_names_its_line(tmp_path):
    lines = [f"u{n},i{n % 7},{START + n}" for n in range(400_000)]
    content = ("user_id,item_id,timestamp\n" + "\n".join(lines)).encode()
    where = content.index(b"u399000,")
    path = tmp_path / "log.csv"
    path.write_bytes(content[:where] + b"\xff" + content[where:])
    assert refused(path).context["row"] == 399_002
    with pytest.raises(DataError, match="line 399,002"):
        open_log(path, tmp_path)


def test_lines_end_only_where_lines_end(tmp_path):
    """Characters that Python's `splitlines` takes for line ends are ordinary ones."""
    (tmp_path / "movies.dat").write_bytes("1::a\x85b\x1c\n2::c\u2028d\n".encode())
    assert read_table(tmp_path / "movies.dat", ["id", "title"])["title"].to_list() == [
        "a\x85b\x1c",
        "c\u2028d",
    ]


# Compressed files, folders, patterns.


def pack(path, content):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text(tmp_path, suffix):
    made = {
        "log.csv": "user_id,item_id\na,Noël\nb,y\n",
        "log.tsv": "user_id\titem_id\na\tNoël\nb\ty\n",
        "log.jsonl": '{"user_id": "a", "item_id": "Noël"}\n{"user_id": "b", "item_id": "y"}\n',
        "log.dat": "a::Noël\nb::y\n",
    }
    for name, text in made.items():
        pack(tmp_path / (name + suffix), text.encode())
        columns = ["user_id", "item_id"] if name == "log.dat" else None
        assert read_table(tmp_path / (name + suffix), columns).rows() == [
            ("a", "Noël"),
            ("b", "y"),
        ], name
    (tmp_path / f"cut.csv{suffix}").write_bytes((tmp_path / f"log.csv{suffix}").read_bytes()[:-12])
    assert f"cut.csv{suffix}" in refused(tmp_path / f"cut.csv{suffix}").message


def test_many_files_are_one_log(tmp_path):
    log = pl.DataFrame(rows(), schema=["user_id", "item_id", "timestamp"], orient="row")
    (tmp_path / "days").mkdir()
    for day in range(3):
        own = log[day * 7 : day * 7 + 7]
        own.write_parquet(tmp_path / "days" / f"day-{day}.parquet")
        pack(tmp_path / f"events-{day}.csv.gz", own.write_csv().encode())
        own.write_ndjson(tmp_path / f"events-{day}.jsonl")
    (tmp_path / "days" / "_SUCCESS").touch()
    whole = prepare_dataset(log, SCHEMA, name="log")
    for path in ("days", "days/*.parquet", "events-*.csv.gz", "events-?.jsonl"):
        data = prepare_dataset(tmp_path / path, SCHEMA, name="log", rows_per_part=5)
        assert data.info.cleaning_report.rows_in == 20, path
        assert data.fingerprint() == whole.fingerprint(), path
    (tmp_path / "run.toml").write_text(
        '[data]\ninteractions = "events-*.csv.gz"\n[data.schema]\ntimestamp = "timestamp"\n'
    )
    main(["prepare", "--config", str(tmp_path / "run.toml"), "--run", str(tmp_path / "run")])
    assert load_dataset(tmp_path / "run" / "data").info.cleaning_report.rows_out == 20


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id\na,x\n")
    (tmp_path / "b.csv").write_text("user_id,item\na,x\n")
    assert "different columns: item, item_id" in refused(tmp_path / "*.csv").message
    (tmp_path / "c.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="several types"):
        read_table(tmp_path)
    with pytest.raises(FileMissingError, match="no files match"):
        read_table(tmp_path / "day-*.csv")
    (tmp_path / "day-1.csv").touch()
    with pytest.raises(NotEnoughDataError, match=r"day-1\.csv is empty"):
        read_table(tmp_path / "day-*.csv")


def test_a_column_with_two_types_in_two_files_keeps_its_ids(tmp_path):
    """A day without gaps and a day with gaps, as pandas writes them."""
    pl.DataFrame({"user_id": [1, 2], "item_id": [2**53 + 1, 7]}).write_parquet(
        tmp_path / "day-1.parquet"
    )
    pl.DataFrame({"item_id": [7.0, None], "user_id": [1, 2]}).write_parquet(
        tmp_path / "day-2.parquet"
    )
    table = read_table(tmp_path / "day-*.parquet")
    assert table["item_id"].to_list() == [str(2**53 + 1), "7", "7.0", None]
    pl.DataFrame({"user_id": [True], "item_id": [1]}).write_parquet(tmp_path / "day-3.parquet")
    assert "column 'user_id' has different types" in refused(tmp_path / "day-*.parquet").message


def test_file_names_with_brackets_are_files(tmp_path):
    (tmp_path / "log[1].csv").write_text("user_id,item_id\na,x\n")
    assert read_table(tmp_path / "log[1].csv").rows() == [("a", "x")]
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "log[2].parquet")
    assert read_table(tmp_path / "log[2].parquet").rows() == [(1,)]


# JSON lines.


def test_a_line_that_is_no_object_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    for bad in ("[1, 2]", "null", '{"a": 1} {"a": 2}', '{"a": NaN}', '{"a": '):
        path.write_text(f'{{"a": 1}}\n\n{bad}\n{{"a": 3}}\n')
        assert refused(path).context["row"] == 3, bad


def test_json_keeps_numbers_as_they_are_written(tmp_path):
    path = tmp_path / "log.jsonl"
    values = {
        "ids": [2**53 + 1, 5.0, None],  # whole numbers, one of them as a float
        "numbers": [1, 2.5, None],
        "mixed": ["x", 7, 7.0],
        "wide": [10**30, 1, 2],
        "large": [1, 1e19, 3],
        "flags": [True, None, False],
        "tags": [["a", "b"], [], None],
        "late": [None, None, "x"],
    }
    path.write_text(
        "".join(json.dumps({k: v[n] for k, v in values.items()}) + "\n" for n in range(3))
    )
    table = read_table(path)
    assert table["ids"].to_list() == [2**53 + 1, 5, None]
    assert table["numbers"].to_list() == [1.0, 2.5, None]
    assert table["mixed"].to_list() == ["x", "7", "7.0"]
    assert table["large"].to_list() == ["1", "10000000000000000000.0", "3"]
    assert table["flags"].to_list() == [True, None, False]
    assert table["tags"].to_list() == [["a", "b"], [], None]
    assert table["late"].to_list() == [None, None, "x"]
